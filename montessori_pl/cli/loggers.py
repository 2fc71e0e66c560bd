"""The loggers of a whole run, over all its stages and restarts."""

import time
from collections.abc import Sequence

from lightning.pytorch.loggers import Logger, WandbLogger

from montessori_pl.data.records import stable_id
from montessori_pl.run_directory.run_directory import RunDirectory


def continue_loggers(loggers: Sequence[Logger], run_directory: RunDirectory) -> None:
    """Let a W&B run keep its id over restarts, and lie in the run directory."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            if "wandb_id" not in run_directory.facts:
                run_directory.remember(wandb_id=stable_id(run_directory.root.resolve(), time.time_ns()))
            logger._wandb_init.pop("anonymous", None)  # W&B warns that it has no effect any more
            logger._wandb_init |= {
                "id": logger._wandb_init.get("id") or run_directory.facts["wandb_id"],
                "resume": "allow",
                "dir": str(run_directory.root),
            }
            logger._wandb_init["settings"] = wandb.Settings(console="off", silent=True)
