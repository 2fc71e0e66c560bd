"""How long does it take to read the recorded quality of a pool, with and without the student?

    OMP_NUM_THREADS=1 python benchmarks/scores_without_student.py
    OMP_NUM_THREADS=1 python benchmarks/scores_without_student.py --student Qwen/Qwen2.5-0.5B --examples 2000

The stage `ScoreExamples` runs twice on the same examples: with `RecordedQualitySignal`, which looks at the examples
alone, and with the same signal made to need the student, which is then loaded, predicts every example, and is loaded
once more for its loss on the reference set. Prints the seconds of both and their ratio, a line for each
round, in random order.
"""

import argparse
import logging
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from callbacks import RecordedQualitySignal
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example, append_records, read_records
from montessori_pl.data.records import Score as ScoreRecord
from montessori_pl.models.student import StudentModule
from montessori_pl.run_directory.progress import Progress
from montessori_pl.signals import SignalCallback
from montessori_pl.stages import ScoreExamples, StageContext


class ThroughTheStudent(RecordedQualitySignal):
    """The same scores, by way of the student."""

    needs_student = True


def write_pool(directory: Path, number: int) -> Path:
    """So many examples of a few sentences, four responses to each instruction; returns where they are."""
    rng = random.Random(0)
    sentences = ["It is so .", "Count the words of a line .", "a b c d e f g", "Reverse what was said before ."]
    examples = [
        Example(
            id=f"e{n}",
            instruction=f"{n // 4} {' '.join(rng.choices(sentences, k=4))}",
            response=" ".join(rng.choices(sentences, k=8)),
            quality=rng.random(),
        )
        for n in range(number)
    ]
    append_records(directory / "examples.jsonl", examples)
    return directory


def seconds(signal: SignalCallback, student: str, pool: Path, directory: Path) -> float:
    """Score all examples in a new directory, and take the time."""
    directory.mkdir()

    def trainer(**arguments: Any) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return Trainer(**quiet, use_distributed_sampler=False, **arguments)  # type: ignore[arg-type]

    def not_needed() -> Any:
        raise AssertionError

    context = StageContext(
        key="iteration_1/quality",
        name="quality",
        iteration=1,
        directory=directory,
        seed=0,
        run_seed=0,
        inputs={"examples": pool, "student": None},
        data=DataSources("classroom/seed_tasks", "classroom/reference"),
        student=lambda: StudentModule(student),
        teacher=not_needed,
        backend=not_needed,
        trainer=trainer,
        progress=Progress(),
        log_distribution=lambda name, values: None,
    )
    start = time.perf_counter()
    ScoreExamples("pool", signal).run(context)
    return time.perf_counter() - start


def main() -> None:
    """Run all rounds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="classroom/student", help="hub id, directory, or a name of the classroom")
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    signals: dict[str, type[SignalCallback]] = {"without": RecordedQualitySignal, "through": ThroughTheStudent}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "pool").mkdir()
        pool = write_pool(root / "pool", options.examples)
        print("round  without student  through student   ratio")
        for number in range(options.rounds + 1):
            taken = {}
            for name in random.sample(list(signals), len(signals)):
                taken[name] = seconds(signals[name](), options.student, pool, root / f"{name}_{number}")
            scores = [read_records(root / f"{name}_{number}" / "scores.jsonl", ScoreRecord) for name in signals]
            assert scores[0] == scores[1]
            if number:  # the first round imports and builds
                ratio = taken["through"] / taken["without"]
                print(f"{number:5d} {taken['without']:14.2f} s {taken['through']:14.2f} s {ratio:7.1f}", flush=True)


if __name__ == "__main__":
    main()
