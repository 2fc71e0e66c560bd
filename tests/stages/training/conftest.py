"""Pairs, a teacher that is aligned on them, and the stage that aligns it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
from alignments import GENTLE, PROMPTS, SEED, WATCH, Align, Whatever
from lightning.pytorch import Callback, Trainer
from stage_runs import quiet_trainer, stage_context
from tiny_models import save_tiny_model

from montessori_pl.data.records import PreferencePair, append_records
from montessori_pl.generation import GenerationBackend, TransformersBackend
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import AlignTeacher
from montessori_pl.stages.training.alignment_monitor import AlignmentMonitor


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of twelve pairs of six prompts, with unequal weights."""
    records = [
        PreferencePair(
            id=f"{prompt}-{number}",
            prompt=prompt,
            chosen=["a task.", "why is it so?"][number],
            rejected=["no no no", "b"][number],
            chosen_id="c",
            rejected_id="r",
            margin=1.0,
            weight=0.5 + number,
            chosen_finished=number == 0,
        )
        for prompt in PROMPTS
        for number in range(2)
    ]
    directory = tmp_path_factory.mktemp("pairs")
    append_records(directory / "pairs.jsonl", records)
    return directory


@pytest.fixture(scope="module")
def align(backbone: str, pairs: Path) -> Align:
    """One session of the stage, as the runner begins it; returns its metrics."""

    def run(
        directory: Path,
        monitor: AlignmentMonitor | None = WATCH,
        training: TrainingSettings = GENTLE,
        notes: Callback | None = None,
        previous: Path | None = None,
        logger: Any = False,
        backend: Callable[[], GenerationBackend] = TransformersBackend,
        **settings: Any,
    ) -> dict[str, Any]:
        lightning.seed_everything(SEED, verbose=False)

        def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
            return quiet_trainer([*([notes] if notes else []), *callbacks], logger=logger, **arguments)

        context = stage_context(
            directory,
            key="iteration_1/aligned",
            seed=SEED,
            inputs={"pairs": pairs, "teacher": previous},
            teacher=lambda: TeacherDPOModule(backbone, lora=LoraSettings(r=2, alpha=4, dropout=0.1), sft_weight=0.1),
            backend=backend,
            trainer=trainer,
        )
        stage = AlignTeacher("pairs", training, monitor=monitor, synthesizer=Whatever(), **settings)
        return stage.run(context)

    return run
