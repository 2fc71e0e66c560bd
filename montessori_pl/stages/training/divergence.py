"""Training that diverges: it stops at the step whose loss, gradient or weights are no numbers, and says what to try.

A step is looked at before it is taken, and weights before they are saved: a checkpoint never holds NaN, so that a run
that is started again goes on from sound weights, or stops at the same step again. All processes stop together.
"""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from montessori_pl.models.language_module import LanguageModule
from montessori_pl.stages.base import StageError

LOSSES = "montessori_losses"
"""Key of the checkpoint entry that holds the losses of the first batches and of the last ones."""
WINDOW, MIN_WINDOW, MAX_WINDOW = 0.1, 4, 50
"""The part of the batches whose lowest loss counts as that of the beginning, and of the end; so many at least, and at
most. A training of less than twice the least is too short to tell: two batches may differ for what is in them."""
MUCH = 1.0
"""A loss that has doubled, and risen by so many nats, is no chance of the last batches; smaller differences may be, for
batches hold examples of like lengths. Whether a student became better is for an evaluation to say."""


class StopAtDivergence(Callback):
    """Looks at each step before it is taken, and at how the loss went from the beginning to the end."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._first: list[Tensor | float] = []
        self._last: deque[Tensor | float] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See how many batches there will be."""
        batches = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        window = min(max(MIN_WINDOW, int(WINDOW * batches)), MAX_WINDOW)
        self._last = deque(self._last, maxlen=window if batches >= 2 * window else 0)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add up the loss of the batches of a step."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Stop if loss or gradient are no numbers; gradients are not clipped yet.

        Raises:
            StageError: in all processes.
        """
        assert self._loss is not None
        loss, self._loss = self._loss, None
        found = {"the loss": loss}
        # In half precision with a scaler, steps whose gradient overflows are left out, and the scale becomes smaller.
        if not (isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None):
            gradients = [_local(one.grad) for one in pl_module.parameters() if one.grad is not None]
            found["the norm of the gradient"] = torch.nn.utils.get_total_norm(gradients)
        if _in_any_process(trainer, not torch.stack(list(found.values())).isfinite().all()):
            said = " and ".join(f"{what} is {value.item():g}" for what, value in found.items())
            raise _diverged(trainer, pl_module, trainer.global_step + 1, said)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep the losses of the first batches and of the last ones."""
        assert isinstance(pl_module, LanguageModule)
        loss = trainer.callback_metrics[f"{pl_module.log_prefix}loss"].detach()
        if len(self._first) < (self._last.maxlen or 0):
            self._first.append(loss)
        self._last.append(loss)

    # Not as the callback's own state: Lightning would miss the callback where others read the checkpoint.
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the losses for a training that is resumed."""
        checkpoint[LOSSES] = [[float(one) for one in losses] for losses in (self._first, self._last)]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        first, last = checkpoint.get(LOSSES, ([], []))
        self._first, self._last = list(first), deque(last)

    def warnings(self, lr: float) -> list[str]:
        """A sentence where the loss ended much higher than it began.

        Args:
            lr: the peak learning rate.
        """
        if not (self._first and self._last):  # too short, by the batches of as many processes as there are now
            return []
        first, last = (min(map(float, losses)) for losses in (self._first, self._last))
        if last - first <= max(MUCH, abs(first)):
            return []
        return [
            f"the training made the model worse: its lowest loss over the last {len(self._last)} batches is {last:.4g},"
            f" and was {first:.4g} over the first; lower training.lr, now {lr:g}"
        ]


def refuse_diverged_weights(trainer: Trainer, module: LightningModule) -> None:
    """Let no weights be saved or looked at that are no numbers; all processes must call this.

    Raises:
        StageError: a trained weight is none, in all processes.
    """
    trained = [_local(one.detach()) for one in module.parameters() if one.requires_grad]
    if _in_any_process(trainer, not all(torch.stack(one.aminmax()).isfinite().all() for one in trained if one.numel())):
        raise _diverged(trainer, module, trainer.global_step, "trained weights are no numbers behind it")


def _diverged(trainer: Trainer, module: LightningModule, step: int, found: str) -> StageError:
    assert isinstance(module, LanguageModule)
    settings = module.training_settings
    assert settings is not None
    return StageError(
        f"{module.log_prefix.removesuffix('/')} diverged at optimizer step {step} of "
        f"{int(trainer.estimated_stepping_batches)}, with training.lr {settings.lr:g}: {found}; lower training.lr (a "
        "tenth of it is a good next try) or let it rise more slowly, and since a stage that has begun keeps its "
        f"settings, delete {trainer.default_root_dir} to train again; other stages keep what they have done"
    )


def _in_any_process(trainer: Trainer, found: bool | Tensor) -> bool:
    flag = torch.as_tensor(found, dtype=torch.float32, device=trainer.strategy.root_device)
    return bool(trainer.strategy.reduce(flag, reduce_op="sum"))


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
