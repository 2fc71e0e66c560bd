"""Running a stage without a run: a context in which nothing works that a test does not give, and a quiet trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Record, append_records
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.progress import Progress
from montessori_pl.stages import StageContext


class Killed(BaseException):
    """Stands for `kill -9`: nothing in the program catches it."""


class StandIn:
    """Stands for a student or a teacher of which a stage asks only where it comes from."""

    def __init__(self, backbone: str) -> None:
        self.source = ModelSource(backbone)


def never(*arguments: Any, **keywords: Any) -> Any:
    """Stands for what a stage must not ask for."""
    raise AssertionError("not needed")


def quiet_trainer(callbacks: Sequence[Callback] = (), **arguments: Any) -> Trainer:
    """A trainer on the CPU that shows and logs nothing, and writes no checkpoints but those of its callbacks."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(one, Checkpoint) for one in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **{**settings, **arguments})


def stage_context(directory: Path, **changes: Any) -> StageContext:
    """The context of a stage that has the name of its directory, which is made; tests replace what the stage needs."""
    directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "key": f"iteration_1/{directory.name}",
        "name": directory.name,
        "iteration": 1,
        "directory": directory,
        "seed": 5,
        "run_seed": 5,
        "inputs": {},
        "data": DataSources("none", "none"),
        "student": never,
        "teacher": never,
        "backend": never,
        "trainer": never,
        "progress": Progress(),
        "log_distribution": lambda name, values: None,
    }
    return StageContext(**{**settings, **changes})


def write(path: Path, records: Sequence[Record]) -> Path:
    """Write records into a new file, as a stage would have left them; returns its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    append_records(path, records)
    return path.parent
