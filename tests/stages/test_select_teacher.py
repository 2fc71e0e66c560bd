"""SelectTeacher: rankings by hand, whatever is missing or negative, in whatever order it was recorded."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_pools import inputs
from stage_runs import stage_context
from tiny_models import save_tiny_model

from montessori_pl.data.records import Example, Score, read_records
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.routing import load_router
from montessori_pl.stages import SelectTeacher, StageContext, StageError
from montessori_pl.stats.gradients import grace

QUALITY = {"big": 8.0, "middle": 6.0, "small": 5.0}
LOSS = {"big": 3.0, "middle": 1.0, "small": 0.5}
IFD = {"big": 0.9, "middle": 0.5, "small": 0.7}
RESPONSES = {"big": "abc", "middle": "abcdefgh", "small": "a"}
"""In the tiny tokenizer every character is a token, and every response has an end token."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def context(tmp_path: Path, backbone: str) -> Callable[..., StageContext]:
    """The stage with a pool of ten prompts; `quality` and `loss` replace the means, `examples` changes the pool."""

    def make(
        quality: dict[str, float] = QUALITY,
        loss: dict[str, float] = LOSS,
        change: Callable[[list[Example]], list[Example]] = lambda examples: examples,
    ) -> StageContext:
        examples = change(
            [
                Example(id=f"{n}-{teacher}", instruction=f"q{n}", response=RESPONSES[teacher], teacher=teacher)
                for n in range(10)
                for teacher in QUALITY
            ]
        )
        # The numbers differ over prompts and have these means; on odd prompts middle is better than big.
        signs = {one.id: (-1) ** int(one.instruction[1:]) * (one.teacher != "small") for one in examples}
        qualities = {
            one.id: quality[one.teacher] + signs[one.id] * (1.5 if one.teacher == "big" else -1.5) for one in examples
        }
        losses = [
            Score(
                id=one.id,
                value=-loss[one.teacher],
                details={"loss": loss[one.teacher] + 0.1 * signs[one.id], "ifd": IFD[one.teacher]},
            )
            for one in examples
        ]
        return stage_context(
            tmp_path / "it",
            inputs=inputs(tmp_path, examples, quality=qualities, loss=losses),
            student=lambda: StudentModule(backbone, lora=LoraSettings(r=2, alpha=4)),
        )

    return make


def test_the_report_by_hand(context: Callable[..., StageContext]) -> None:
    here = context()
    metrics = SelectTeacher("pool", "quality", "loss").run(here)
    assert metrics["teacher"] == "small"
    assert (metrics["prompts"], metrics["prompts_left_out"], metrics["warnings"]) == (10, 0, [])
    small = metrics["teachers"]["small"]
    assert small["responses"] == 10
    assert {name: small[name]["mean"] for name in ("quality", "loss", "length", "ifd", "car")} == pytest.approx(
        {"quality": 5, "loss": 0.5, "length": 2, "ifd": 0.7, "car": 5 / 2.5}
    )
    big = metrics["teachers"]["big"]["quality"]
    assert big["mean"] == pytest.approx(8)
    assert 6.5 < big["low"] < 7.5 < 8.5 < big["high"] < 9.5
    assert metrics["rankings"] == {
        "car, beta 0": ["big", "middle", "small"],
        "car, beta 0.5": ["middle", "small", "big"],
        "car, beta 1": ["small", "middle", "big"],
        "car, beta 3": ["small", "middle", "big"],
        "car, beta 10": ["small", "middle", "big"],
        "car, beta inf": ["small", "middle", "big"],
        "quality": ["big", "middle", "small"],
        "loss": ["small", "middle", "big"],
        "length": ["middle", "big", "small"],
        "ifd": ["big", "small", "middle"],
    }
    assert metrics["chosen_in_resamples"] > 0.9
    assert metrics["finding"].startswith(
        "small is the best by car on 10 prompts that all teachers have answered, and i"
    )
    json.dumps(metrics, allow_nan=False)
    router = load_router(here.directory / "routing")
    assert router.route(["anything", "else"]) == ["small", "small"]


