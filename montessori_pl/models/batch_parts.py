"""A batch in parts that go forward and back one after another: activations are held of one part at a time.

Activations are most of the memory of a training with an adapter: 1.8 MB for each token of SmolLM2-135M in float32, and
6 MB of an 8B Llama in bfloat16. A batch that would need more than it may take is computed in parts of neighbouring
rows, each padded to its own longest. The gradient of a sum is the sum of gradients: the step is the same, up to the
order of summation. One row that needs too much by itself has its layers computed again in the backward pass (gradient
checkpointing, arXiv 1604.06174), which takes about a third more time.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Rows = dict[str, Tensor]
"""A batch, or a part of one: tensors whose first dimension is the row."""
PADDED = ("input_ids", "attention_mask", "labels")
"""Of a batch, what has a column for each token."""
PER_WIDTH, PER_INNER_WIDTH = 15, 4
"""Numbers that a layer of a Llama keeps of each token for the backward pass, for each of its width and of the inner
width of its feed-forward network (counted with `saved_tensors_hooks`). Adapters change it by less than a tenth, Qwen3
and Gemma 2 by a tenth; GPT-2, whose GELU is computed step by step, keeps twice as much."""
ON_CPU, SHARE_OF_ACCELERATOR = 2 * 10**9, 0.25
"""Bytes that activations may take by default on a CPU, and the share of an accelerator's memory. They depend on the
machine and not on what is free, so that a training that is resumed there sums in the same order."""


def default_budget(device: torch.device) -> int:
    """Bytes that activations may take on a device."""
    if device.type in ("cpu", "mps"):
        return ON_CPU
    _, total = torch.accelerator.get_memory_info(device)
    return int(total * SHARE_OF_ACCELERATOR)


@dataclass(frozen=True)
class ActivationMemory:
    """What activations take, and may take."""

    budget: int
    """Bytes for a part of a batch."""
    of_token: int
    """Bytes that the layers keep of a token."""
    of_token_recomputing: int
    """The same where they are computed again in the backward pass."""
    recompute: bool | None = None
    """Whether they are, always or never; none does where one row alone needs too much."""
    parted: bool = True
    """Whether a batch may go through in parts; otherwise it is computed again where it needs too much."""

    @classmethod
    def of_model(
        cls, config: "PreTrainedConfig", itemsize: int, budget: int, recompute: bool | None, parted: bool
    ) -> "ActivationMemory | None":
        """Of a model whose numbers have so many bytes; none where its configuration does not tell its size."""
        text = config.get_text_config()
        layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
        if not isinstance(layers, int) or not isinstance(width, int):
            return None
        inner = getattr(text, "intermediate_size", None) or 4 * width
        inner = max(inner) if isinstance(inner, Sequence) else inner
        experts = getattr(text, "num_experts_per_tok", None) or 1
        of_layer = (PER_WIDTH * width + PER_INNER_WIDTH * inner * experts) * itemsize
        return cls(budget, layers * of_layer, of_layer + layers * width * itemsize, recompute, parted)

    def parts(self, batch: Rows, num_items: int) -> list[tuple[Rows, bool]]:
        """A batch in parts within the budget, and of each whether its layers are to be computed again.

        Args:
            batch: `input_ids`, `attention_mask` and what else there is of each row, or of each item.
            num_items: rows, or pairs: then the first half of the rows is of their first sides.
        """
        mask = batch["attention_mask"]
        sides = len(mask) // num_items
        widths = mask.sum(dim=1).view(sides, num_items).amax(dim=0).tolist()
        of_token = self.of_token_recomputing if self.recompute else self.of_token
        whole = [range(num_items)]
        ranges = row_parts(widths, self.budget // (sides * of_token)) if self.parted else whole
        found = []
        for items in ranges:
            width = max(widths[item] for item in items)
            again = self.recompute
            if again is None:
                again = len(items) * sides * width * self.of_token > self.budget
            found.append((_part(batch, items, num_items, width) if len(ranges) > 1 else batch, again))
        return found


def _part(batch: Rows, items: range, num_items: int, width: int) -> Rows:
    """Some items of a batch, with as much padding as they need."""
    rows = [row for row in range(len(batch["attention_mask"])) if row % num_items in items]
    part = {name: values[rows if len(values) > num_items else list(items)] for name, values in batch.items()}
    return {name: values[:, :width] if name in PADDED else values for name, values in part.items()}


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
    @staticmethod
    def forward(ctx: Any, losses: Sequence[Callable[[], Tensor]], *parameters: nn.Parameter) -> Tensor:  # type: ignore[override]
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
                    sums[place] = gradient if held is None else held.add_(gradient)
        ctx.sums = sums
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        sums, ctx.sums = ctx.sums, None
        return None, *(None if held is None else held.mul_(scale) for held in sums)


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
