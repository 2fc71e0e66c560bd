"""All shipped recipes on the same classrooms: one table, at equal training examples and equal steps of the student.

    python benchmarks/recipes_study.py --jobs 2
    python benchmarks/recipes_study.py --recipes self_instruct car --cells 0/42

A *cell* is a classroom and a seed. In each cell each recipe runs once, through the program's own command line and as it
ships; only the classroom, the seed and the run directory are replaced. Starting the same command again continues the
study. `self_instruct_api` is answered by `examples/serve_model.py`, which is started for it.

    <out>/<recipe>/<world>-<seed>/    the run directories, with `<world>-<seed>.yaml` and `.log` beside them
    <out>/table.md, table.csv         what `compare` says of all that finished

The table is the command `compare`: means over cells, and differences to Self-Instruct paired by seed. Beside it stands
how many examples and steps each recipe's last student has had, so that what is not equal is seen.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from study.measures import content
from study.runs import last_words

from montessori_pl.data.records import Example, read_records

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "self_instruct"
RECIPES = (
    BASELINE,
    "self_instruct_api",
    "iter1",
    "iter2",
    "random_pairs",
    "judge_signal",
    "loss_signal",
    "response_optimization",
    "bootstrap",
    "self_reward",
    "llm2llm",
    "car",
    "persyn",
)
CELLS = ("10/200", "11/201", "12/202", "10/203", "11/204", "12/205")
"""Classrooms and seeds on which no setting of a recipe was chosen."""


@dataclass(frozen=True)
class Run:
    """A recipe in a cell."""

    recipe: str
    world: int
    seed: int
    out: Path

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.out / self.recipe / f"{self.world}-{self.seed}"

    def fit(self) -> str:
        """Run it, or go on with it; its last words if it failed, else nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.with_suffix(".yaml")
        text = (ROOT / "configs" / f"{self.recipe}.yaml").read_text(encoding="utf-8")
        file.write_text(re.sub(r"\bclassroom/", f"classroom@{self.world}/", text), encoding="utf-8")
        settings = ["--run", str(self.path), "--seed_everything", str(self.seed), "--trainer.logger", "false"]
        with endpoint(self.world) if self.recipe.endswith("_api") else nullcontext([]) as address:
            command = [sys.executable, "-m", "montessori_pl", "fit", "--config", str(file), *settings, *address]
            with open(self.path.with_suffix(".log"), "a", encoding="utf-8") as log:
                status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        return last_words(self.path.with_suffix(".log")) if status else ""


@contextmanager
def endpoint(world: int) -> Iterator[list[str]]:
    """A server of the classroom's teacher; gives the settings that lead to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(ROOT / "examples" / "serve_model.py"),
        f"classroom@{world}/teacher",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield ["--teachers.strong.generation.init_args.base_url", f"http://127.0.0.1:{port}/v1"]
    finally:
        server.terminate()
        server.wait()


def learned(run: Path) -> list[Example]:
    """The examples that the last supervised student of a run has learned."""
    entries = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
    source = [entry["inputs"]["examples"] for key, entry in entries.items() if key.endswith("/trained")][-1]
    return read_records(run / source.split()[0] / "examples.jsonl", Example)


def last_student(run: Path) -> tuple[str, dict[str, Any]]:
    """The student that the last evaluation names last, and the metrics of the stage that trained it."""
    evaluation = max(run.glob("iteration_*/evaluation"), key=lambda path: int(path.parent.name.partition("_")[2]))
    name = list(_metrics(evaluation)["students"])[-1]
    return name, _metrics(evaluation.parent / name)


def effort(runs: Sequence[Run]) -> Table:
    """Training examples and optimizer steps of the students that are compared, and what the examples ask for."""
    table = Table(title="what the last student learned from; shares by cell", title_justify="left")
    for heading in ("recipe", "student", "examples", "steps", "trained before by", "target skills", "hard ones"):
        table.add_column(heading)
    for recipe in dict.fromkeys(run.recipe for run in runs):
        found = [last_student(run.path) for run in runs if run.recipe == recipe]
        shown = ["/".join(dict.fromkeys(str(one.get(key, "-")) for _, one in found)) for key in ("examples", "steps")]
        before = "supervised training" if "pairs" in found[0][1] else ""
        contents = [content(learned(run.path))[1] for run in runs if run.recipe == recipe]
        shares = [" ".join(f"{one[name]:.2f}" for one in contents) for name in ("target share", "hard share")]
        table.add_row(recipe, found[0][0], *shown, before, *shares)
    return table


def _metrics(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="NAME", help="only these")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="WORLD/SEED", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints" / "recipes_study")
    parser.add_argument("--jobs", type=int, default=1, help="recipes that run at the same time")
    options = parser.parse_args()
    cells = [tuple(map(int, cell.split("/"))) for cell in options.cells]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = [Run(recipe, world, seed, options.out) for world, seed in cells for recipe in options.recipes]
    console = Console()
    finished = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for run, why in zip(runs, pool.map(Run.fit, runs), strict=True):
            console.print(f"{run.recipe}, classroom {run.world}, seed {run.seed}: {why or 'done'}", markup=False)
            finished += [] if why else [run]
    if finished:
        console.print(effort(finished))
        compare = [sys.executable, "-m", "montessori_pl", "compare", *(f"{run.recipe}={run.path}" for run in finished)]
        compare += ["--baseline", BASELINE] if any(run.recipe == BASELINE for run in finished) else []
        for form, name in (("markdown", "table.md"), ("csv", "table.csv")):
            subprocess.run([*compare, "--format", form, "--output", str(options.out / name)], check=True)
        subprocess.run(compare, check=True)
    sys.exit(len(finished) < len(runs))


if __name__ == "__main__":
    main()
