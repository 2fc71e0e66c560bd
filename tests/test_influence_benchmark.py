"""The comparison of influence methods in miniature: its baselines do what they say, and its object has its shape."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from montessori_pl.influence import agreement

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """The script as a module, with its neighbours, as if it had been started from its directory."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    threads = torch.get_num_threads()
    try:
        import influence

        yield influence
    finally:
        torch.set_num_threads(threads)
        sys.path.pop(0)


@pytest.fixture(scope="module")
def setting(benchmark: Any) -> Any:
    return benchmark.make_setting(benchmark.TINY, seed=1, lr=1e-3)


@pytest.mark.slow
def test_the_original_loop_is_exact_influence_with_its_reduction(benchmark: Any, setting: Any) -> None:
    """Padding, all logits and reading from disk change nothing; and the model is left as it was."""
    student = setting.student.copy()
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    loop = benchmark.OriginalLoop(student, setting.references, setting.size.longest)
    scorer = benchmark.engine(setting, setting.student, method="exact", reduction="batches_of_8")
    expected = [influence.plain for influence in scorer(benchmark.stack(setting.probes[:6]))]
    assert max(map(abs, expected)) > 1e-4
    assert loop(setting.probes[:6]) == pytest.approx(expected, abs=2e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.model.state_dict().items())


@pytest.mark.slow
def test_the_original_loop_on_weights_that_layers_share(benchmark: Any, setting: Any) -> None:
    """Embeddings and head of many small models are one: they lie in the file once, and are read again whole."""
    student = setting.student.copy()
    base = student.model.get_base_model()
    base.lm_head.weight = base.model.embed_tokens.weight
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    loop = benchmark.OriginalLoop(student, setting.references, setting.size.longest)
    assert len(loop(setting.probes[:2])) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in student.model.state_dict().items())


@pytest.mark.slow
def test_the_simple_loop_is_exact_influence(benchmark: Any, setting: Any) -> None:
    """Also when it goes over the same probes again: everything is restored, the moments and their step too."""
    loop = benchmark.SimpleLoop(setting.student.copy(), setting.references)
    scorer = benchmark.engine(setting, setting.student, method="exact")
    expected = [influence.plain for influence in scorer(benchmark.stack(setting.probes[:6]))]
    first = loop(setting.probes[:6])
    assert first == pytest.approx(expected, abs=2e-6)
    assert loop(setting.probes[:6]) == first


def test_float64_is_the_truth_of_float32(benchmark: Any, setting: Any) -> None:
    double = benchmark.in_float64(setting.student)
    values = [
        [influence.centred for influence in benchmark.engine(setting, one, method="exact")(stacked)]
        for stacked in [benchmark.stack(setting.probes)]
        for one in (double, setting.student)
    ]
    assert {param.dtype for param in double.model.parameters()} == {torch.float64}
    assert agreement(values[1], values[0], setting.groups).spearman > 0.99


def test_the_peak_is_what_tensors_took_at_once(benchmark: Any) -> None:
    with benchmark.Meter("cpu") as meter:
        for _ in range(3):
            torch.ones(250_000).add_(1)
    assert meter.peak == pytest.approx(1_000_000, abs=100)


@pytest.mark.slow
def test_the_whole_comparison(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--tiny", "--json", "--rounds", "1", "--few", "1"])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert {tuple(one) for one in result.values()} == {("ratio", "spearman", "best_worst", "peak_mb")}
    assert {
        "original",
        "simple loop",
        "exact",
        "first order",
        "corrected on 4",
        "auto",
        "LESS, cosine",
    } <= result.keys()
    assert result["original"]["ratio"] == 1
    assert result["exact"]["spearman"] == result["exact"]["best_worst"] == 1
    assert result["corrected on 4"]["spearman"] > 0.95
    assert result["first order"]["spearman"] > 0.95
    assert all(one["peak_mb"] > 0 for one in result.values())
    for title in ("| method |", "| learning rate |", "| arithmetic |", "Peak memory"):
        assert title in captured.err


@pytest.mark.slow
def test_random_weights_are_timed_without_a_gpu_too(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--shape` the model is random, its base in bfloat16, and the rows say what each method has to compute.

    The original's loop pads the probe, whose backward pass counts twice, and every reference to the longest; exact does
    not pad; first order goes through the probe alone, and a correction through a part of the references besides.
    """
    benchmark.main(["--shape", "tiny", "--json", "--rounds", "1"])
    captured = capsys.readouterr()
    setting = benchmark.random_setting(benchmark.SHAPES["tiny"], torch.bfloat16, "cpu", 3e-4)
    assert {p.dtype for p in setting.student.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in setting.student.trained} == {torch.float32}
    probes, references = ([row["input_ids"].shape[1] for row in rows] for rows in (setting.probes, setting.references))
    of_probe, of_reference = 3 * sum(probes) / len(probes), sum(references) / len(references)
    tokens = {
        "original": (len(references) + 3) * setting.size.longest,
        "exact": sum(references) + 3 * probes[0],
        "first order": of_probe,
        "corrected on 4": round(of_probe) + round(4 * of_reference),
        "corrected on 8": round(of_probe) + round(8 * of_reference),
    }
    table = [line.removeprefix("| ").split(" | ") for line in captured.err.splitlines()]
    rows = {cells[0]: cells for cells in table if len(cells) == 8}
    result = json.loads(captured.out)
    assert result.keys() == tokens.keys()
    assert rows.keys() == {"method", *tokens}
    for name, count in tokens.items():
        assert int(rows[name][4].replace(",", "")) == round(count)
        assert result[name]["peak_mb"] > 0
    # In one round, the ratio of times per probe is that of the two columns, which are rounded to 1e-4 s.
    seconds = {name: float(rows[name][1]) for name in tokens}
    for name in tokens:
        assert result[name]["ratio"] == pytest.approx(seconds["original"] / seconds[name], rel=1e-4 / seconds[name])
    scores = {
        method: [one.centred for one in benchmark.engine(setting, setting.student, method=method)(stacked)]
        for stacked in [benchmark.stack(setting.probes)]
        for method in ("exact", "first_order")
    }
    assert agreement(scores["first_order"], scores["exact"], [0] * len(probes)).pearson > 0.99
