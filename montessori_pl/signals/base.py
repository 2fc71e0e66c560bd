"""Preference signals: Lightning callbacks that say, during `Trainer.predict`, how good an example is."""

import json
import math
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from montessori_pl.bounds import Checked
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Rejection, Score, as_lines
from montessori_pl.estimates.estimate import StageEstimate, Work, mean, passes
from montessori_pl.influence.memory import default_budget
from montessori_pl.models.ranks import is_first_rank, minimum_over_ranks
from montessori_pl.models.student import StudentModule
from montessori_pl.run_directory.atomic import write_json
from montessori_pl.run_directory.durable import append
from montessori_pl.signals.scoring_data import ScoringData

REPORT = "signal.json"
"""File beside the scores in which a signal says how it computed them."""


FREE_MEMORY = "free_memory.json"
"""File beside unfinished scores in which a signal keeps how much memory it found free when it began."""

NO_NUMBER = "score is no number"
"""The reason of a rejection: what was computed is NaN or infinite."""
UNANSWERED = "no response"
"""The reason of a rejection: the signal looks at the response, and the example is an instruction alone."""


class SignalCallback(Checked, Callback, ABC):
    """Scores examples; higher is better for the student.

    Implement `score`, or `score_batch` where a batch is cheaper than its examples, and `prepare` where something must
    be computed once. Scores are appended to a file of this process as they come, so that a killed run goes on at the
    next batch. An example that the signal cannot score gets a `Rejection` with its id in place of a score: it is not
    asked about again, and no pair is made of it. So does one whose score is NaN or infinite.
    """

    fingerprint_excludes: ClassVar[tuple[str, ...]] = ()
    """Settings that change the speed and not the scores; they may be changed in the middle of a run."""
    needs_student: bool = True
    """Whether scores depend on the student. A signal that looks at the examples alone sets it to False: then no student
    is loaded for it, the losses are NaN, and no example is left out because it is too long for the student."""
    needs_response: bool = True
    """Whether scores depend on the response. Then an instruction without one is not scored, and gets a `Rejection`. A
    signal that looks at the instruction alone sets it to False."""
    distributed: bool = True
    """Whether each of several processes scores a share of the examples. A signal that asks an engine of which there is
    one for a run (`GenerationBackend.one_per_run`) sets it to False: then the first process scores all of them."""
    needs_gradients: ClassVar[bool] = False
    """Whether gradients of single examples are taken: then a short trial before the run tells whether the student's
    architecture allows it."""
    output: Path
    """Where the scores go; the stage sets it, one file for each process."""
    unscored: Path
    """Where the examples go that have no score, in the same way."""
    requests: Path | None = None
    """Directory in which an engine of the signal may keep answers that were paid for; the stage sets it."""
    directory: Path | None = None
    """Of the stage, which sets it; none where no stage asks."""

    def check_environment(self) -> None:
        """Look, before a run begins, at an engine of the signal's own; by default there is none.

        Raises:
            ValueError: something is missing.
        """
        return

    def check_inputs(self, chat_template: ChatTemplate) -> None:
        """Look, before a run begins, at whether anything has room in the models that are asked; by default nothing.

        Args:
            chat_template: how the student writes conversations.

        Raises:
            ValueError: nothing could be scored.
        """
        return

    def estimate(self, count: int, upper_bound: int, data: ScoringData, chat_template: ChatTemplate) -> StageEstimate:
        """What scoring will take, for a dry run; by default a pass over each example, if the student is needed.

        Args:
            count: examples that are scored.
            upper_bound: examples at most.
            data: examples that they will be like, and the reference set.
            chat_template: how the student writes conversations.
        """
        return StageEstimate(work=[one_pass("scoring", count, upper_bound, data)] if self.needs_student else [])

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Compute what all examples share; called once, with the student on its device, and loaded if it is needed."""
        return

    def free_memory(self, device: torch.device) -> int:
        """Bytes that gradients may take, in all processes the same: half of what is free when scoring begins.

        It decides how many examples share a pass, and so the last digits of their scores. Scoring that goes on in
        another process goes on with what was free for the first one.
        """
        path = self.directory / FREE_MEMORY if self.directory is not None else None
        kept = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
        found = minimum_over_ranks(kept.get(device.type) or default_budget(device))
        if path is not None and is_first_rank():
            write_json(path, {device.type: found})
        return found

    def report(self) -> dict[str, Any]:
        """What there is to say before the first score, as plain JSON values; kept beside the scores."""
        return {}

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """What there is to say about all scores together, from all ranks and resumed runs; added to the report.

        Args:
            scores: in the order of the examples.
            unscored: the examples without a score, in their order.

        Raises:
            ValueError: the scores are of no use; the run stops, and they are kept.
        """
        return {}

    def score(
        self, student: StudentModule, example: Example, batch: dict[str, Tensor], loss: Tensor
    ) -> Score | Rejection:
        """Score one example.

        Args:
            student: the student on which the signal is measured.
            example: the example as a record.
            batch: the example as the student sees it, as tensors, each (1, T): `input_ids`, `attention_mask`, `labels`.
            loss: its mean loss over response tokens under the student, shape (1,), in nats; NaN if none is needed.
        """
        raise NotImplementedError(f"{type(self).__name__} scores whole batches")

    def score_batch(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Sequence[Score | Rejection]:
        """Score the B examples of a batch of whole prompts, one after another.

        Args:
            student: the student on which the signal is measured.
            examples: the examples as records.
            batch: the examples as the student sees them, as tensors, each (B, T), padded on the right.
            losses: the mean loss of each over response tokens under the student, shape (B,), in nats; NaN if none is
                needed.
        """
        return [
            self.score(student, example, {name: rows[i : i + 1] for name, rows in batch.items()}, losses[i : i + 1])
            for i, example in enumerate(examples)
        ]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare with the data that the trainer holds."""
        assert isinstance(pl_module, StudentModule)
        self.prepare(pl_module, _data(trainer))
        if trainer.is_global_zero and (report := self.report()):
            write_json(self.output.with_name(REPORT), report)
        # Others might score all there is; a run that is killed here would go on without anyone who could report.
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the examples of this batch and write the scores down."""
        assert isinstance(pl_module, StudentModule)
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        examples = [_data(trainer).items[row][0] for row in batch["rows"]]
        scored = self.score_batch(pl_module, examples, tensors, outputs)
        records = [_without_number(one, example) for one, example in zip(scored, examples, strict=True)]
        append(self.output, as_lines(record for record in records if isinstance(record, Score)))
        if unscored := [record for record in records if isinstance(record, Rejection)]:
            append(self.unscored, as_lines(unscored))


def _without_number(record: Score | Rejection, example: Example) -> Score | Rejection:
    """The record, or a rejection in place of a score that is no number, of which no pair can be made."""
    if isinstance(record, Rejection) or math.isfinite(record.value):
        return record
    return Rejection(
        id=record.id,
        reason=NO_NUMBER,
        detail=f"it is {record.value} ({record.method})",
        text=example.instruction,
        prompt_id=example.prompt_id,
    )


def one_pass(what: str, count: int, upper_bound: int, data: ScoringData) -> Work:
    """A pass over each of so many examples like those of the data, in the student's tokens."""
    length = mean([len(rendered.input_ids) for _, rendered in data.items])
    return passes(what, round(count * length), round(upper_bound * length))


def _data(trainer: Trainer) -> ScoringData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ScoringData)
    return data