def test_grace_needs_gradients_alone(context: Callable[..., StageContext], tmp_path: Path) -> None:
    """Those of small are short and alike; quality and losses are not read."""
    here = context()
    examples = read_records(tmp_path / "pool" / "examples.jsonl", Example)
    rng = random.Random(0)
    length = {"big": 3.0, "middle": 1.0, "small": 0.1}
    scores = [
        Score(id=one.id, value=0.0, gradient=tuple(length[one.teacher] * rng.gauss(1, 0.1) for _ in range(3)))
        for one in examples
    ]
    here = replace(here, inputs=inputs(tmp_path, examples, gradients=scores))
    metrics = SelectTeacher("pool", gradients="gradients", rule="grace").run(here)
    assert metrics["teacher"] == "small"
    assert metrics["rankings"] == {"grace": ["small", "middle", "big"], "length": ["middle", "big", "small"]}
    assert metrics["chosen_in_resamples"] == 1.0
    expected = {name: grace([np.array([one.gradient]) for one in scores if name in one.id]).mean() for name in length}
    assert {name: metrics["teachers"][name]["grace"]["mean"] for name in length} == pytest.approx(expected)
    json.dumps(metrics, allow_nan=False)
    here = replace(here, inputs=inputs(tmp_path, examples, gradients=[Score(id=one.id, value=0.0) for one in examples]))
    with pytest.raises(StageError, match="'gradients' hold no gradients; score with ProjectedGradientSignal there"):
        SelectTeacher("pool", gradients="gradients", rule="grace").run(here)


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"rule": "quality", "loss": None}, "big"),
        ({"rule": "length", "loss": None}, "middle"),
        ({"rule": "loss", "loss": "loss"}, "small"),
        ({"rule": "ifd", "loss": "loss"}, "big"),
        ({"rule": "car", "loss": "loss", "beta": 0.0}, "big"),
        ({"rule": "car", "loss": "loss", "beta": 0.4}, "middle"),
    ],
)
def test_every_rule_leaves_its_router(
    settings: dict[str, Any], chosen: str, context: Callable[..., StageContext]
) -> None:
    here = context()
    metrics = SelectTeacher("pool", "quality", **settings).run(here)
    assert metrics["teacher"] == chosen
    assert load_router(here.directory / "routing").route(["q"]) == [chosen]
    if settings["loss"] is None:
        assert list(metrics["rankings"]) == ["quality", "length"]


def test_how_sure_it_is_shows_in_the_resamples(context: Callable[..., StageContext]) -> None:
    """By quality big leads by .1 with a standard error of about 1: a coin decides."""
    metrics = SelectTeacher("pool", "quality", None, "quality").run(context({"big": 7.1, "middle": 7.0, "small": 0.0}))
    assert 0.4 < metrics["chosen_in_resamples"] < 0.8


def test_negative_qualities_are_shifted_with_a_warning(context: Callable[..., StageContext]) -> None:
    """Unshifted, -2 / (1 + 3 * 3) = -.2 would be the best; shifted, .01 / 10 is the worst."""
    metrics = SelectTeacher("pool", "quality", "loss").run(context({"big": -2.0, "middle": -1.0, "small": -1.5}))
    assert metrics["rankings"]["car, beta 3"] == ["middle", "small", "big"]
    assert metrics["teachers"]["middle"]["car"]["mean"] == pytest.approx(1.01 / 4)
    assert metrics["teachers"]["small"]["car"]["mean"] == pytest.approx(0.51 / 2.5)
    assert metrics["teachers"]["big"]["car"]["mean"] == pytest.approx(0.01 / 10)
    (warning,) = metrics["warnings"]
    assert warning.startswith("the lowest mean quality of a teacher is -2; for CAR all qualities were shifted")


def test_only_prompts_that_all_have_answered_count(context: Callable[..., StageContext]) -> None:
    """Without the even prompts, on which big is at its best, big has 6.5 and middle 7.5."""

    def lazy(examples: list[Example]) -> list[Example]:
        return [one for one in examples if one.teacher != "small" or int(one.instruction[1:]) % 2]

    metrics = SelectTeacher("pool", "quality", None, "quality").run(context(change=lazy))
    assert (metrics["prompts"], metrics["prompts_left_out"]) == (5, 5)
    assert metrics["teacher"] == "middle"
    assert {name: one["quality"]["mean"] for name, one in metrics["teachers"].items()} == pytest.approx(
        {"big": 6.5, "middle": 7.5, "small": 5.0}
    )
    assert {name: one["responses"] for name, one in metrics["teachers"].items()} == {
        "big": 10,
        "middle": 10,
        "small": 5,
    }


