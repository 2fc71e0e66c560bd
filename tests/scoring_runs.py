"""The stage `ScoreExamples`, run for the tests of signals."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage_runs import quiet_trainer, stage_context, write

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example, Rejection, Score, read_records
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import SignalCallback
from montessori_pl.stages import StageContext
from montessori_pl.stages.score_examples import ScoreExamples


@dataclasses.dataclass
class Scoring:
    """Runs the stage `ScoreExamples` with a signal in a directory; another run in the same one goes on."""

    root: Path
    backbone: str

    def context(self, name: str, **inputs: Path | None) -> StageContext:
        reference = self.root / "reference.jsonl"
        reference.write_text(json.dumps({"instruction": "x", "response": "y"}) + "\n")

        return stage_context(
            self.root / name,
            inputs=inputs,
            data=DataSources(seed_tasks="none", reference=str(reference)),
            student=lambda: StudentModule(self.backbone, lora=LoraSettings(r=2, alpha=4)),
            trainer=quiet_trainer,
        )

    def __call__(
        self, signal: SignalCallback, examples: Sequence[Example], name: str = "scores", batch_tokens: int = 1
    ) -> dict[str, Any]:
        """The metrics; with one token each prompt is a batch of its own."""
        data = write(self.root / f"{name}-data" / "examples.jsonl", examples)
        context = self.context(name, examples=data, student=None)
        return ScoreExamples("data", signal, batch_tokens=batch_tokens).run(context)

    def scores(self, name: str = "scores") -> dict[str, Score]:
        return {score.id: score for score in read_records(self.root / name / "scores.jsonl", Score)}

    def files(self, name: str = "scores") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.root / name).iterdir())}

    def unscored(self, name: str = "scores") -> list[Rejection]:
        return read_records(self.root / name / "unscored.jsonl", Rejection)
