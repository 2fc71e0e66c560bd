"""How a model is trained: the settings of a training stage, and the optimizer and schedule that they mean."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from montessori_pl.bounds import Bounds, Count, NonNegativeFloat, PositiveFloat, PositiveInt, Share, checked

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import LRScheduler

DecayRate = Annotated[float, Bounds(ge=0, lt=1)]
"""Of a moment: the part of it that stays at each step."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """AdamW with a learning-rate schedule over a number of epochs."""

    lr: Annotated[float, Bounds(gt=0, le=1)]
    """Peak learning rate."""
    epochs: PositiveInt = 1
    """How often each example is seen."""
    batch_size: PositiveInt = 32
    """Examples (or pairs) in one forward pass of one process."""
    accumulate_grad_batches: PositiveInt = 1
    """Forward passes in one optimizer step."""
    schedule: Literal["constant", "linear", "linear_warmup", "wsd"] = "wsd"
    """`linear` falls to zero; `linear_warmup` rises from zero over the whole run, as the paper's warm-up does; `wsd`
    warms up, stays and decays."""
    wsd: tuple[Share, Share, Share] = (0.1, 0.5, 0.4)
    """Shares of the steps that warm up, stay and decay, for `wsd`; the paper's values."""
    min_lr_ratio: Share = 0.0
    """Where `wsd` ends, as a share of the peak learning rate."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: Annotated[float, Bounds(gt=0, le=1)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay per step, times the learning rate."""
    gradient_clip_val: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null does not clip."""
    max_length: Count = 1024
    """Longest sequence in tokens; longer ones are cut on the right."""
    activation_memory: PositiveInt | None = None
    """Bytes that the activations of one forward pass may take; a batch that needs more goes through in parts, which
    make the same step, up to rounding. Null: 1 GB on a CPU, a quarter of a GPU's memory."""
    gradient_checkpointing: bool | None = None
    """Whether layers are computed again in the backward pass, in place of keeping their activations: less memory, a
    third more time, the same gradients. Null does so where one example or pair needs more than `activation_memory`."""
    checkpoint_every_n_steps: PositiveInt = 100
    """Optimizer steps between two checkpoints: what a kill can cost."""

    def __post_init__(self) -> None:
        if self.schedule == "wsd" and abs(sum(self.wsd) - 1) > 1e-6:
            raise ValueError(f"the shares of wsd must sum to 1, found {self.wsd}")
        if self.lr * self.weight_decay >= 1:
            raise ValueError(
                f"a weight_decay of {self.weight_decay:g} at an lr of {self.lr:g} leaves nothing of the weights in one "
                "step; their product must be less than 1"
            )

    def optimizer(self, parameters: "Iterable[Parameter]") -> "AdamW":
        """AdamW over these parameters, in one group."""
        import torch

        return torch.optim.AdamW(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )

    def scheduler(self, optimizer: "AdamW", num_steps: int) -> "LRScheduler":
        """The schedule over `num_steps` optimizer steps."""
        import transformers

        if self.schedule == "wsd":
            warmup, stable = (int(share * num_steps) for share in self.wsd[:2])
            return transformers.get_wsd_schedule(
                optimizer,
                num_warmup_steps=warmup,
                num_stable_steps=stable,
                num_decay_steps=max(1, num_steps - warmup - stable),
                min_lr_ratio=self.min_lr_ratio,
            )
        if self.schedule == "linear":
            return transformers.get_linear_schedule_with_warmup(optimizer, 0, num_steps)
        warmup = num_steps if self.schedule == "linear_warmup" else 0
        return transformers.get_constant_schedule_with_warmup(optimizer, num_warmup_steps=warmup)

    def trainer_arguments(self) -> dict[str, Any]:
        """What the Lightning trainer needs to know of these settings."""
        return {
            "max_epochs": self.epochs,
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "gradient_clip_val": self.gradient_clip_val,
        }
