"""Peak memory of a stage on one device, from the size of its model: weights, gradients, moments, activations, cache.

Counted, not measured. `benchmarks/plan.py` holds it beside measurement.
"""

import dataclasses
from dataclasses import dataclass

import psutil
import torch

from montessori_pl.estimates.devices import CONTEXT, Device
from montessori_pl.estimates.model_size import FLOAT32, ModelSize
from montessori_pl.influence.memory import (
    ON_CPU,
    SHARE_OF_ACCELERATOR,
    SHARE_OF_PROBE_ON_CPU,
    MemoryPlan,
    plan_memory,
)
from montessori_pl.losses.output_head import LOGITS_AT_ONCE

OF_HALF = 3
"""Bytes of a number that a probe keeps on a base in half precision: the adapter's part of it is in float32."""
LEFT_OVER = 0.3
"""Share of a part's activations that a process on a CPU still holds, in gaps, while the next part is computed: of
SmolLM2-135M .35 GB, where a part had .99 GB."""
COPIES_OF_LOGITS = 3
"""Logits, their logarithms, and the gradient."""


@dataclass(frozen=True)
class Peak:
    """Bytes on one device, by what they hold."""

    program: int = 0
    """On a CPU, the program with its libraries."""
    weights: int = 0
    """Of the model."""
    trained: int = 0
    """Gradients, moments and copies of the trained parameters."""
    activations: int = 0
    """Of one part of a batch, with its logits."""
    cache: int = 0
    """Keys and values."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.asdict(self).values())

    def largest(self) -> str:
        """What takes most of it."""
        return max(dataclasses.asdict(self).items(), key=lambda one: one[1])[0]


@dataclass(frozen=True)
class Training:
    """A training, as far as its memory depends on it."""

    size: ModelSize
    """The model."""
    rows: int
    """In a batch of one process; of pairs, two each."""
    longest: int
    """Tokens of the longest row."""
    mixed: bool = False
    """Whether the trainer computes in half precision on float32 weights."""
    activation_memory: int | None = None
    """As `training.activation_memory`."""
    recompute: bool | None = None
    """As `training.gradient_checkpointing`."""
    shards: int = 1
    """Devices over which weights, gradients and moments are split (`fsdp2`)."""
    processes: int = 1
    """Devices that each train on a part of a batch."""

    def peak(self, device: Device) -> Peak:
        """Of one device."""
        size, itemsize = self.size, 2 if self.mixed or self.size.itemsize == 2 else FLOAT32
        copy = size.trained * FLOAT32
        # Gradient and two moments; gradients are added up beside, in parts of a batch or in buckets of DDP.
        copies = 4 if self.shards == 1 else 3
        casts = size.trained * 2 if self.mixed and not size.adapter else 0
        # Lightning makes a checkpoint in memory before it writes it: weights and moments once more, on a CPU.
        saved = 3 * copy if device.is_cpu else 0
        return Peak(
            program=_program(device),
            weights=size.weights // self.shards,
            trained=(copies * copy) // self.shards + casts // self.shards + max(0, saved - copy),
            activations=self._activations(device, itemsize) + self._logits(),
        )

    def _activations(self, device: Device, itemsize: int) -> int:
        """Of as many rows as go forward together (`models.batch_parts`)."""
        layers = self.size.layers
        if layers is None:
            return 0
        budget = self.activation_memory or budget_of(device)
        row = self.longest * layers.of_token * itemsize
        row_again = self.longest * layers.of_token_recomputing * itemsize
        if self.shards > 1:  # whole batches, computed again where they need too much
            return self.rows * (row_again if self.recompute or self.rows * row > budget else row)
        again = row > budget if self.recompute is None else self.recompute
        size = row_again if again else row
        at_once = min(self.rows, max(1, budget // max(1, size)))
        left_over = LEFT_OVER if device.is_cpu and at_once < self.rows else 0
        return round((1 + left_over) * at_once * size)

    def _logits(self) -> int:
        at_once = min(self.rows * self.longest * self.size.vocabulary, LOGITS_AT_ONCE)
        return COPIES_OF_LOGITS * at_once * FLOAT32


@dataclass(frozen=True)
class Scoring:
    """A probe or a pass over examples."""

    size: ModelSize
    """The model."""
    longest: int
    """Tokens of the longest row."""
    batch_tokens: int
    """Of one pass without gradients."""
    references: int = 0
    """Of which gradients are wanted; 0 where only losses are."""
    gradients: bool = False
    """Whether steps on single examples are taken."""
    memory_budget: int | None = None
    """As the probe's own setting."""

    def plan(self, device: Device) -> MemoryPlan:
        """How many gradients a probe would keep."""
        free = device.memory - self.size.weights - _program(device)
        budget = self.memory_budget or max(1, int(free / 2))
        params = {"": torch.empty(max(1, self.size.trained), device="meta")}
        return plan_memory(params, budget, self.references, budget_of(device))

    def peak(self, device: Device) -> Peak:
        """Of one device."""
        size = self.size
        copies, passes = 0, self.batch_tokens
        if self.gradients:
            plan = self.plan(device)
            moments = 2  # of the student's training
            copies = moments + (8 + plan.kept_gradients if plan.examples_at_once else 3)
            passes = max(self.longest, min(self.batch_tokens, self._gradient_tokens(device)))
        itemsize = FLOAT32 if size.itemsize == FLOAT32 else OF_HALF
        of_token = size.layers.of_token * itemsize if size.layers is not None and self.gradients else 0
        logits = COPIES_OF_LOGITS * FLOAT32 * min(self.batch_tokens * size.vocabulary, LOGITS_AT_ONCE)
        return Peak(
            program=_program(device),
            weights=size.weights,
            trained=copies * size.trained * FLOAT32,
            activations=passes * of_token + logits,
        )

    def _gradient_tokens(self, device: Device) -> int:
        layers = self.size.layers
        budget = int(budget_of(device) * (SHARE_OF_PROBE_ON_CPU if device.is_cpu else 1))
        return budget // (FLOAT32 * layers.of_token) if layers is not None else self.batch_tokens


