"""SelectBest, by hand: five of seven examples have a score, two of these the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from stage_runs import never, stage_context, write

from montessori_pl.data.records import Example, Score, read_records
from montessori_pl.stages import SelectBest, StageError

VALUES = {"e": 1.0, "b": 3.0, "d": 1.0, "a": -2.0, "f": 2.0}
EXAMPLES = [Example(id=id_, instruction=f"what is {id_}?", response="r") for id_ in "gfedcba"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the stage on the examples with these scores; returns its metrics."""

    def session(share: float = 0.5, **scores: dict[str, float]) -> dict[str, Any]:
        stage = SelectBest("data", list(scores), share)
        directories = {"data": write(tmp_path / "data" / "examples.jsonl", EXAMPLES)}
        for name, values in scores.items():
            records = [Score(id=id_, value=value) for id_, value in values.items()]
            directories[name] = write(tmp_path / name / "scores.jsonl", records)
        inputs = {one.setting: directories[one.name] for one in stage.reads()}
        return stage.run(stage_context(tmp_path / "best", inputs=inputs, log_distribution=never))

    return session


@pytest.mark.parametrize(
    ("share", "chosen", "threshold", "mean"),
    [
        (0.6, "fdb", 1.0, 2.0),  # of d and e, which are equal, the first
        (0.4, "fb", 2.0, 2.5),
        (0.01, "b", 3.0, 3.0),  # at least one
        (1.0, "fedba", -2.0, 1.0),  # and never one without a score
    ],
)
def test_the_best_share(
    run: Callable[..., dict[str, Any]], tmp_path: Path, share: float, chosen: str, threshold: float, mean: float
) -> None:
    metrics = run(share, influence=VALUES)
    kept = read_records(tmp_path / "best" / "examples.jsonl", Example)
    assert kept == [example for example in EXAMPLES if example.id in chosen], "in their order"
    assert metrics["accepted"] == len(chosen)
    assert metrics["rejected"] == {"not among the best": 5 - len(chosen), "unscored": 2}
    assert (metrics["threshold"], metrics["mean_score"], metrics["mean_score_of_all"]) == (threshold, mean, 1.0)
    assert metrics["diversity"]["distinct_rate"] == 1.0
    before = (tmp_path / "best" / "examples.jsonl").read_bytes()
    assert run(share, influence=VALUES) == metrics
    assert (tmp_path / "best" / "examples.jsonl").read_bytes() == before


def test_several_judges_are_averaged(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Standard deviations 1 and 10: `a` has (1 + 1) / 2, `b` (-1 - 1) / 2, and who is scored by one alone has none."""
    metrics = run(0.5, influence={"a": 1.0, "b": -1.0}, other={"a": 10.0, "b": -10.0, "c": 10.0, "d": -10.0})
    (kept,) = read_records(tmp_path / "best" / "examples.jsonl", Example)
    assert kept.id == "a"
    assert metrics["threshold"] == pytest.approx(1.0)
    assert metrics["mean_score_of_all"] == pytest.approx(0.0)
    assert metrics["rejected"] == {"not among the best": 1, "unscored": 5}


def test_nothing_to_choose_from(run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(StageError, match="iteration_1/best has nothing to choose from: none of 7 examples has a score"):
        run(influence={"z": 1.0})


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share: expected float > 0 and <= 1, found"):
        SelectBest("data", "influence", share)


class TestRedundancy:
    """Three examples of one kind, of which the best two are the best of all, and one of another."""

    GRADIENTS: ClassVar = {"a": (1.0, 0.0), "b": (2.0, 0.0), "c": (3.0, 0.0), "d": (0.0, 1.0)}
    VALUES: ClassVar = {"a": 4.0, "b": 3.0, "c": 1.0, "d": 2.0}

    @pytest.fixture
    def choose(self, tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any]]]:
        """What is chosen, and the metrics."""

        def session(redundancy: float, number: int, gradients: bool = True) -> tuple[str, dict[str, Any]]:
            stage = SelectBest("data", "influence", number / 4, redundancy, "gradients")
            rows = [Score(id=id_, value=value) for id_, value in self.VALUES.items()]
            kept = [Score(id=i, value=0.0, gradient=row if gradients else ()) for i, row in self.GRADIENTS.items()]
            inputs = {
                "examples": write(tmp_path / "data" / "examples.jsonl", EXAMPLES),
                "scores": write(tmp_path / "influence" / "scores.jsonl", rows),
                "gradients": write(tmp_path / "gradients" / "scores.jsonl", kept),
            }
            metrics = stage.run(stage_context(tmp_path / "best", inputs=inputs, log_distribution=never))
            kept_examples = read_records(tmp_path / "best" / "examples.jsonl", Example)
            return "".join(sorted(one.id for one in kept_examples)), metrics

        return session

    @pytest.mark.parametrize(
        ("redundancy", "number", "chosen"),
        [
            # Mean 2.5 and standard deviation sqrt(5) / 2: b is worth .447 and d -.447, c -1.34.
            (1e-9, 2, "ab"),
            (0.85, 2, "ab"),  # b: -.40
            (0.95, 2, "ad"),  # b: -.50
            (0.95, 3, "abd"),  # the chosen a and d together pull b's way by a half: -.03, and c's as much: -1.82
            (3.0, 4, "abcd"),
        ],
    )
    def test_by_hand(
        self, choose: Callable[..., tuple[str, dict[str, Any]]], redundancy: float, number: int, chosen: str
    ) -> None:
        found, metrics = choose(redundancy, number)
        assert found == chosen
        assert metrics["rejected"]["unscored"] == 3
        if chosen == "ad":
            assert metrics["g_vendi"] == pytest.approx(2.0)
            assert metrics["threshold"] == 2.0

    def test_without_gradients(self, choose: Callable[..., tuple[str, dict[str, Any]]]) -> None:
        with pytest.raises(StageError, match=r"finds no gradients in 'gradients'; .*ProjectedGradientSignal"):
            choose(1.0, 2, gradients=False)
        for settings in ({"redundancy": 1.0}, {"gradients": "g"}):
            with pytest.raises(ValueError, match="set both, or neither"):
                SelectBest("data", "influence", **settings)  # type: ignore[arg-type]
