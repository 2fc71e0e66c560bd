"""Numbers and histograms for whatever logger the trainer has."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def log_numbers(logger: "Logger | None", prefix: str, values: Mapping[str, Any]) -> None:
    """Log all numbers of a nested mapping; other values, such as the bins of a histogram, are left out."""
    if logger is not None:
        logger.log_metrics(_numbers(prefix, values))


def log_distribution(logger: "Logger | None", name: str, values: Sequence[float]) -> None:
    """Log values as a histogram, to loggers that know histograms."""
    if not values:
        return
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.log({name: wandb.Histogram(list(values))})
    elif isinstance(logger, TensorBoardLogger):
        import torch

        logger.experiment.add_histogram(name, torch.tensor(values))


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            numbers |= _numbers(name, value)
        elif isinstance(value, int | float):
            numbers[name] = value
    return numbers
