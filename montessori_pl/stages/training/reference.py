"""What frozen policies say of what is trained on: computed once, before the first step, and kept.

It is the same in every epoch, for these policies are frozen and have no dropout. Log-probabilities are computed in the
batches of the first epoch, so that a training of one epoch sees what it would compute beside the policy's.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from montessori_pl.batches.encoding import EncodedCompletion, EncodedPair
from montessori_pl.data.records import drop_torn_line, json_text, read_lines
from montessori_pl.losses import evaluating
from montessori_pl.models.policy import PolicyModule
from montessori_pl.processes.stop import STOP
from montessori_pl.run_directory.atomic import write_json_lines
from montessori_pl.run_directory.durable import append
from montessori_pl.stages.base import StageError
from montessori_pl.stages.training.fit import TrainingData

Item = TypeVar("Item")
Row = dict[str, Any]

REFERENCE = "reference_log_probabilities.jsonl"
"""File, within the stage's directory: a row for each pair that is learned, in their order, with the log-probabilities
of its completions in nats."""
SAMPLED = "sampled_log_probabilities.jsonl"
"""The same for each completion that is learned, token by token: under the policy that has sampled it, and under the
reference policy."""


class FrozenPolicies(Callback, ABC, Generic[Item]):
    """Gives each item of a training its log-probabilities under frozen policies, read or computed.

    Each process appends to a part of its own, batch by batch: a training that is killed here goes on here.

    Args:
        items: those of the training's data, in place: the loader has been built with this list.
        data: the training's.
        directory: the stage's.
    """

    file: ClassVar[str]
    """Where it is kept."""
    key: ClassVar[str]
    """What a row calls its item."""

    def __init__(self, items: list[Item], data: TrainingData, directory: Path) -> None:
        self.items, self.data, self.directory = items, data, directory

    @abstractmethod
    def compute(self, module: PolicyModule, batch: dict[str, Tensor], count: int) -> list[Row]:
        """Of each of so many items of a batch, what is kept of it."""

    @abstractmethod
    def known(self, item: Item, row: Row) -> Item:
        """An item that holds what was kept of it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is not there yet; all processes must call this.

        Raises:
            StageError: a log-probability is no number.
        """
        assert isinstance(pl_module, PolicyModule)
        if not (self.directory / self.file).exists():
            self._compute(trainer, pl_module)
        rows = self._rows()
        self.items[:] = [self.known(item, rows[place]) for place, item in enumerate(self.items)]
        pl_module.release_copy()

    def _compute(self, trainer: Trainer, module: PolicyModule) -> None:
        part = self.directory / f"{Path(self.file).stem}.part{trainer.global_rank}.jsonl"
        drop_torn_line(part)
        done = self._rows()
        for places in self.data.batches.batches_of(0):
            if done.keys() >= set(places):
                continue
            batch = trainer.strategy.batch_to_device(self.data.collate([self.items[place] for place in places]))
            with trainer.precision_plugin.train_step_context():
                found = self.compute(module, batch, len(places))
            rows = [{self.key: place, **row} for place, row in zip(places, found, strict=True)]
            append(part, "".join(json_text(row) + "\n" for row in rows).encode())
            if trainer.is_global_zero:
                STOP.check()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            rows_by_place = self._rows()
            write_json_lines(self.directory / self.file, (rows_by_place[place] for place in range(len(self.items))))
            for path in self._parts():
                path.unlink()
        trainer.strategy.barrier()

    def _rows(self) -> dict[int, Row]:
        finished = self.directory / self.file
        paths = [finished] if finished.exists() else self._parts()
        return {row[self.key]: row for path in paths for row in read_lines(path)}

    def _parts(self) -> list[Path]:
        return sorted(self.directory.glob(f"{Path(self.file).stem}.part*.jsonl"))


class ReferencePolicy(FrozenPolicies[EncodedPair]):
    """Gives each pair of a training its log-probabilities under the reference policy."""

    file = REFERENCE
    key = "pair"

    def compute(self, module: PolicyModule, batch: dict[str, Tensor], count: int) -> list[Row]:
        """Both sides of each pair."""
        found = _checked(module, module.reference_log_probabilities(batch), "the reference policy")
        sides = zip(*(side.tolist() for side in found.chunk(2)), strict=True)
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in sides]

    def known(self, item: EncodedPair, row: Row) -> EncodedPair:
        """With both."""
        return item._replace(reference=(row["chosen"], row["rejected"]))


class SamplingPolicy(FrozenPolicies[EncodedCompletion]):
    """Gives each completion the log-probabilities of its tokens under the policy that sampled it, and the reference.

    The former is the policy before its first step: there is no checkpoint before all of them are known.
    """

    file = SAMPLED
    key = "completion"

    def compute(self, module: PolicyModule, batch: dict[str, Tensor], count: int) -> list[Row]:
        """The policy's own tokens of each completion, twice."""
        with evaluating(module.network), torch.no_grad():
            sampled = _checked(module, module.token_log_probabilities(batch), "the policy before its first step")
        with module.reference_policy():
            reference = _checked(module, module.token_log_probabilities(batch), "the reference policy")
        own = batch["labels"][:, 1:] >= 0
        return [
            {"sampled": sampled[row][own[row]].tolist(), "reference": reference[row][own[row]].tolist()}
            for row in range(count)
        ]

    def known(self, item: EncodedCompletion, row: Row) -> EncodedCompletion:
        """With both."""
        return item._replace(sampled=tuple(row["sampled"]), reference=tuple(row["reference"]))


def _checked(module: PolicyModule, found: Tensor, whose: str) -> Tensor:
    """Log-probabilities that are numbers.

    Raises:
        StageError: some are not.
    """
    wrong = found[~found.isfinite()]
    if len(wrong):
        raise StageError(
            f"{module.log_prefix.removesuffix('/')}: {len(wrong)} log-probabilities of {whose} are no numbers "
            f"({wrong[0].item()}); did the training before this one diverge?"
        )
    return found
