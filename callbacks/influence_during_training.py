"""Influence while a student is trained: does what comes next still help?"""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from montessori_pl.batches.collate import collate
from montessori_pl.batches.encoding import encode_examples
from montessori_pl.bounds import Count, PositiveInt, Text, checked
from montessori_pl.data.formats import read_examples
from montessori_pl.data.records import read_lines
from montessori_pl.influence import AdamW, InfluenceScorer, Method
from montessori_pl.losses import IGNORED
from montessori_pl.models.language_module import DURING_TRAINING
from montessori_pl.models.loading import load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.run_directory.atomic import write_json_lines
from montessori_pl.worlds.names import locate


@checked
class InfluenceDuringTraining(Callback):
    """Every so many steps, measures the influence of the coming batch's examples on the student as it is by then.

    Logs the share of examples with positive influence, the mean influence, and what measuring has cost; and beside them
    the loss on the reference set and the entropy of the batch's response tokens, for influence alone can rise while the
    data narrow. A share that falls towards one half or below says that the data have taught what they can. Put it among
    the trainer's callbacks: it looks at students only, takes no random numbers and leaves training as it was.

    In a run the first process also keeps them in `influence_during_training.jsonl` of the stage, from which the report
    draws them; a training that goes on after a kill measures no step twice. With several processes these are the
    numbers of the first one's share of each batch.

    Args:
        reference: the reference set: a name of the classroom, a file, or a directory, as in `data.reference`.
        every_n_steps: optimizer steps between two measurements.
        method: how influence is computed; `auto` is for scoring many examples and costs more than it saves here.
        max_length: longest reference conversation in tokens.
        reference_batch_tokens: tokens of one batch of the reference pass, padding included.
    """

    only_observes = True
    needs_whole_weights = True

    def __init__(
        self,
        reference: Text,
        every_n_steps: PositiveInt = 50,
        method: Method = "first_order",
        max_length: Count = 1024,
        reference_batch_tokens: PositiveInt = 8192,
    ) -> None:
        self.reference, self.every_n_steps, self.method = reference, every_n_steps, method
        self.max_length, self.reference_batch_tokens = max_length, reference_batch_tokens
        self._references: dict[str, Tensor] | None = None
        self.measurements: dict[int, dict[str, float]] = {}
        """What was measured in this process, by optimizer step."""
        self._seconds = 0.0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the reference set as this student reads it, and what was measured before a kill."""
        self.measurements = {}
        self._started, self._seconds = time.monotonic(), 0.0
        if isinstance(pl_module, StudentModule):
            if (path := self._kept(pl_module)) is not None and path.exists():
                rows = [row for row in read_lines(path) if row["step"] <= trainer.global_step]
                self.measurements = {row.pop("step"): row for row in rows}
            chat_template = load_chat_template(pl_module.source)
            rendered, _ = encode_examples(read_examples(locate(self.reference)), chat_template, self.max_length)
            batch = collate(rendered, chat_template.tokenizer.pad_token_id)
            self._references = {name: tensor.to(pl_module.device) for name, tensor in batch.items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure, if it is time to."""
        # Once a step, however many batches it accumulates.
        due = trainer.global_step % self.every_n_steps == 0 and trainer.global_step not in self.measurements
        if not isinstance(pl_module, StudentModule) or self._references is None or not due:
            return
        start = time.monotonic()
        scorer = InfluenceScorer(
            pl_module.network,
            _next_step(trainer.optimizers[0], list(pl_module.optimized())),
            [self._references],
            method=self.method,
            batch_tokens=self.reference_batch_tokens,
        )
        influences = torch.tensor([one.centred for one in scorer(batch)])
        self._seconds += time.monotonic() - start
        found = {
            "influence_positive_rate": (influences > 0).float().mean().item(),
            "influence_mean": influences.mean().item(),
            "reference_loss": scorer.exact.base_losses.mean().item(),
            "response_token_entropy": _entropy(batch["labels"]),
        }
        cost = {
            "influence_seconds": self._seconds,
            "influence_share_of_time": self._seconds / (time.monotonic() - self._started),
        }
        measurement = {**found, **cost}
        self.measurements[trainer.global_step] = measurement
        if trainer.is_global_zero and (path := self._kept(pl_module)) is not None:
            rows = [{"step": step, **{name: one[name] for name in found}} for step, one in self.measurements.items()]
            write_json_lines(path, rows)
        # Not through the module's `log`, which repeats a value at every step until there is another one.
        for logger in trainer.loggers:
            named = {f"{pl_module.log_prefix}{name}": value for name, value in measurement.items()}
            logger.log_metrics(named, step=trainer.global_step)

    def _kept(self, student: StudentModule) -> Path | None:
        return student.stage_directory / DURING_TRAINING if student.stage_directory is not None else None


def _entropy(labels: Tensor) -> float:
    """Entropy in nats of the distribution of the labelled tokens."""
    _, counts = labels[labels != IGNORED].unique(return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * shares.log()).sum())


def _next_step(optimizer: torch.optim.Optimizer, names: list[str]) -> AdamW:
    """The optimizer's next step; before the first one it has no moments yet."""
    group = optimizer.param_groups[0]
    # The rate of this very step may be zero at the ends of a schedule; the peak says as much about the data.
    lr = group.get("initial_lr", group["lr"])
    if optimizer.state:
        return AdamW.from_optimizer_state(optimizer.state_dict(), names, lr=lr)
    return AdamW(lr=lr, betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"])
