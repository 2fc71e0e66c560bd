"""Time that is left: by hand, and what a run says of it while it goes on, is stopped, and goes on again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.time_left import RecipeClock, StageTime, TimeLeft, time_left
from montessori_pl.run_directory.progress import Progress
from montessori_pl.run_directory.run_directory import RunDirectory

AHEAD = [
    StageTime("training", "TrainStudent", planned=100),
    StageTime("influence", "ScoreExamples", planned=40),
]


def test_before_anything_has_run_the_plan_is_all_there_is() -> None:
    assert time_left(AHEAD) == TimeLeft(140, unknown=0, learned=False)


def test_stages_of_a_class_are_wrong_by_a_like_factor() -> None:
    behind = [StageTime("warmup", "TrainStudent", planned=10, spent=30, share=1.0)]
    assert time_left([*behind, AHEAD[0]]).seconds == 300
    assert time_left([*behind, *AHEAD]).seconds == 300 + 3 * 40, "nothing else is known of the other class"


def test_a_class_in_the_middle_stands_for_those_that_have_not_been_seen() -> None:
    behind = [
        StageTime("writing", "Synthesize", planned=10, spent=10, share=1.0),
        StageTime("warmup", "TrainStudent", planned=10, spent=20, share=1.0),
        StageTime("scores", "Signal", planned=10, spent=900, share=1.0),
    ]
    assert time_left([*behind, AHEAD[1]]).seconds == 2 * 40


def test_the_same_stage_of_an_earlier_iteration_tells_most() -> None:
    behind = [
        StageTime("warmup", "TrainStudent", planned=10, spent=50, share=1.0),
        StageTime("training", "TrainStudent", planned=50, spent=100, share=1.0),
    ]
    assert time_left([*behind, AHEAD[0]]).seconds == 200


def test_a_stage_under_way_goes_on_at_its_own_pace_and_tells_of_its_class() -> None:
    under_way = StageTime("warmup", "TrainStudent", planned=10, spent=15, share=0.25)
    assert time_left([under_way]) == TimeLeft(45, unknown=0, learned=True)
    assert time_left([under_way, AHEAD[0]]).seconds == 45 + 100 * 15 / 2.5


def test_what_a_stage_does_first_says_nothing_of_its_pace() -> None:
    """Loading a model for a minute is no twentieth of the work; what was spent counts against the plan."""
    begun = StageTime("training", "TrainStudent", planned=100, spent=60, share=0.01)
    assert time_left([begun]) == TimeLeft(40, unknown=0, learned=False)
    assert time_left([StageTime("training", "TrainStudent", planned=100, spent=160)]).seconds == 0


def test_without_a_plan_a_stage_takes_as_long_as_it_did_before() -> None:
    plugin = StageTime("mine", "Mine", planned=None)
    assert time_left([plugin]) == TimeLeft(0, unknown=1, learned=False)
    before = [StageTime("mine", "Mine", None, spent=spent, share=1.0) for spent in (10, 30)]
    assert time_left([*before, plugin]) == TimeLeft(20, unknown=0, learned=False)


def test_what_is_done_or_takes_nothing_is_not_left() -> None:
    done = StageTime("training", "TrainStudent", planned=100, spent=10, share=1.0)
    moves_records = StageTime("preferences", "BuildPreferences", planned=0.0, spent=0.2, share=1.0)
    assert time_left([done, moves_records]) == TimeLeft(0, unknown=0, learned=True)


STEPS = cast("list[Step]", [SimpleNamespace(key=f"iteration_1/{name}", name=name, stage=object()) for name in "abc"])


@contextmanager
def run_of(root: Path) -> Iterator[RunDirectory]:
    """A run that can be written."""
    run = RunDirectory(root)
    with run.locked():
        yield run


def finish(run: RunDirectory, key: str, seconds: float, **metrics: Any) -> None:
    """Let a stage take so long and end."""
    run.begin(key, {}, {})
    run.add_seconds(key, seconds)
    path = run.directory(key) / "metrics.json"
    path.write_text(json.dumps(metrics))
    run.finish(key, [path])


def test_a_clock_counts_what_all_sessions_took_and_cost(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        clock = RecipeClock(run, STEPS, {"iteration_1/a": 10.0, "iteration_1/b": 20.0, "iteration_1/c": 60.0})
        assert clock.after() == "about 90 s left by the plan"
        finish(run, "iteration_1/a", 20.0, cost=1.25)
        assert clock.after() == "about 2.7 min left"
        run.begin("iteration_1/b", {}, {})
        run.add_seconds("iteration_1/b", 30.0)
        progress = Progress()
        progress.start(8, done=6, cost=0.5)
        assert clock.during("iteration_1/b", progress) == "recipe: 50 s so far, about 2.2 min left, $1.75"
    with run_of(tmp_path) as run:
        # It was killed, and goes on; what was planned is kept.
        clock = RecipeClock(run, STEPS, {})
        assert clock.during("iteration_1/b", progress) == "recipe: 50 s so far, about 2.2 min left, $1.75"
        finish(run, "iteration_1/b", 10.0)
        assert clock.after() == "about 2.0 min left"
        finish(run, "iteration_1/c", 100.0)
        assert clock.after() == ""


def test_a_stage_of_which_nothing_is_known_is_counted_apart(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        clock = RecipeClock(run, STEPS, {"iteration_1/a": 10.0})
        assert clock.after() == "about 10 s and 2 stages of unknown length left by the plan"
        finish(run, "iteration_1/a", 10.0)
        assert clock.after() == "2 stages of unknown length left"
