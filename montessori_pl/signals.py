"""Preference signals: Lightning callbacks that say, during `Trainer.predict`, how good an example is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from montessori_pl.chat import Rendered
from montessori_pl.data import ProbingBatches, collate, length_batches
from montessori_pl.records import Example, Score, append_records
from montessori_pl.student import StudentModule


class ScoringData(LightningDataModule):
    """The examples to be scored, one a batch, and the reference set beside them.

    Args:
        examples: what is scored.
        rendered: the same examples, rendered.
        reference: the reference set, rendered, in its own order.
        pad_id: token that pads.
    """

    def __init__(
        self, examples: Sequence[Example], rendered: Sequence[Rendered], reference: Sequence[Rendered], pad_id: int
    ) -> None:
        super().__init__()
        self.items = list(zip(examples, rendered, strict=True))
        self.reference, self.pad_id = reference, pad_id

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of one example: its `row` here, and its `input_ids`, `attention_mask` and `labels`, each (1, T)."""
        assert self.trainer is not None
        batches = ProbingBatches(len(self.items), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(range(len(self.items)), batch_sampler=batches, collate_fn=self._collate)  # type: ignore[arg-type]

    def reference_batches(self, max_tokens: int) -> tuple[list[dict[str, Tensor]], list[int]]:
        """The reference set in batches of similar length, and which reference each of their rows is."""
        batches = length_batches([len(one.input_ids) for one in self.reference], max_tokens)
        tensors = [collate([self.reference[index] for index in batch], self.pad_id) for batch in batches]
        return tensors, [index for batch in batches for index in batch]

    def _collate(self, rows: Sequence[int]) -> dict[str, Any]:
        (row,) = rows
        return {"row": row, **collate([self.items[row][1]], self.pad_id)}


class SignalCallback(Callback, ABC):
    """Scores examples; higher is better for the student.

    Implement `score`, and `prepare` where something must be computed once. Scores are appended to a file of this
    process as they come, so that a killed run goes on at the next example.
    """

    unpinned: ClassVar[tuple[str, ...]] = ()
    """Settings that change the speed and not the scores; they may be changed in the middle of a run."""
    output: Path
    """Where the scores go; the stage sets it, one file for each process."""

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Compute what all examples share; called once, with the student loaded and on its device."""
        return

    @abstractmethod
    def score(self, student: StudentModule, example: Example, batch: dict[str, Tensor], loss: Tensor) -> Score:
        """Score one example.

        Args:
            student: the student on which the signal is measured.
            example: the example as a record.
            batch: the example as tensors, each (1, T): `input_ids`, `attention_mask`, `labels`.
            loss: its mean loss over response tokens under the student, shape (1,), in nats.
        """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare with the data that the trainer holds."""
        assert isinstance(pl_module, StudentModule)
        self.prepare(pl_module, _data(trainer))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the example of this batch and write the score down."""
        assert isinstance(pl_module, StudentModule)
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        example, _ = _data(trainer).items[batch["row"]]
        append_records(self.output, [self.score(pl_module, example, tensors, outputs)])


def _data(trainer: Trainer) -> ScoringData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ScoringData)
    return data
