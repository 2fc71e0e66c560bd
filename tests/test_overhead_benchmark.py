"""The benchmark of what a recipe costs beside its models: its table by hand, and its recipe in small."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from montessori_pl.__main__ import main
from montessori_pl.data.records import Example, PreferencePair, read_records

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import overhead
finally:
    sys.path.remove(str(BENCHMARKS))


def test_costs_for_each_example_by_hand() -> None:
    """Twice as many examples in four times the time cost twice as much each; 3 MB more for 1,000 more are 3 kB."""
    seconds = {"examples": 2.0, "scores": 1.0, "verify": 0.5}
    first = overhead.Outcome(1000, seconds, peak=10_000_000, disk=5_000_000)
    second = overhead.Outcome(2000, {name: 4 * s for name, s in seconds.items()}, peak=13_000_000, disk=6_000_000)
    file = io.StringIO()
    Console(file=file, width=120).print(overhead.table([first, second]))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in file.getvalue().splitlines() if "│" in line]
    assert cells == [
        ["examples, ms", "2.000", "4.000"],
        ["scores, ms", "1.000", "2.000"],
        ["verify, ms", "0.500", "1.000"],
        ["all stages, ms", "3.000", "6.000"],
        ["memory, kB", "", "3.00"],
        ["disk, kB", "5.00", "3.00"],
    ]


def test_texts_depend_on_their_seed_alone() -> None:
    texts = list(map(overhead.made_up, range(200)))
    assert texts == list(map(overhead.made_up, range(200)))
    assert len(set(texts)) == 200


def test_the_recipe_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its stages work on all its examples."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    settings = json.loads(json.dumps(overhead.RECIPE)) | {"run": str(tmp_path / "run")}
    settings["recipe"]["examples"]["init_args"]["num_examples"] = 70
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings))
    main(["fit", "--config", str(recipe)])
    stages = tmp_path / "run" / "iteration_1"
    assert len(read_records(stages / "examples" / "examples.jsonl", Example)) == 70
    assert 0 < len(read_records(stages / "preferences" / "pairs.jsonl", PreferencePair)) <= 18
    trained = json.loads((stages / "trained" / "metrics.json").read_text())
    assert (trained["examples"], trained["steps"], trained["loss"]) == (70, 2, 0.0)
