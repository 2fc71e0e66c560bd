"""The linear datamodeling score: its parts, its predictions and its correlations, on numbers that are known."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

from montessori_pl.data.records import Example

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import datamodeling
finally:
    sys.path.remove(str(BENCHMARKS))

EXAMPLES = [Example(id=str(n), instruction=f"say {n}", response="r") for n in range(12)]
EXACT = {example.id: float(int(example.id) % 7) for example in EXAMPLES}


def test_parts() -> None:
    """Halves at random, each of its own; thirds by what exact influence says; all in the order of the examples."""
    parts = datamodeling.draw_parts(EXAMPLES, EXACT, halves=5, seed=1)
    halves = [tuple(one.id for one in part) for name, part in parts.items() if name.startswith("half")]
    assert [len(half) for half in halves] == [6] * 5
    assert len(set(halves)) > 1
    assert all(list(half) == sorted(half, key=int) for half in halves)
    thirds = {name: [EXACT[one.id] for one in parts[name]] for name in datamodeling.THIRDS}
    assert [len(values) for values in thirds.values()] == [4, 4, 4]
    assert min(thirds["best"]) >= max(thirds["middle"]) >= min(thirds["middle"]) >= max(thirds["worst"])
    assert parts == datamodeling.draw_parts(EXAMPLES, EXACT, halves=5, seed=1)


def test_a_score_that_knows_the_truth_reaches_the_root_of_the_reliability() -> None:
    """Losses are minus what the examples are worth, and noise of the same size: reliability .8 of four repeats."""
    rng = np.random.default_rng(0)
    parts = list(datamodeling.draw_parts(EXAMPLES, EXACT, halves=400, seed=2).values())[:400]
    truth = np.array(datamodeling.predictions(parts, EXACT))
    assert truth[0] == -sum(EXACT[one.id] for one in parts[0])
    losses = truth[:, None] + truth.std() * rng.standard_normal((400, 4))
    ceiling = datamodeling.reliability(losses)
    assert ceiling.mean == pytest.approx(0.8, abs=0.05)
    found = datamodeling.datamodeling_score(truth.tolist(), losses)
    assert found.mean == pytest.approx(ceiling.mean**0.5, abs=0.05)
    assert found.ends is not None
    assert found.ends[0] < found.mean < found.ends[1]
    assert datamodeling.datamodeling_score((-truth).tolist(), losses).mean == pytest.approx(-found.mean)


@pytest.mark.parametrize(("config", "student"), [("iter1.yaml", "warmup"), ("smollm2.yaml", "warmup")])
def test_all_but_one_score_look_at_the_recipes_student(tmp_path: Path, config: str, student: str) -> None:
    """A name such as `latest` means the student that was trained last before the stage."""
    options = argparse.Namespace(config=config, out=tmp_path, seed=1, prompts=8, set=[])
    recipe = datamodeling.scoring_run(options).config["recipe"]
    trained = [name for name, stage in recipe.items() if stage["class_path"] == "TrainStudent"]
    for name in datamodeling.SIGNALS:
        before = [one for one in trained if list(recipe).index(one) < list(recipe).index(name)]
        named = recipe[name]["init_args"]["student"]
        assert (before[-1] if named == "latest" else named) == ("all_of_it" if name == "late" else student)
    assert recipe["probing_data"]["init_args"]["num_prompts"] == 8