@dataclass(frozen=True)
class Generation:
    """Sampling with Transformers, or with vLLM over some GPUs."""

    size: ModelSize
    """The model."""
    batch_tokens: int
    """Of one batch, or of one sequence where an engine takes as many as fit."""
    parallel: int = 1
    """GPUs over which the weights are split."""
    share: float = 1.0
    """Of a GPU's memory that the engine takes."""

    def peak(self, device: Device) -> Peak:
        """Of one device; of vLLM the least that it can work with."""
        itemsize = self.size.itemsize
        return Peak(
            program=_program(device),
            weights=self.size.weights // self.parallel,
            activations=COPIES_OF_LOGITS * FLOAT32 * 64 * self.size.vocabulary,
            cache=self.batch_tokens * self.size.cache * itemsize // self.parallel,
        )


Demand = Training | Scoring | Generation
"""What takes memory."""


def remedies(demand: Demand) -> list[tuple[str, Demand]]:
    """Settings that make a peak smaller, the cheapest first, each with what is then asked for."""
    size, found = demand.size, list[tuple[str, Demand]]()
    halved = dataclasses.replace(size, itemsize=2)
    if isinstance(demand, Training):
        if demand.activation_memory is None:
            small = dataclasses.replace(demand, activation_memory=10**9)
            found.append(("training.activation_memory: 1000000000", small))
        again = dataclasses.replace(demand, recompute=True)
        found.append(("training.gradient_checkpointing: true", again))
        shorter = dataclasses.replace(again, longest=max(1, demand.longest // 2), activation_memory=10**9)
        found.append((f"training.gradient_checkpointing: true and training.max_length: {shorter.longest}", shorter))
        if size.adapter and size.itemsize == FLOAT32:
            found.append(("base_dtype: bfloat16", dataclasses.replace(demand, size=halved)))
        if not size.adapter:
            if demand.processes > 1 and demand.shards == 1:
                sharded = dataclasses.replace(again, shards=demand.processes)
                found.append((f"trainer.strategy: fsdp2 over {demand.processes} devices", sharded))
            trained = size.parameters // 100
            adapted = dataclasses.replace(halved, trained=trained, adapter=True)
            found.append(
                (
                    "an adapter (lora, no all_weights) with base_dtype: bfloat16",
                    dataclasses.replace(demand, size=adapted),
                )
            )
    elif isinstance(demand, Scoring):
        if size.adapter and size.itemsize == FLOAT32:
            found.append(("base_dtype: bfloat16", dataclasses.replace(demand, size=halved)))
        shorter_scoring = dataclasses.replace(
            demand, longest=demand.longest // 2, batch_tokens=demand.batch_tokens // 4
        )
        found.append(
            (f"batch_tokens: {demand.batch_tokens // 4} and max_length: {demand.longest // 2}", shorter_scoring)
        )
        if not size.adapter:
            adapted = dataclasses.replace(halved, trained=size.parameters // 100, adapter=True)
            found.append(("an adapter (lora) with base_dtype: bfloat16", dataclasses.replace(demand, size=adapted)))
    else:
        if size.itemsize == FLOAT32:
            found.append(("base_dtype: bfloat16", dataclasses.replace(demand, size=halved)))
        less = dataclasses.replace(demand, batch_tokens=demand.batch_tokens // 4)
        found.append((f"max_batch_tokens or max_model_len: {less.batch_tokens}", less))
        for number in (2, 4, 8):
            split = dataclasses.replace(demand, size=halved, parallel=number)
            found.append((f"VLLMBackend with tensor_parallel_size: {number} and base_dtype: bfloat16", split))
    return found


def what_helps(demand: Demand, device: Device) -> str | None:
    """The first setting with which a demand fits that does not fit as it is; none where none does."""
    return next((named for named, smaller in remedies(demand) if fits(smaller, device)), None)


def fits(demand: Demand, device: Device) -> bool:
    """Whether the peak has room in one device."""
    share = demand.share if isinstance(demand, Generation) else 1.0
    return demand.peak(device).total <= share * device.memory


def budget_of(device: Device) -> int:
    """Bytes that activations may take by default (`influence.memory.activation_budget`), also of a GPU elsewhere."""
    return ON_CPU if device.is_cpu else int((device.memory + CONTEXT) * SHARE_OF_ACCELERATOR)


def _program(device: Device) -> int:
    return psutil.Process().memory_info().rss if device.is_cpu else 0
