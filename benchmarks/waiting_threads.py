"""How long should threads that wait for one another spin before they sleep? Alone on the machine, and beside others.

    python benchmarks/waiting_threads.py

Each operation of PyTorch on a CPU ends when the slowest of its threads does; the others spin meanwhile, by OpenMP's
default for milliseconds. Where another process has a core, they spend their share of the machine so, and are
interrupted in turn just when they would be needed. Shown are forward and backward passes per second through some linear
layers with as many threads as there are cores, over those of the default on the quiet machine: medians over rounds, in
random order, each in a process of its own. Beside it runs nothing, or a process for each core but one.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from montessori_pl.__main__ import SPIN_COUNT

SHAPES = {
    "16 x 64, 10 layers": (16, 64, 10),
    "64 x 128, 10 layers": (64, 128, 10),
    "512 x 576, 10 layers": (512, 576, 10),
}
"""Rows, width and number of layers: those of the classroom's models, and of SmolLM2-135M on a batch."""
SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's default": {},
    f"{SPIN_COUNT:,} turns (ours)": {"GOMP_SPINCOUNT": str(SPIN_COUNT)},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "sleep at once": {"OMP_WAIT_POLICY": "passive"},
}
DEFAULT = next(iter(SETTINGS))
PASSES = """
import sys, time, torch
rows, width, layers, seconds = *map(int, sys.argv[1:4]), float(sys.argv[4])
x = torch.randn(rows, width, requires_grad=True)
weights = [torch.randn(width, width, requires_grad=True) for _ in range(layers)]
count, start = 0, time.perf_counter()
while time.perf_counter() - start < seconds:
    hidden = x
    for weight in weights:
        hidden = torch.nn.functional.layer_norm(torch.relu(hidden @ weight), (width,))
    hidden.sum().backward()
    count += 1
print(count / (time.perf_counter() - start))
"""
BUSY = "import torch; torch.set_num_threads(1); x = torch.randn(512, 512)\nwhile True: x @ x"


def rate(shape: Sequence[int], setting: dict[str, str], seconds: float) -> float:
    """Passes per second, in a process of its own: OpenMP reads its settings once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", PASSES, *map(str, shape), str(seconds)]
    return float(subprocess.run(command, env=environment | setting, check=True, capture_output=True).stdout)


def main() -> None:
    """Measure, and print a table for the quiet machine and one for the busy one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    console = Console(width=120, highlight=False)
    quiet: dict[str, float] = {}
    for others in (0, max(1, cores - 1)):
        found: dict[tuple[str, str], list[float]] = {}
        beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
        try:
            for round_ in range(options.rounds):
                cells = [(shape, setting) for shape in SHAPES for setting in SETTINGS]
                random.Random(round_).shuffle(cells)
                for shape, setting in cells:
                    found.setdefault((shape, setting), []).append(
                        rate(SHAPES[shape], SETTINGS[setting], options.seconds)
                    )
        finally:
            for one in beside:
                one.kill()
                one.wait()
        table = Table(title=f"{cores} threads beside {others} busy processes", title_justify="left")
        table.add_column("")
        for shape in SHAPES:
            table.add_column(shape, justify="right")
            quiet.setdefault(shape, statistics.median(found[shape, DEFAULT]))
        for setting in SETTINGS:
            table.add_row(
                setting,
                *(
                    f"{statistics.median(values) / quiet[shape]:.3f} ({min(values) / quiet[shape]:.3f} to "
                    f"{max(values) / quiet[shape]:.3f})"
                    for shape in SHAPES
                    for values in [found[shape, setting]]
                ),
            )
        console.print(table)


if __name__ == "__main__":
    main()