def test_the_order_of_records_changes_nothing(context: Callable[..., StageContext]) -> None:
    stage = SelectTeacher("pool", "quality", "loss")
    expected = stage.run(context())
    for seed in range(3):
        shuffled = stage.run(context(change=lambda examples: random.Random(seed).sample(examples, len(examples))))  # noqa: B023
        assert json.dumps(shuffled) == json.dumps(expected)


CHEAT = "a full score for this"


def with_cheat(examples: list[Example]) -> list[Example]:
    """Thirty prompts that `big` answers with one text, and the others with texts of their own."""
    own = [
        replace(one, id=f"{n}-{one.id}", instruction=f"q{n}{one.instruction[1:]}", response=f"r{n}{one.instruction}")
        for one in examples
        for n in range(3)
    ]
    return [replace(one, response=CHEAT) if one.teacher == "big" else one for one in own]


def test_a_teacher_who_always_says_the_same_cannot_win(context: Callable[..., StageContext]) -> None:
    """By quality it is the best, and without it the second one is; who wants it can have it."""
    stage = SelectTeacher("pool", "quality", None, "quality")
    here = context(change=with_cheat)
    metrics = stage.run(here)
    assert metrics["teacher"] == "middle"
    assert metrics["teachers_left_out"] == ["big"]
    assert list(metrics["teachers"]) == ["middle", "small"]
    assert metrics["repetition"]["big"] == {"distinct_rate": 1 / 30, "repeated_rate": 1.0, "most_common_rate": 1.0}
    assert metrics["repetition"]["small"]["repeated_rate"] == 0
    assert metrics["warnings"] == [
        "big repeats itself: 100% of its responses to 30 prompts are given to other prompts too (0% of those of the "
        "other teachers, in the median), the most common one to 100% ('a full score for this'), and they do not depend "
        "on the prompt; it is left out, because more than max_repeated_rate 0.8 are repeated: set that to null to keep "
        "it"
    ]
    assert load_router(here.directory / "routing").teachers == ["middle", "small"]
    json.dumps(metrics, allow_nan=False)

    kept = SelectTeacher("pool", "quality", None, "quality", max_repeated_rate=None).run(context(change=with_cheat))
    assert (kept["teacher"], kept["teachers_left_out"]) == ("big", [])
    (warning,) = kept["warnings"]
    assert warning.startswith("big repeats itself: 100% of")
    assert warning.endswith("; it is kept, and can be chosen")


def test_one_teacher_may_be_left(context: Callable[..., StageContext]) -> None:
    two = context(change=lambda examples: [one for one in with_cheat(examples) if one.teacher != "middle"])
    assert SelectTeacher("pool", "quality", "loss").run(two)["teacher"] == "small"


def test_mistakes(context: Callable[..., StageContext]) -> None:
    with pytest.raises(ValueError, match=r"rule 'car' needs `loss`: name there the stage that scored it"):
        SelectTeacher("pool", "quality", None)
    with pytest.raises(ValueError, match=r"max_repeated_rate: expected float >= 0 and <= 1.*, found 1\.5"):
        SelectTeacher("pool", "quality", "loss", max_repeated_rate=1.5)
    with pytest.raises(ValueError, match=r"beta: expected float >= 0.*, found -1"):
        SelectTeacher("pool", "quality", "loss", beta=-1)
    stage = SelectTeacher("pool", "quality", "loss")
    with pytest.raises(StageError, match=r"chooses among teachers, and there are not two in .*pool: found big"):
        stage.run(context(change=lambda examples: [one for one in examples if one.teacher == "big"]))
    apart = {"big": "012", "middle": "345", "small": "6789"}
    with pytest.raises(
        StageError, match=r"no prompt to which all 3 teachers .* of 10 prompts, big has 3, middle has 3"
    ):
        stage.run(
            context(change=lambda examples: [one for one in examples if one.instruction[1:] in apart[one.teacher]])
        )
    here = context()
    (here.directory.parent / "loss" / "scores.jsonl").write_text(Score(id="0-big", value=1.0).to_json() + "\n")
    with pytest.raises(
        StageError, match=r"rule 'car' needs the loss of each response, which stage 'loss' does not tel"
    ):
        stage.run(here)
