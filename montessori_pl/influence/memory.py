"""What gradients may take: a budget in bytes, and what fits into it.

First order holds whole copies of the trained parameters: several for each example of a batch, and one for each
reference whose own gradient is kept. Of an adapter these are small; where all weights are trained, each is as large as
the model.

Knows devices and sizes; nothing about what the gradients are for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch

from montessori_pl.influence.container import memory_left
from montessori_pl.influence.functional import Batch
from montessori_pl.influence.updates import Params

COPIES_PER_EXAMPLE = 4
"""At the peak for each example: where its step leads, the way back by name and in one row, and what a pass works on."""
SHARED_COPIES = 4
"""For all: the null step, the reference gradient, and what computing the latter takes."""


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


def plan_memory(params: Params, budget: int, wanted: int) -> MemoryPlan:
    """What fits: first one example, then half of the rest for references, then more examples.

    Fewer references than wanted are a power of two, so that a little more or less of free memory, in another process or
    after a restart, makes no difference.

    Args:
        params: the trained parameters, by name.
        budget: bytes.
        wanted: references whose gradients would be kept if there were room.
    """
    copy = sum(param.nbytes for param in params.values())
    left = budget // copy - SHARED_COPIES - COPIES_PER_EXAMPLE
    if left < 0:
        return MemoryPlan(budget, copy, kept_gradients=0, examples_at_once=0)
    kept = left // 2
    kept = wanted if kept >= wanted else 2 ** (kept.bit_length() - 1) if kept else 0
    return MemoryPlan(budget, copy, kept, examples_at_once=1 + (left - kept) // COPIES_PER_EXAMPLE)


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
