"""A batch in parts that go forward and back one after another: activations are held of one part at a time.

Activations are most of the memory of a training with an adapter: 1.8 MB for each token of SmolLM2-135M in float32, and
8 MB of an 8B Llama in bfloat16. A batch that would need more than it may take is computed in parts of neighbouring
rows, each padded to its own longest. The gradient of a sum is the sum of gradients: the step is the same, up to the
order of summation. One row that needs too much by itself has its layers computed again in the backward pass (gradient
checkpointing, arXiv 1604.06174), which takes about a third more time.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from montessori_pl.influence.memory import LayerSizes

Rows = dict[str, Tensor]
"""A batch, or a part of one: tensors whose first dimension is the row, and whose second one, if any, is the token."""


@dataclass(frozen=True)
class ActivationMemory:
    """What activations take, and may take."""

    sizes: LayerSizes
    """Of the model."""
    itemsize: int
    """Bytes of a number."""
    budget: int
    """Bytes for a part of a batch."""
    recompute: bool | None = None
    """Whether layers are computed again in the backward pass, always or never; none does where one row alone needs too
    much."""
    parted: bool = True
    """Whether a batch may go through in parts; otherwise all of it is computed again where it needs too much."""

    def parts(self, batch: Rows, num_items: int) -> list[tuple[Rows, bool]]:
        """A batch in parts within the budget, and of each whether its layers are to be computed again.

        Args:
            batch: `input_ids`, `attention_mask` and what else there is of each row, or of each item.
            num_items: rows, or pairs: then the first half of the rows is of their first sides.
        """
        mask = batch["attention_mask"]
        sides = len(mask) // num_items
        widths = mask.sum(dim=1).view(sides, num_items).amax(dim=0).tolist()
        kept = self.sizes.of_token_recomputing if self.recompute else self.sizes.of_token
        most = self.budget // (sides * kept * self.itemsize)
        ranges = row_parts(widths, most) if self.parted else [range(num_items)]
        found = []
        for items in ranges:
            width = max(widths[item] for item in items)
            again = len(items) * width > most if self.recompute is None else self.recompute
            found.append((_part(batch, items, num_items, width) if len(ranges) > 1 else batch, again))
        return found


def _part(batch: Rows, items: range, num_items: int, width: int) -> Rows:
    """Some items of a batch, with as much padding as they need."""
    rows = [row for row in range(len(batch["attention_mask"])) if row % num_items in items]
    part = {name: values[rows if len(values) > num_items else list(items)] for name, values in batch.items()}
    return {name: values[:, :width] if values.dim() > 1 else values for name, values in part.items()}


def row_parts(widths: Sequence[int], max_tokens: int) -> list[range]:
    """Neighbouring rows, of at most so many tokens with padding, or one row alone."""
    parts, start, widest = [], 0, 0
    for row, width in enumerate(widths):
        widest = max(widest, width)
        if row > start and (row + 1 - start) * widest > max_tokens:
            parts.append(range(start, row))
            start, widest = row, width
    return [*parts, range(start, len(widths))]


def summed(
    loss: Callable[[Rows], Tensor],
    parts: Sequence[tuple[Rows, bool]],
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
) -> Tensor:
    """The sum of the losses of a batch's parts; its backward pass hands on gradients that are computed here already.

    Args:
        loss: of a part, a scalar.
        parts: of the batch, each with whether its layers are computed again; of one alone, the sum is its loss.
        model: the language model that the loss runs.
        parameters: what is trained.
    """

    def of_part(part: tuple[Rows, bool]) -> Tensor:
        rows, again = part
        with recomputing(model, again):
            return loss(rows)

    if len(parts) == 1:
        return of_part(parts[0])
    total: Tensor = _Summed.apply([partial(of_part, part) for part in parts], *parameters)
    return total


class _Summed(torch.autograd.Function):
    """Takes the gradients of each loss as it comes, and keeps their sums alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, losses: Sequence[Callable[[], Tensor]], *parameters: nn.Parameter) -> Tensor:
        total = parameters[0].new_zeros(())
        sums: list[Tensor | None] = [None] * len(parameters)
        for loss in losses:
            with torch.enable_grad():
                one = loss()
            with torch.autocast(one.device.type, enabled=False):
                gradients = torch.autograd.grad(one, parameters, allow_unused=True)
            total = total + one.detach()
            for place, gradient in enumerate(gradients):
                held = sums[place]
                if gradient is not None:
                    sums[place] = gradient if held is None else held + gradient
        ctx.sums = sums
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        return None, *(None if held is None else held * scale for held in sums)


@contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, the layers of a training model keep nothing but their inputs for the backward pass, if that is wanted.

    A model that does not know how stays as it is.
    """
    top: Any = getattr(model, "get_base_model", lambda: model)()  # inside PEFT
    if not wanted or not getattr(top, "supports_gradient_checkpointing", False):
        yield
        return
    top.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        top.gradient_checkpointing_disable()
