"""How long a stage computes: floating-point operations, and bytes that generation reads, at stated shares of the peak.

A token of a forward pass takes two operations for each parameter that it is multiplied with, one multiplication and one
addition (2ND). A backward pass takes as many for the way back, and as many for the gradients of what is trained: 6ND
where all weights are, about 4ND under an adapter. Layers that are computed again add a forward pass. Attention over
earlier tokens is left out: it is less than a tenth up to a few thousand tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from montessori_pl.estimates.devices import Device
from montessori_pl.estimates.model_size import ModelSize

COMPUTED = {True: 0.3, False: 0.35}
"""Share of the peak at which a CPU (True) or a GPU computes passes over batches."""
GENERATED = {True: 0.2, False: 0.35}
"""The same for the steps of generation, of a token for each row."""
PER_EXAMPLE = {True: 0.15, False: 0.35}
"""The same for passes that give the gradient of each example. That of a CPU is from the two stages of influence of
`smollm2.yaml`, which took 237 and 223 s where .3 makes 111; on a GPU none was measured."""
READ = 0.6
"""Share of the bandwidth at which weights and cache are read while text is generated."""
OF_LAYER = {True: 5e-3, False: 0.15e-3}
"""Seconds that PyTorch takes for each layer of a step of generation besides, on a CPU (True) and on a GPU; vLLM, whose
steps are compiled, takes none. Those of a CPU are from `benchmarks/notes/2026-11-29-transformers-engine.md`: a step of
SmolLM2's 30 layers took .43 s at 16 rows and .70 s at 32."""


@dataclass(frozen=True)
class Compute:
    """What a stage computes."""

    flops: float = 0.0
    """Floating-point operations."""
    seconds: float = 0.0
    """On all devices together."""

    def __add__(self, other: "Compute") -> "Compute":
        return Compute(self.flops + other.flops, self.seconds + other.seconds)


def trained_on(size: ModelSize, tokens: float, device: Device, devices: int, again: bool = False) -> Compute:
    """Forward and backward passes over so many tokens, padding left out.

    Args:
        size: the model.
        tokens: each epoch counted.
        device: on what.
        devices: that share the work.
        again: whether layers are computed again in the backward pass.
    """
    forward = 2 * size.multiplied
    of_token = forward + forward + 2 * size.trained + (forward if again else 0)
    return _computed(of_token * tokens, device, devices)


def passed(size: ModelSize, tokens: float, device: Device, devices: int, gradients: bool = False) -> Compute:
    """Passes over so many tokens; of a pass with its way back, the tokens are counted twice.

    Args:
        size: the model.
        tokens: of all passes.
        device: on what.
        devices: that share the work.
        gradients: whether passes give the gradient of each example, as influence needs it.
    """
    return _computed(2 * size.multiplied * tokens, device, devices, PER_EXAMPLE if gradients else COMPUTED)


def generated(
    size: ModelSize, prompts: float, completions: float, at_once: float, context: float, device: Device, compiled: bool
) -> Compute:
    """Text written by one copy of a model.

    Args:
        size: the model.
        prompts: tokens that are read.
        completions: tokens that are sampled.
        at_once: sequences that are sampled together.
        context: mean tokens of a sequence.
        device: on what; several of them share the requests where the engine lets them.
        compiled: whether steps take no time of Python.
    """
    read = passed(size, prompts, device, 1)
    steps = completions / max(1.0, at_once)
    bytes_of_step = size.weights + at_once * context * size.cache * size.itemsize
    computing = 2 * size.multiplied * at_once / (device.flops * GENERATED[device.is_cpu])
    reading = bytes_of_step / (device.bandwidth * READ)
    layers = size.layers.layers if size.layers is not None else 0
    overhead = 0.0 if compiled else layers * OF_LAYER[device.is_cpu]
    wrote = Compute(2 * size.multiplied * completions, steps * (max(computing, reading) + overhead))
    return read + wrote


def duration(seconds: float) -> str:
    """In seconds, minutes, hours or days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length or unit == "min":
            return f"{seconds / length:.1f} {unit}"
    raise AssertionError


def _computed(flops: float, device: Device, devices: int, share: Mapping[bool, float] = COMPUTED) -> Compute:
    return Compute(flops, flops / (device.flops * share[device.is_cpu] * devices))
