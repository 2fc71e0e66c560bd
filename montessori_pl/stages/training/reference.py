"""What the reference policy says of the pairs of an alignment: computed once, before the first step, and kept.

It is the same in every epoch, for the reference policy is frozen and has no dropout. Log-probabilities are computed in
the batches of the first epoch, so that a training of one epoch sees what it would compute beside the policy's.
"""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.data.records import drop_torn_line, json_text, read_lines
from montessori_pl.models.dpo import DPOModule
from montessori_pl.processes.stop import STOP
from montessori_pl.run_directory.atomic import write_json_lines
from montessori_pl.run_directory.durable import append
from montessori_pl.stages.base import StageError
from montessori_pl.stages.training.fit import TrainingData

REFERENCE = "reference_log_probabilities.jsonl"
"""File, within the stage's directory: a row for each pair that is learned, in their order, with the log-probabilities
of its completions in nats."""


class ReferencePolicy(Callback):
    """Gives each pair of a training its log-probabilities under the reference policy, read or computed.

    Each process appends to a part of its own, batch by batch: a training that is killed here goes on here.

    Args:
        pairs: the items of the training's data; they hold `reference` once training starts.
        data: the training's.
        directory: the stage's.
    """

    def __init__(self, pairs: list[EncodedPair], data: TrainingData, directory: Path) -> None:
        self.pairs, self.data, self.directory = pairs, data, directory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is not there yet; all processes must call this.

        Raises:
            StageError: a log-probability is no number.
        """
        assert isinstance(pl_module, DPOModule)
        if not (self.directory / REFERENCE).exists():
            self._compute(trainer, pl_module)
        known = self._known()
        # In place: the loader has been built with this list.
        self.pairs[:] = [pair._replace(reference=known[row]) for row, pair in enumerate(self.pairs)]
        pl_module.release_copy()

    def _compute(self, trainer: Trainer, module: DPOModule) -> None:
        part = self.directory / f"{Path(REFERENCE).stem}.part{trainer.global_rank}.jsonl"
        drop_torn_line(part)
        known = self._known()
        for rows in self.data.batches.batches_of(0):
            if known.keys() >= set(rows):
                continue
            batch = trainer.strategy.batch_to_device(self.data.collate([self.pairs[row] for row in rows]))
            with trainer.precision_plugin.train_step_context():
                found = module.reference_log_probabilities(batch)
            if not found.isfinite().all():
                raise StageError(
                    f"{module.log_prefix.removesuffix('/')}: log-probabilities of the reference policy are no numbers "
                    f"({found.tolist()}); did the training before this one diverge?"
                )
            sides = zip(rows, *(side.tolist() for side in found.chunk(2)), strict=True)
            append(part, "".join(json_text(_row(*one)) + "\n" for one in sides).encode())
            if trainer.is_global_zero:
                STOP.check()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            known = self._known()
            write_json_lines(self.directory / REFERENCE, (_row(row, *known[row]) for row in range(len(self.pairs))))
            for path in self._parts():
                path.unlink()
        trainer.strategy.barrier()

    def _known(self) -> dict[int, tuple[float, float]]:
        finished = self.directory / REFERENCE
        paths = [finished] if finished.exists() else self._parts()
        return {row["pair"]: (row["chosen"], row["rejected"]) for path in paths for row in read_lines(path)}

    def _parts(self) -> list[Path]:
        return sorted(self.directory.glob(f"{Path(REFERENCE).stem}.part*.jsonl"))


def _row(pair: int, chosen: float, rejected: float) -> dict[str, float]:
    return {"pair": pair, "chosen": chosen, "rejected": rejected}
