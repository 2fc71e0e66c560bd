"""Pair: preference pairs from scores, by each rule, from several judges, with noise and at random."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_runs import write

from montessori_pl.data.records import Example, PreferencePair, Score, read_records
from montessori_pl.stages import BuildPreferences, StageContext, StageError


@pytest.fixture
def scored(tmp_path: Path) -> dict[str, Path]:
    """One prompt with three samples of values -1, 1 and 3, and a prompt with one sample."""
    values = {"a": -1.0, "b": 1.0, "c": 3.0, "d": 2.0}
    examples = [
        Example(
            id=id_,
            instruction=id_,
            response="r",
            prompt_id="q" if id_ == "d" else "p",
            prompt="ask q" if id_ == "d" else "ask p",
            completion=f"I write {id_}",
            completion_finished=id_ != "a",
        )
        for id_ in values
    ]
    scores = [
        Score(id=id_, value=value, standard_error=1.0, terms=(value - 2, value + 2)) for id_, value in values.items()
    ]
    return {
        "examples": write(tmp_path / "data" / "examples.jsonl", examples),
        "scores": write(tmp_path / "influence" / "scores.jsonl", scores),
    }


def test_best_against_worst(scored: dict[str, Path], context: Callable[..., StageContext]) -> None:
    """Margin 3 - -1 = 4."""
    here = context(inputs=scored)
    metrics = BuildPreferences("data", "influence", rule="best_worst").run(here)
    (pair,) = read_records(here.directory / "pairs.jsonl", PreferencePair)
    assert (pair.chosen, pair.rejected, pair.margin) == ("I write c", "I write a", 4.0)
    assert (pair.chosen_finished, pair.rejected_finished) == (True, False)
    assert pair.prompt == "ask p"
    assert metrics == {"prompts": 2, "pairs": 1, "prompts_with_pairs": 1, "mean_margin": 4.0}


def test_each_positive_against_each_negative(scored: dict[str, Path], context: Callable[..., StageContext]) -> None:
    """Margins 3 - -1 = 4 and 1 - -1 = 2, the largest first; one of them when one is asked for."""
    metrics = BuildPreferences("data", "influence").run(context(inputs=scored))
    assert (metrics["pairs"], metrics["mean_margin"]) == (2, 3.0)
    metrics = BuildPreferences("data", "influence", max_pairs_per_prompt=1).run(context(inputs=scored))
    assert (metrics["pairs"], metrics["mean_margin"]) == (1, 4.0)


def test_pairs_weigh_by_their_margins_on_demand(scored: dict[str, Path], context: Callable[..., StageContext]) -> None:
    """Margins 4 and 2, mean 3."""
    here = context(inputs=scored)
    for weights, expected in (("equal", [1.0, 1.0]), ("margin", [4 / 3, 2 / 3])):
        metrics = BuildPreferences("data", "influence", weights=weights).run(here)  # type: ignore[arg-type]
        pairs = read_records(here.directory / "pairs.jsonl", PreferencePair)
        assert [pair.weight for pair in pairs] == pytest.approx(expected)
        assert (metrics["pairs"], metrics["mean_margin"]) == (2, 3.0)


def test_several_judges_are_averaged(
    tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
) -> None:
    """Another judge, twice as sure and of another mind on `a`: what it puts last is the worst of both.

    Variances 35/16 and 5 of (-1, 1, 3, 2) and (2, -2, 4, 0), around means of 5/4 and 1.
    """
    values = {"a": 2.0, "b": -2.0, "c": 4.0, "d": 0.0}
    other = write(tmp_path / "other" / "scores.jsonl", [Score(id=id_, value=v) for id_, v in values.items()])
    stage = BuildPreferences("data", ["influence", "other"], rule="best_worst")
    assert [(one.setting, one.name) for one in stage.reads()] == [
        ("examples", "data"),
        ("scores.influence", "influence"),
        ("scores.other", "other"),
    ]
    inputs = {"examples": scored["examples"], "scores.influence": scored["scores"], "scores.other": other}
    here = context(inputs=inputs)
    metrics = stage.run(here)
    (pair,) = read_records(here.directory / "pairs.jsonl", PreferencePair)
    assert (pair.chosen, pair.rejected) == ("I write c", "I write b")
    first, second = math.sqrt(35 / 16), math.sqrt(5)
    assert metrics["mean_margin"] == pytest.approx((3 / first + 4 / second) / 2 - (1 / first - 2 / second) / 2)


@pytest.mark.parametrize(("weights", "worst"), [((1.0, 1.0), "b"), ((3.0, 1.0), "a"), ((1.5, 0.5), "a")])
def test_judges_have_weights(
    tmp_path: Path,
    scored: dict[str, Path],
    context: Callable[..., StageContext],
    weights: tuple[float, float],
    worst: str,
) -> None:
    """`a` has -1 and 2, `b` 1 and -2, by roots of 35/16 and 5: who counts more decides, by ratios alone."""
    values = {"a": 2.0, "b": -2.0, "c": 4.0, "d": 0.0}
    other = write(tmp_path / "other" / "scores.jsonl", [Score(id=id_, value=v) for id_, v in values.items()])
    of_first, of_second = weights
    here = context(inputs={"examples": scored["examples"], "scores.influence": scored["scores"], "scores.other": other})
    metrics = BuildPreferences("data", {"influence": of_first, "other": of_second}, rule="best_worst").run(here)
    (pair,) = read_records(here.directory / "pairs.jsonl", PreferencePair)
    assert (pair.chosen, pair.rejected) == ("I write c", f"I write {worst}")
    first, second = math.sqrt(35 / 16), math.sqrt(5)
    value = {"a": (-1 / first, 2 / second), "b": (1 / first, -2 / second), "c": (3 / first, 4 / second)}
    weighted = {id_: (of_first * x + of_second * y) / (of_first + of_second) for id_, (x, y) in value.items()}
    assert metrics["mean_margin"] == pytest.approx(weighted["c"] - weighted[worst])


@pytest.mark.parametrize("scores", [{}, {"influence": 0.0}, {"influence": 1.0, "other": -1.0}, []])
def test_a_weight_is_above_zero(scores: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        BuildPreferences("data", scores)


def test_a_judge_that_says_nothing(
    tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
) -> None:
    silent = write(tmp_path / "silent" / "scores.jsonl", [Score(id=id_, value=0.0) for id_ in "abcd"])
    inputs = {"examples": scored["examples"], "scores.influence": scored["scores"], "scores.silent": silent}
    with pytest.raises(StageError) as error:
        BuildPreferences("data", ["influence", "silent"]).run(context(inputs=inputs))
    assert str(error.value) == (
        "iteration_1/it, scores influence, silent: scores cannot be averaged with others when all of them are alike, "
        "found 0"
    )


@pytest.mark.parametrize("scores", [[], ["influence", "influence"]])
def test_judges_are_named_once(scores: list[str]) -> None:
    with pytest.raises(ValueError, match="scores: expected list, not empty, none twice, found"):
        BuildPreferences("data", scores)


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="max_first_word_rate: expected float > 0 and <= 1, found 0"):
        BuildPreferences("data", "influence", max_first_word_rate=0.0)


def test_noise_is_paired_over_reference_examples(scored: dict[str, Path], context: Callable[..., StageContext]) -> None:
    """Terms of two examples differ by the same amount on every reference: the margins have no noise at all."""
    assert BuildPreferences("data", "influence", noise_margin=100.0).run(context(inputs=scored))["pairs"] == 2


def test_where_terms_are_missing_standard_errors_count(
    tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
) -> None:
    """Some scores are approximate, without terms: margins 4 and 2, errors sqrt(2); 2 is not clear of 2 errors."""
    values = {"a": -1.0, "b": 1.0, "c": 3.0}
    mixed = [
        Score(id=id_, value=value, standard_error=1.0, terms=() if id_ == "b" else (value - 2, value + 2))
        for id_, value in values.items()
    ]
    inputs = {**scored, "scores": write(tmp_path / "mixed" / "scores.jsonl", mixed)}
    metrics = BuildPreferences("data", "influence", noise_margin=2.0).run(context(inputs=inputs))
    assert (metrics["pairs"], metrics["mean_margin"]) == (1, 4.0)


def test_control_draws_as_many_at_random(scored: dict[str, Path], context: Callable[..., StageContext]) -> None:
    here = context(inputs=scored)
    metrics = BuildPreferences("data", "influence", at_random=True).run(here)
    assert metrics["pairs"] == 2
    assert BuildPreferences("data", "influence", at_random=True).run(context(inputs=scored)) == metrics


def test_no_pair_is_said_with_what_was_there(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    examples = [Example(id=str(n), instruction="q", response="r", prompt_id=str(n), completion="c") for n in range(3)]
    inputs = {
        "examples": write(tmp_path / "data" / "examples.jsonl", examples),
        "scores": write(tmp_path / "influence" / "scores.jsonl", [Score(id=str(n), value=n) for n in range(3)]),
    }
    with pytest.raises(StageError) as error:
        BuildPreferences("data", "influence", rule="best_worst").run(context(inputs=inputs))
    assert str(error.value) == (
        "iteration_1/it found no pair in 3 prompts with 3 scored examples under rule 'best_worst' with "
        "noise_margin 0; pairs need two scored completions of one prompt that the rule tells apart: "
        "ask more samples of each prompt, or choose another rule"
    )


def test_an_example_without_a_standard_error_is_counted(
    tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
) -> None:
    """The best of them, c, has one judgement; the margin of b and a is 2."""
    judged = [
        Score(id=id_, value=value, standard_error=None if id_ == "c" else 0.1)
        for id_, value in {"a": -1.0, "b": 1.0, "c": 3.0}.items()
    ]
    inputs = {**scored, "scores": write(tmp_path / "judged" / "scores.jsonl", judged)}
    metrics = BuildPreferences("data", "influence", "best_worst", noise_margin=2.0).run(context(inputs=inputs))
    assert (metrics["pairs"], metrics["mean_margin"], metrics["scores_without_standard_error"]) == (1, 2.0, 1)


def test_noise_margin_without_standard_errors(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    """A signal that knows neither terms nor standard errors."""
    examples = [Example(id=n, instruction=n, response="r", prompt_id="p", completion=n) for n in "ab"]
    scores = [Score(id=id_, value=value, method="a judge") for id_, value in zip("ab", (1.0, -1.0), strict=True)]
    inputs = {
        "examples": write(tmp_path / "data" / "examples.jsonl", examples),
        "scores": write(tmp_path / "influence" / "scores.jsonl", scores),
    }
    with pytest.raises(ValueError, match=r"a noise margin needs standard errors, and none of 2 scores has one \(a"):
        BuildPreferences("data", "influence", noise_margin=1.0).run(context(inputs=inputs))
