"""What gradients and the activations on the way to them may take: budgets in bytes, and what fits into them.

First order holds whole copies of the trained parameters: several for each example of a batch, and one for each
reference whose own gradient is kept. Of an adapter these are small; where all weights are trained, each is as large as
the model.

Knows devices and sizes; nothing about what the gradients are for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from montessori_pl.influence.container import memory_left
from montessori_pl.influence.functional import Batch
from montessori_pl.influence.updates import Params

COPIES_PER_EXAMPLE = 4
"""At the peak for each example: where its step leads, the way back by name and in one row, and what a pass works on."""
SHARED_COPIES = 4
"""For all: the null step, the reference gradient, and what computing the latter takes."""

PER_WIDTH, PER_INNER_WIDTH = 15, 4
"""Numbers that a layer of a Llama keeps of each token for the backward pass, for each of its width and of the inner
width of its feed-forward network (counted with `saved_tensors_hooks`). Adapters change it by less than a tenth, Qwen3
and Gemma 2 by a tenth; GPT-2, whose GELU is computed step by step, keeps twice as much."""
SHARE_OF_PROBE_ON_CPU = 0.5
ON_CPU, SHARE_OF_ACCELERATOR = 10**9, 0.25
"""Bytes that activations may take by default on a CPU, and the share of an accelerator's memory. They depend on the
machine and not on what is free, so that work that is resumed there sums in the same order."""


@dataclass(frozen=True)
class LayerSizes:
    """How large the layers of a language model are."""

    layers: int
    """How many."""
    width: int
    """Of the hidden states."""
    kept: int
    """Numbers that each of them keeps of a token for the backward pass."""

    @classmethod
    def of(cls, config: Any) -> "LayerSizes | None":
        """As the configuration of a model of Transformers says; none where it does not."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else None
        layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
        if not isinstance(layers, int) or not isinstance(width, int):
            return None
        inner = getattr(text, "intermediate_size", None) or 4 * width
        widest = max(inner) if isinstance(inner, Sequence) else inner
        experts = getattr(text, "num_experts_per_tok", None) or 1
        return cls(layers, width, PER_WIDTH * width + PER_INNER_WIDTH * widest * experts)

    @property
    def of_token(self) -> int:
        """Numbers that all layers keep of a token."""
        return self.layers * self.kept

    @property
    def of_token_recomputing(self) -> int:
        """The same where layers keep their inputs only, and are computed again one at a time."""
        return self.kept + self.layers * self.width


def activation_budget(device: torch.device) -> int:
    """Bytes that activations may take on a device."""
    if device.type in ("cpu", "mps"):
        return ON_CPU
    _, total = torch.accelerator.get_memory_info(device)
    return int(total * SHARE_OF_ACCELERATOR)


def gradient_tokens(model: nn.Module, device: torch.device, wanted: int) -> int:
    """Tokens of a pass with gradients in float32 that fit, of so many; all where the model does not tell its size."""
    sizes = LayerSizes.of(getattr(model, "config", None))
    return wanted if sizes is None else min(wanted, max(1, probe_activations(device) // (4 * sizes.of_token)))


def probe_activations(device: torch.device) -> int:
    """Bytes that activations may take beside gradients of examples and references: on a CPU half of a training's.

    There larger passes are no faster.
    """
    return int(activation_budget(device) * (SHARE_OF_PROBE_ON_CPU if device.type in ("cpu", "mps") else 1))


@dataclass(frozen=True)
class MemoryPlan:
    """How much of first-order influence fits into a budget."""

    budget: int
    """Bytes."""
    copy: int
    """Bytes of one copy of the trained parameters."""
    kept_gradients: int
    """References whose own gradients are kept, for standard errors and corrections."""
    examples_at_once: int
    """Examples whose gradients are held together; 0 where not even one fits, and first order is not offered."""

    def to_dict(self) -> dict[str, int]:
        """As plain JSON values what the scores depend on; not what is free by chance."""
        return {"bytes_of_one_copy": self.copy, "kept_gradients": self.kept_gradients}


def plan_memory(params: Params, budget: int, wanted: int, for_examples: int) -> MemoryPlan:
    """What fits: first one example, then half of the rest for references, then more examples.

    Examples, and references if they are fewer than wanted, are a power of two, so that a little more or less of free
    memory, as in another run, makes no difference.

    Args:
        params: the trained parameters, by name.
        budget: bytes.
        wanted: references whose gradients would be kept if there were room.
        for_examples: bytes that more than one example may take, for example `activation_budget`: where passes have few
            tokens, many examples side by side are no faster.
    """
    copy = sum(param.nbytes for param in params.values())
    left = budget // copy - SHARED_COPIES - COPIES_PER_EXAMPLE
    if left < 0:
        return MemoryPlan(budget, copy, kept_gradients=0, examples_at_once=0)
    kept = left // 2
    kept = wanted if kept >= wanted else _power_of_two(kept)
    more = min(left - kept, for_examples // copy)
    return MemoryPlan(budget, copy, kept, examples_at_once=_power_of_two(1 + more // COPIES_PER_EXAMPLE))


def _power_of_two(number: int) -> int:
    """The largest that is no more; 0 of 0."""
    return 2 ** (number.bit_length() - 1) if number else 0


def default_budget(device: torch.device) -> int:
    """Half of the bytes that are free on a device, or that a container may still take; the rest is for the passes."""
    if device.type in ("cpu", "mps"):
        available, allowed = psutil.virtual_memory().available, memory_left()
        return (available if allowed is None else min(available, allowed)) // 2
    free, _ = torch.accelerator.get_memory_info(device)
    # What PyTorch has taken and does not use is free, too.
    unused = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(free + unused) // 2


def row_blocks(batch: Batch, size: int) -> Iterator[Batch]:
    """The examples of a batch in their order, so many at a time."""
    for start in range(0, len(batch["labels"]), size):
        yield {name: rows[start : start + size] for name, rows in batch.items()}
