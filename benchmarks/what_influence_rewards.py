"""What did influence reward on the gym? By what examples hold, and by which of two was preferred.

    python benchmarks/what_influence_rewards.py checkpoints/smollm2/run

Reads a run of `smollm2.yaml`: the mean influence of the probing examples on each student, and the preference pairs, by
what the verifiers say of an example; and the families of what the students learned. Nothing is run.
"""

import argparse
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from montessori_pl.data.records import Example, PreferencePair, Score, read_records
from montessori_pl.worlds.gym.tasks import TARGETS, family_of, is_right, solve

KINDS = ("right", "wrong", "no answer", "distractor")
"""Target tasks with a right and with a wrong answer, what no verifier can answer, and tasks of the other families."""


def kind(example: Example) -> str:
    """What the verifiers say of an example."""
    family = family_of(example.instruction)
    if family not in TARGETS:
        return "no answer" if family is None else "distractor"
    return "right" if is_right(example.response, str(solve(example.instruction))) else "wrong"


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    stages = parser.parse_args().run / "iteration_1"
    examples = read_records(stages / "probing_data" / "examples.jsonl", Example)
    kinds = {example.id: kind(example) for example in examples}
    console = Console(highlight=False)
    means = Table("scored by", *KINDS, title="mean influence in nats", title_justify="left")
    for stage in ("influence", "influence_late"):
        values = defaultdict(list)
        for score in read_records(stages / stage / "scores.jsonl", Score):
            values[kinds[score.id]].append(score.value)
        means.add_row(stage, *(f"{statistics.fmean(values[one]):.4f}" if values[one] else "-" for one in KINDS))
    console.print(means)
    pairs = read_records(stages / "preferences" / "pairs.jsonl", PreferencePair)
    counts = Counter((kinds[pair.chosen_id], kinds[pair.rejected_id]) for pair in pairs)
    preferred = Table("chosen", *KINDS, title="pairs, by what was rejected", title_justify="left")
    for chosen in KINDS:
        preferred.add_row(chosen, *(str(counts[chosen, rejected]) for rejected in KINDS))
    console.print(preferred)
    learned = Table("family", title="what students learned", title_justify="left")
    columns = {}
    for stage in ("self_instruct_data", "training_data"):
        learned.add_column(stage, justify="right")
        columns[stage] = read_records(stages / stage / "examples.jsonl", Example)
    names = Counter(family_of(example.instruction) for some in columns.values() for example in some)
    for name, _ in names.most_common():
        of_family = ([one for one in some if family_of(one.instruction) == name] for some in columns.values())
        cells = (f"{len(some)}, {sum(kind(one) == 'right' for one in some)} right" for some in of_family)
        learned.add_row(*((name, *cells) if name in TARGETS else (name or "none", *(c.split(",")[0] for c in cells))))
    console.print(learned)


if __name__ == "__main__":
    main()
