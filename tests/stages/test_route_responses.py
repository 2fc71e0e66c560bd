"""RouteResponses: one response for each instruction, by whom the router names or by the next best."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from recorded_pools import inputs
from stage_runs import stage_context

from montessori_pl.data.records import Example, read_records
from montessori_pl.routing import ConstantRouter, RouteLimits
from montessori_pl.stages import RouteResponses, StageContext, StageError


def answer(id_: str, instruction: str, teacher: str, system: str = "") -> Example:
    return Example(id=id_, instruction=instruction, response=f"{teacher}!", teacher=teacher, system=system)


POOL = [
    answer("1", "z", "b"),
    answer("2", "z", "a"),
    answer("3", "y", "b"),
    answer("4", "y", "c"),
    answer("5", "x", "c"),
    answer("6", "x", "a"),
    answer("7", "x", "a"),
    answer("8", "x", "a", system="be brief"),
    answer("9", "w", "stranger"),
]


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., StageContext]:
    """A pool and a router that likes a best, then b, then c."""

    def make(examples: Sequence[Example] = POOL) -> StageContext:
        (tmp_path / "router" / "routing").mkdir(parents=True, exist_ok=True)
        ConstantRouter(["c", "a", "b"], [1.0, 3.0, 2.0]).save(tmp_path / "router" / "routing")
        found = inputs(tmp_path, examples)
        return stage_context(tmp_path / "it", inputs={**found, "routing": tmp_path / "router"})

    return make


def picked(context: StageContext) -> list[str]:
    return [example.id for example in read_records(context.directory / "examples.jsonl", Example)]


def test_the_next_best_answers_where_the_best_has_not(context: Callable[..., StageContext]) -> None:
    here = context()
    metrics = RouteResponses("pool", "router").run(here)
    assert picked(here) == ["2", "3", "6", "8"]
    assert metrics["accepted"] == 4
    assert metrics["rejected"] == {"no answer by a teacher of the router": 1}
    assert metrics["shares"] == {"a": 0.75, "b": 0.25}
    assert metrics["not_answered_by_the_best"] == 1
    before = (here.directory / "examples.jsonl").read_bytes()
    assert RouteResponses("pool", "router").run(here) == metrics
    assert (here.directory / "examples.jsonl").read_bytes() == before


def test_limits_hold_among_those_who_have_answered(context: Callable[..., StageContext]) -> None:
    here = context()
    metrics = RouteResponses("pool", "router", RouteLimits(max_share={"a": 0.25})).run(here)
    assert picked(here) == ["1", "3", "5", "8"], "only a has answered the last one, so that a has no room for others"
    assert metrics["shares"] == {"b": 0.5, "c": 0.25, "a": 0.25}
    assert metrics["not_answered_by_the_best"] == 1


def test_mistakes(context: Callable[..., StageContext]) -> None:
    strangers = [answer("1", "q", "x"), answer("2", "q", "y")]
    with pytest.raises(StageError, match=r"stage 'router' chooses among c, a, b, but the responses are by x, y"):
        RouteResponses("pool", "router").run(context(strangers))
    with pytest.raises(StageError, match=r"iteration_1/it: no task of 4 prompts keeps the limits"):
        RouteResponses("pool", "router", RouteLimits(max_share={"a": 0.0})).run(context())
