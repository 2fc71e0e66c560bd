"""Numbers and histograms for whatever loggers the trainer has."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from montessori_pl.stats.distribution import histogram

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def log_numbers(loggers: "Sequence[Logger]", prefix: str, values: Mapping[str, Any]) -> None:
    """Log all numbers of a nested mapping; other values, such as the bins of a histogram, are left out."""
    for logger in loggers:
        logger.log_metrics(_numbers(prefix, values))
        logger.save()  # some write only now and then while a trainer runs, and here is none


def log_distribution(loggers: "Sequence[Logger]", name: str, values: Sequence[float]) -> None:
    """Log values as a histogram, to loggers that know histograms."""
    if not values:
        return
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({name: wandb.Histogram(np_histogram=histogram(values, bins=64))})
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
