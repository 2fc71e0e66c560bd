"""Devices that a run may have: this machine, whose speed is measured, or GPUs by name, of which data sheets tell.

GPUs: dense bfloat16 multiplications and additions, without sparsity, and memory bandwidth from NVIDIA's data sheets.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

GIB = 2**30
"""What the name of a GPU calls a gigabyte; a hundredth of it is not there."""
CONTEXT = 1.5 * 10**9
"""Bytes of a GPU that CUDA, its libraries and what lies between blocks take."""
SECONDS_OF_MEASURING = 0.1
"""How long each speed of a CPU is measured, in seconds of computing."""


@dataclass(frozen=True)
class Device:
    """One kind of device, and how many of it."""

    name: str
    """What a table calls one of them."""
    memory: float
    """Bytes that one of them has for a run."""
    flops: float
    """Floating-point operations in a second at most, of one: in bfloat16 on a GPU, in float32 on a CPU."""
    bandwidth: float
    """Bytes in a second between one and its memory."""
    count: int = 1
    """How many."""
    is_cpu: bool = False
    """Whether it is the CPU of this machine."""

    @property
    def title(self) -> str:
        """All of them, with their memory, for a sentence."""
        size = f"{self.memory / 10**9:.1f} GB"
        if self.is_cpu:
            speed = f"{self.flops / 1e9:.0f} GFLOP/s and {self.bandwidth / 1e9:.0f} GB/s"
            return f"{self.name} ({size} free, {speed} measured)"
        return f"{self.count} x {self.name} ({size} each for the run)"


def _gpu(name: str, gib: float, teraflops: float, gigabytes: float) -> Device:
    return Device(name, gib * 0.99 * GIB - CONTEXT, teraflops * 1e12, gigabytes * 1e9)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("4090", 24, 165, 1008),
        _gpu("A100-40", 40, 312, 1555),
        _gpu("L40S", 45.4, 362, 864),
        _gpu("A100", 80, 312, 2039),
        _gpu("H100", 80, 989, 3350),
        _gpu("H200", 140, 989, 4800),
    )
}
"""By name, from the smallest memory to the largest."""


def devices_named(text: str) -> Device:
    """`8xH100`, `H100x8`, `H100`; or `1x24`, a GPU of 24 GB, taken to be as fast as the smallest known one of its size.

    Raises:
        ValueError: it names no GPU that is known, or no number of them.
    """
    named = {gpu.name.lower(): gpu for gpu in GPUS.values()}
    asked, names = text.lower(), "|".join(map(re.escape, sorted(named, key=len, reverse=True)))
    if match := re.fullmatch(rf"(?:([1-9]\d{{0,3}})x)?({names})|({names})x([1-9]\d{{0,3}})", asked):
        return replace(named[match[2] or match[3]], count=int(match[1] or match[4] or 1))
    if match := re.fullmatch(r"([1-9]\d{0,3})x(\d{1,3})(?:gb)?", asked):
        gigabytes = int(match[2])
        known = [gpu for gpu in GPUS.values() if gpu.memory + CONTEXT >= gigabytes * 10**9]
        if gigabytes >= 4 and known:
            name, memory = f"GPU of {gigabytes} GB, as fast as {known[0].name}", gigabytes * 0.99 * GIB - CONTEXT
            return replace(known[0], name=name, memory=memory, count=int(match[1]))
    raise ValueError(
        f"no GPUs are called {text!r}; write their number and name, such as 8xH100, with one of {', '.join(GPUS)}, or "
        "their number and gigabytes, such as 1x24"
    )


def this_machine() -> Device:
    """The GPUs that PyTorch sees here, or this CPU with the threads that PyTorch takes."""
    if torch.cuda.is_available():
        name, total = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
        like = [gpu for key, gpu in GPUS.items() if key.split("-")[0] in name.replace("RTX ", "")]
        close = min(like or list(GPUS.values()), key=lambda gpu: abs(gpu.memory + CONTEXT - total))
        return replace(close, name=name, memory=total - CONTEXT, count=torch.cuda.device_count())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flops, bandwidth = threads * _measured_flops(), _measured_bandwidth()
    finally:
        torch.set_num_threads(threads)
    memory = float(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
    return Device(f"this CPU, {threads} thread{'s' if threads > 1 else ''}", memory, flops, bandwidth, is_cpu=True)


@torch.no_grad()
def _measured_flops() -> float:
    size = 256
    one, other = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / _seconds_of(lambda: one @ other)


@torch.no_grad()
def _measured_bandwidth() -> float:
    weights, state = torch.ones(2048, 2048), torch.ones(2048)
    return weights.nbytes / _seconds_of(lambda: weights @ state)


def _seconds_of(work: Callable[[], object]) -> float:
    """CPU time of this thread, the shortest of some tries: others may be using the machine."""
    work()
    tries: list[float] = []
    end = time.thread_time() + SECONDS_OF_MEASURING
    while not tries or time.thread_time() < end:
        start = time.thread_time()
        work()
        tries.append(time.thread_time() - start)
    return min(tries)
