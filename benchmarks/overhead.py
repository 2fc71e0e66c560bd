"""What a recipe costs beside its models: stages of a thousand, ten thousand and a hundred thousand examples.

    python benchmarks/overhead.py                       # one core; nearly all of the time is the largest count's
    python benchmarks/overhead.py --counts 300 1000     # a minute or two, to try it

The engine writes made-up text at once, scores are drawn at random, and the student's training step goes through no
model. What is left is ours: prompts, parsing, filters, the near-duplicate index, journals that reach the disk, tokens,
batches, pairs and hashes. Each count has a run and a process of its own; after it come a second start, `verify` and
`report` on what it has left.

A cost that grows faster than the number of examples shows as milliseconds per example that rise from column to column.
Memory is the peak of the process, beyond that of the smallest run, over the examples beyond those.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from near_duplicates import OPENINGS
from rich.console import Console
from rich.table import Table
from torch import Tensor

from montessori_pl.data.records import Message
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.models.student import StudentModule

COUNTS = (1_000, 10_000, 100_000)
PEAK = "peak memory in KiB:"
PROGRAM = f"""
import resource, sys
from montessori_pl.__main__ import main
main(sys.argv[1:])
print({PEAK!r}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
"""The program, which says at its end how much memory it took."""
WORDS = 5_000
"""Different words of the texts that are made up."""
RECIPE: dict[str, Any] = {
    "seed_everything": 0,
    "num_threads": 1,
    "student": {"class_path": "overhead.UntrainedStudent", "init_args": {"backbone": "classroom/student"}},
    "teacher": {"class_path": "montessori_pl.TeacherDPOModule", "init_args": {"backbone": "classroom/teacher"}},
    "generation": {"class_path": "overhead.InstantEngine"},
    "data": {"seed_tasks": "classroom/seed_tasks", "reference": "classroom/reference"},
    "trainer": {"accelerator": "cpu", "devices": 1, "logger": False},
    "recipe": {
        "examples": {
            "class_path": "Synthesize",
            "init_args": {
                "teacher": "base",
                "samples_per_prompt": 4,
                "prompts_per_batch": 64,
                "instruction_sampling": {"max_tokens": 64},
                "response_sampling": {"max_tokens": 64},
                "instruction_filter": {"keywords": []},
            },
        },
        "scores": {
            "class_path": "ScoreExamples",
            "init_args": {
                "examples": "examples",
                "student": "base",
                "signal": {"class_path": "callbacks.RandomSignal"},
            },
        },
        "preferences": {
            "class_path": "BuildPreferences",
            "init_args": {"examples": "examples", "scores": "scores", "rule": "best_worst"},
        },
        "trained": {
            "class_path": "TrainStudent",
            "init_args": {"examples": "examples", "training": {"lr": 1.0e-3, "batch_size": 64, "max_length": 128}},
        },
    },
}


class InstantEngine(GenerationBackend):
    """Writes made-up text at once: of a request's seed, and of nothing else."""

    def load(self, source: ModelSource) -> None:
        """Nothing is loaded."""

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Everything fits."""
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """A task within tags, which is also the answer."""
        return [
            Completion(text=f"<instruction>{text}</instruction>", finished=True, num_tokens=16, num_prompt_tokens=64)
            for text in map(made_up, (request.seed for request in requests))
        ]

    def close(self) -> None:
        """Nothing was loaded."""


def made_up(seed: int) -> str:
    """An opening as people write it, and words of which some are far more common than others."""
    rng = random.Random(seed)
    words = [f"w{int(WORDS ** rng.random())}" for _ in range(rng.randint(6, 14))]
    return f"{rng.choice(OPENINGS)} {' '.join(words)}"


class UntrainedStudent(StudentModule):
    """A student whose training steps go through no model."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Zero, with a gradient of zero."""
        loss = 0.0 * next(iter(self.optimized().values())).sum()
        self.log_metrics({"loss": loss.detach(), "lr": self._lr()}, batch_size=len(batch["input_ids"]))
        return loss


@dataclass(frozen=True)
class Outcome:
    """A run and what was read of it."""

    count: int
    """Examples."""
    seconds: Mapping[str, float]
    """Of each stage, and of the commands on the finished run."""
    peak: int
    """Bytes of memory of the process that ran the recipe."""
    disk: int
    """Bytes that it has left."""


def measure(count: int, out: Path) -> Outcome:
    """Run the recipe with so many examples in processes of their own."""
    recipe, run = out / "recipe.yaml", out / "run"
    settings = json.loads(json.dumps(RECIPE)) | {"run": str(run)}
    settings["recipe"]["examples"]["init_args"]["num_examples"] = count
    recipe.write_text(json.dumps(settings), encoding="utf-8")
    peak = started(["fit", "--config", str(recipe)])[1]
    again, _ = started(["fit", "--config", str(recipe)])
    verified, _ = started(["verify", str(run)])
    reported, _ = started(["report", str(run), "--output", str(out / "report.html")])
    stages = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
    seconds = {key.partition("/")[2]: entry["seconds"] for key, entry in stages.items()}
    seconds |= {"a second start": again, "verify": verified, "report": reported}
    return Outcome(count, seconds, peak, sum(path.stat().st_size for path in run.rglob("*") if path.is_file()))


def started(arguments: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of the program with these arguments.

    Raises:
        SystemExit: it failed.
    """
    start = time.monotonic()
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"error: {' '.join(arguments)}: {done.stderr or done.stdout}")
    return time.monotonic() - start, 1024 * int(done.stdout.rpartition(PEAK)[2])


def table(outcomes: Sequence[Outcome]) -> Table:
    """Milliseconds and kilobytes for each example."""
    found = Table(title="for each example", title_justify="left")
    found.add_column("")
    for one in outcomes:
        found.add_column(f"{one.count:,} examples", justify="right")
    for name in outcomes[0].seconds:
        found.add_row(f"{name}, ms", *(f"{1000 * one.seconds[name] / one.count:.3f}" for one in outcomes))
    stages = [name for name in RECIPE["recipe"] if name in outcomes[0].seconds]
    total = (sum(one.seconds[name] for name in stages) for one in outcomes)
    found.add_section()
    found.add_row("all stages, ms", *(f"{1000 * s / one.count:.3f}" for s, one in zip(total, outcomes, strict=True)))
    first = outcomes[0]
    more = (f"{(one.peak - first.peak) / (one.count - first.count) / 1000:.2f}" for one in outcomes[1:])
    found.add_row("memory, kB", "", *more)
    found.add_row("disk, kB", *(f"{one.disk / one.count / 1000:.2f}" for one in outcomes))
    return found


def main() -> None:
    """Run the recipe with each count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="examples of each run, the fewest first")
    options = parser.parse_args()
    outcomes = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as directory:
            outcomes.append(measure(count, Path(directory)))
    console = Console(width=120, highlight=False)
    console.print(table(outcomes))
    console.print(f"{platform.processor() or platform.machine()}, one thread, {platform.python_version()}")


if __name__ == "__main__":
    main()
