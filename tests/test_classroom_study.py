"""The study of the classroom: its settings, its statistics by hand, its checks on runs that differ, and the whole."""

import dataclasses
import functools
import json
import math
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import yaml

from montessori_pl.__main__ import main as program
from montessori_pl.data.records import Example, append_records, read_records

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import classroom_study
    from study import StudyError
    from study.checks import check_cell, overlap
    from study.comparisons import PairedDifference, collapse_limits, collapsed, compare, share_of_headroom
    from study.figures import draw
    from study.kept import keep_result
    from study.measures import ALL_MEASURES, MEASURES, Cell, alarms, content, entropy
    from study.oracle import oracle_examples
    from study.runs import CellRuns, Run, as_argument, copy_stages, manifest, override, shared_stages
    from study.settings import Settings, read_settings
    from study.tables import print_study
finally:
    sys.path.remove(str(BENCHMARKS))

SETTINGS = BENCHMARKS / "classroom_study.yaml"
FRONTIER = BENCHMARKS / "frontier_study.yaml"
TRAJECTORY = BENCHMARKS / "trajectory_study.yaml"
CONSISTENCY = BENCHMARKS / "consistency_study.yaml"
ARMS = ("self_instruct", "montessori", "random")


@pytest.fixture
def settings() -> Settings:
    """The committed settings, restricted to three arms, with one student on each arm's data."""
    restricted = read_settings(SETTINGS).restricted([0, 1], [0, 1, 2], ARMS)
    return dataclasses.replace(restricted, student_seeds=1)


def _example(instruction: str, response: str = "x") -> Example:
    return Example(id=instruction, instruction=instruction, response=response)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compare": [["montessori", "paperr"]]}, "compare names the arm 'paperr'; there are: .*paper, random"),
        ({"compare": [["montessori"]]}, r"compare takes pairs \[arm, rival\], found \['montessori'\]"),
        ({"overdosed": ["strong"]}, "overdosed names the arm 'strong'"),
        ({"baseline": "base"}, "baseline names the arm 'base'"),
        ({"arms": {"a": {"title": "A", "config": "no.yaml"}}}, "arm 'a' has the recipe 'no.yaml'; those that ship are"),
        ({"arms": {"a": {"title": "A"}}}, "arm 'a' lacks config"),
        ({"arms": {"a/b": {"title": "A", "config": "iter1.yaml"}}}, "arm 'a/b' becomes a directory"),
        ({"arms": {"a": {"title": "A", "config": "iter1.yaml", "override": {}}}}, "has no setting override; there are"),
        ({"arms": {"a": {"title": "A", "config": "iter1.yaml", "iterations": 0}}}, "iterations must be at least 1"),
        (
            {"arms": {"a": {"title": "A", "config": "iter1.yaml", "seeds": [7]}}},
            r"arm 'a' has seeds \[7\]; the study has \[100, ",
        ),
        ({"student_seeds": 0}, "student_seeds must be at least 1, found 0"),
        ({"worlds": []}, "worlds must be a list of numbers from 0"),
        ({"pairs": []}, "has no setting pairs"),
    ],
)
def test_mistakes_in_the_settings_are_told_in_a_sentence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SETTINGS.read_text()) | change))
    with pytest.raises(StudyError, match=message):
        read_settings(path)


def test_a_restricted_study_keeps_the_order_and_the_pairs_that_are_left() -> None:
    restricted = read_settings(SETTINGS).restricted([], [5], ["random", "montessori"])
    assert restricted.chosen == ("montessori", "random")
    assert restricted.pairs == [("montessori", "random")]
    assert restricted.seeds == (5,)
    with pytest.raises(StudyError, match="--arms names the arm 'rnd'"):
        restricted.restricted([], [], ["rnd"])


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize("path", [FRONTIER, TRAJECTORY, CONSISTENCY], ids=lambda path: path.stem)
def test_the_frontier_has_a_ceiling(path: Path) -> None:
    settings = read_settings(path)
    assert settings.oracle == "oracle"
    assert settings.restricted([], [], ["montessori"]).oracle == ""


def test_entropy() -> None:
    assert entropy({"sort": 5, "story": 5}) == pytest.approx(math.log(2))
    assert entropy({"sort": 2, "copy": 1, "story": 1}) == pytest.approx(1.5 * math.log(2))
    assert entropy({"sort": 7, "copy": 0}) == 0
    assert entropy({}) == 0


def test_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, so 2 +- 4.30265 / sqrt(3) = 2 +- 2.48414.

    Of the 27 bootstrap samples one has the mean 1 and one the mean 3, each more than 2.5% of them.
    """
    found = PairedDifference.of({0: [1.0, 2.0, 3.0]})
    assert found.mean == 2
    assert found.t == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert found.cells == (1, 3)
    assert found.worlds is None, "one world says nothing about others"


def test_the_bootstrap_over_worlds_draws_worlds() -> None:
    """Two worlds, in one of which the difference is always 0 and in the other always 1, and three seeds.

    Drawn as worlds, both are the same one in half of the cases: the interval is [0, 1]. Drawn as cells, all six come
    from one world with probability 1/64 < 2.5%, and five of six with 6/64: the interval is [1/6, 5/6].
    """
    found = PairedDifference.of({0: [0.0] * 3, 1: [1.0] * 3})
    assert found.worlds == (0, 1)
    assert found.cells == pytest.approx((1 / 6, 5 / 6))


def test_the_bootstrap_over_worlds_draws_seeds_within_them() -> None:
    """Two worlds with the same differences 1, 2, 3: worlds add nothing, so that it agrees with six cells.

    The variance of a mean of six draws from {1, 2, 3} is (2/3)/6, its standard deviation 1/3: about 2 +- 0.65.
    """
    found = PairedDifference.of({0: [1.0, 2.0, 3.0], 1: [1.0, 2.0, 3.0]})
    assert found.worlds == found.cells == pytest.approx((2 - 2 / 3, 2 + 2 / 3))


def test_worlds_count_by_their_cells() -> None:
    found = PairedDifference.of({0: [0.0] * 3, 1: [1.0]})
    assert found.mean == 0.25
    assert found.worlds == (0, 1)


def test_no_interval_from_two_cells() -> None:
    found = PairedDifference.of({0: [0.1], 1: [0.3]})
    assert (found.mean, found.t, found.cells, found.worlds) == (pytest.approx(0.2), None, None, None)


def test_content() -> None:
    """Two families of target skills, of which one is hard, with one right answer of two, and one that is none."""
    families, measures = content([_example("copy a b", "a b"), _example("sort b a", "b a"), _example("hm")])
    assert families == {"copy": 1, "sort": 1, "malformed": 1}
    assert measures == {
        "family entropy": pytest.approx(math.log(3)),
        "target entropy": pytest.approx(math.log(2)),
        "families": 3,
        "target share": pytest.approx(2 / 3),
        "hard share": pytest.approx(1 / 3),
        "malformed share": pytest.approx(1 / 3),
        "right answers": 0.5,
    }


def test_every_measure_stands_in_one_table() -> None:
    names = [one.name for table in MEASURES.values() for one in table]
    assert len(names) == len(set(names))


def _cell(world: int, seed: int, arm: str, loss: float, **changes: Any) -> Cell:
    students = tuple({"reference loss": loss + spread} for spread in (-0.01, 0.01))
    return Cell(world, seed, arm, {"reference loss": loss, "accuracy": 1 - loss}, students, **changes)


def test_arms_are_compared_where_both_finished() -> None:
    cells = [_cell(0, seed, arm, 0.5 + 0.1 * (arm == "random")) for seed in (0, 1) for arm in ARMS]
    cells[-1] = Cell(0, 1, "random", failed="error: no")
    found = {(one.rival, one.measure): one for one in compare(cells, [("montessori", rival) for rival in ARMS])}
    assert found["random", "accuracy"].difference.by_world == {0: (pytest.approx(0.1),)}
    assert found["random", "reference loss"].difference.mean == pytest.approx(-0.1)
    assert found["random", "reference loss"].wins == 1, "a lower loss is better"
    assert found["self_instruct", "accuracy"].difference.by_world == {0: (0, 0)}
    assert found["self_instruct", "accuracy"].wins == 0
    assert ("random", "test loss") not in found, "which no cell has"


def test_collapsed_cells_by_hand() -> None:
    """Self-Instruct's students: .49 and .51 in both seeds, standard deviation .02 / sqrt(3), limit .0231."""
    cells = [_cell(0, seed, "self_instruct", 0.5) for seed in (0, 1)]
    cells += [_cell(0, 0, "random", 0.52), _cell(0, 1, "random", 0.524), _cell(1, 0, "random", 9.0)]
    assert collapse_limits(cells, "self_instruct") == {0: pytest.approx(2 * 0.02 / math.sqrt(3))}
    assert collapsed(cells, "self_instruct") == [cells[3]]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def test_share_of_headroom_by_hand() -> None:
    """Accuracies are 1 - loss: gains of .1, .1, .2 where .4 are possible; the fourth has no oracle."""
    losses = {"base": (0.5, 0.5, 0.5, 0.5), "arm": (0.4, 0.4, 0.3, 0.0), "best": (0.1, 0.1, 0.1)}
    cells = [_cell(0, seed, arm, loss) for arm, values in losses.items() for seed, loss in enumerate(values)]
    share, count = share_of_headroom(cells, "arm", "base", "best")
    assert (share.mean, count) == (pytest.approx(1 / 3), 3)
    assert share.ends == (pytest.approx(0.25), pytest.approx(0.5))
    two, _ = share_of_headroom([cell for cell in cells if cell.seed < 2], "arm", "base", "best")
    assert (two.mean, two.ends) == (pytest.approx(0.25), None)
    assert share_of_headroom(cells, "arm", "base", "none")[1] == 0


@pytest.mark.slow  # the first test that needs the world builds it
def test_the_oracle_knows_what_is_asked_for() -> None:
    examples = oracle_examples(300, world=0, seed=3)
    families, measures = content(examples)
    assert len({one.instruction for one in examples}) == 300
    assert measures["target share"] == measures["right answers"] == 1.0
    assert max(families.values()) - min(families.values()) <= 1
    for role in ("reference", "test"):
        assert not overlap(examples, read_records(classroom_study.resolve(f"classroom/{role}"), Example))
    assert examples == oracle_examples(300, world=0, seed=3)
    assert examples != oracle_examples(300, world=0, seed=4)


def test_an_arm_of_the_oracle_reads_its_data(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.runs.oracle_examples", lambda *numbers: [_example(str(number)) for number in numbers])
    arm = dataclasses.replace(settings.arms["self_instruct"], name="oracle", oracle=True)
    run = CellRuns(settings, tmp_path, 5, 7, "small").run(arm)
    assert [one.instruction for one in read_records(tmp_path / "oracle.jsonl", Example)] == ["48", "5", "7"]
    stage = {"class_path": "RecordedExamples", "init_args": {"source": str(tmp_path / "oracle.jsonl")}}
    assert run.config["recipe"]["training_data"] == stage


def test_overrides_by_their_names_on_the_command_line() -> None:
    config = {
        "teacher": {"class_path": "T"},
        "recipe": {"a": {"class_path": "A", "init_args": {"training": {"lr": 1}, "monitor": None}}},
    }
    override(config, "teacher.beta", 0.5)
    override(config, "recipe.a.training.lr", 2)
    override(config, "recipe.a.monitor.every", 3)
    override(config, "iterations", 2)
    assert config == {
        "iterations": 2,
        "teacher": {"class_path": "T", "init_args": {"beta": 0.5}},
        "recipe": {"a": {"class_path": "A", "init_args": {"training": {"lr": 2}, "monitor": {"every": 3}}}},
    }


def test_values_as_arguments() -> None:
    values = ["signed", True, None, 0.01, {"a": None}, [1]]
    assert list(map(as_argument, values)) == ["signed", "true", "null", "0.01", '{"a": null}', "[1]"]


def _finished_run(runs: CellRuns, arm: str) -> Run:
    """An arm's run with a manifest as the program writes it, for the stages up to `aligned_teacher`."""
    run = runs.run(runs.settings.arms[arm])
    reads = {
        "warmup_data": ([], ["teacher", "generation", "data"]),
        "warmup": (["warmup_data"], ["student"]),
        "probing_data": ([], ["teacher", "generation", "data"]),
        "influence": (["probing_data", "warmup"], ["student", "data"]),
        "preferences": (["probing_data", "influence"], []),
        "aligned_teacher": (["preferences"], ["teacher"]),
    }
    entries = {}
    for name, (inputs, sections) in reads.items():
        (run.path / "iteration_1" / name).mkdir(parents=True)
        (run.path / "iteration_1" / name / "file").write_text(name)
        unread = [] if name == "aligned_teacher" else ["beta", "sft_weight"]
        pinned = {one: _as_pinned(run.config.get(one), unread) for one in ["seed_everything", *sections]}
        entries[f"iteration_1/{name}"] = {
            "settings": {**pinned, f"recipe.{name}": None},
            "inputs": {one: f"iteration_1/{one} 0123" for one in inputs} or {"teacher": "base"},
            "finished": True,
        }
    (run.path / "manifest.json").write_text(json.dumps({"facts": {"wandb_id": "x"}, "stages": entries}))
    return run


def _as_pinned(section: Any, unread: Sequence[str] = ()) -> Any:
    """A section as the manifest keeps it: with `init_args` where the recipe writes none, without what is not read."""
    if not isinstance(section, dict) or "class_path" not in section:
        return section
    return {**section, "init_args": {k: v for k, v in section.get("init_args", {}).items() if k not in unread}}


def test_stages_that_two_arms_do_alike(settings: Settings, tmp_path: Path) -> None:
    runs = CellRuns(settings, tmp_path, world=0, seed=0)
    donor = _finished_run(runs, "montessori")

    def shared(arm: str, other: CellRuns = runs) -> list[str]:
        keys = shared_stages(other.run(settings.arms[arm]).config, donor)
        return [key.removeprefix("iteration_1/") for key in keys]

    up_to_scores = ["warmup_data", "warmup", "probing_data", "influence"]
    assert shared("random") == up_to_scores, "all before the pairs"
    assert shared("overdosed") == [*up_to_scores, "preferences"]
    assert shared("two_iterations") == [*up_to_scores, "preferences", "aligned_teacher"]
    assert shared("self_instruct") == []
    assert shared("no_nll") == [*up_to_scores, "preferences"], "who writes reads no setting of alignment"
    assert shared("montessori", CellRuns(settings, tmp_path, world=0, seed=1)) == []
    assert shared("montessori", CellRuns(settings, tmp_path, world=0, seed=0, counts="small")) == []


def test_a_run_begins_with_copies(settings: Settings, tmp_path: Path) -> None:
    donor = _finished_run(CellRuns(settings, tmp_path, world=0, seed=0), "montessori")
    copy_stages(donor, ["iteration_1/warmup", "iteration_1/influence"], tmp_path / "new")
    assert list(manifest(tmp_path / "new")) == ["iteration_1/warmup", "iteration_1/influence"]
    assert (tmp_path / "new" / "iteration_1" / "influence" / "file").read_text() == "influence"
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["facts"] == {}


def test_a_finished_run_is_not_started_again(settings: Settings, tmp_path: Path) -> None:
    run = _finished_run(CellRuns(settings, tmp_path, world=0, seed=0), "montessori")
    assert not run.finished
    stamp = tmp_path / "montessori.finished"
    stamp.write_text(json.dumps(run.config))
    assert run.finished
    assert run.fit() == ""
    (run.path / "iteration_1" / "warmup" / "file").unlink()
    (run.path / "iteration_1" / "warmup").rmdir()
    assert not run.finished, "somebody wants the stage done again"


def test_further_students_differ_in_their_stages_names_only(settings: Settings, tmp_path: Path) -> None:
    runs = CellRuns(dataclasses.replace(settings, student_seeds=3), tmp_path, world=2, seed=5)
    config = runs.students(settings.arms["two_iterations"]).config
    own = runs.run(settings.arms["two_iterations"]).config
    recipe = config["recipe"]
    assert list(recipe) == ["training_data", "trained_2", "trained_3", "evaluation"]
    assert recipe["trained_2"] == recipe["trained_3"] == own["recipe"]["trained"]
    assert recipe["training_data"]["init_args"]["source"].endswith("iteration_2/training_data/examples.jsonl")
    assert recipe["evaluation"]["init_args"]["students"] == ["trained_2", "trained_3"]
    assert recipe["evaluation"]["init_args"]["evaluators"] == own["recipe"]["evaluation"]["init_args"]["evaluators"]
    sections = ("seed_everything", "student", "data", "generation")
    assert {name: config[name] for name in sections} == {name: own[name] for name in sections}
    assert config["iterations"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def test_overlap_looks_through_case_and_blanks() -> None:
    held_out = [_example("sort a b c"), _example("copy d e")]
    assert overlap([_example("sort a b"), _example("  Sort a  b c")], held_out) == ["  Sort a  b c"]
    assert overlap([_example("sort a b")], held_out) == []


def _write_run(
    root: Path,
    run: str,
    *,
    steps: int = 6,
    settings: int = 0,
    digest: str = "d",
    warm: str = "w",
    pairs: int = 9,
    base: float = 0.5,
    text: str = "hm",
) -> None:
    """A run directory with what `check_cell` reads. What arms do otherwise on purpose has other settings."""
    student = {"examples": 1, "left_out_as_too_long": 0, "steps": steps}
    stages: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str], str]] = {
        "warmup": ({}, {"lr": 0}, {}, warm),
        "influence": ({}, {"lr": 0}, {"student": "iteration_1/warmup 123"}, digest),
        "preferences": ({"pairs": pairs}, {"arm": run}, {}, run),
        "training_data": ({}, {"arm": run}, {"teacher": "base"}, run),
        "trained": (student, {"lr": settings}, {"examples": "iteration_1/training_data 456"}, run),
        "evaluation": ({"students": {"base": {"accuracy": base}}}, {"arm": run}, {}, run),
    }
    if run.startswith("self_instruct"):
        stages = {name: stages[name] for name in ("training_data", "trained", "evaluation")}
    entries = {}
    for name, (metrics, pinned, inputs, content) in stages.items():
        directory = root / run / "iteration_1" / name
        directory.mkdir(parents=True)
        (directory / "metrics.json").write_text(json.dumps(metrics))
        files = {"file": content, "last.ckpt": run}
        entries[f"iteration_1/{name}"] = {"settings": pinned, "inputs": inputs, "files": files, "seconds": 1.0}
    append_records(root / run / "iteration_1" / "training_data" / "examples.jsonl", [_example(text)])
    (root / run / "manifest.json").write_text(json.dumps({"facts": {}, "stages": entries}))


@pytest.fixture
def runs(settings: Settings, tmp_path: Path) -> CellRuns:
    """A cell without runs; only Self-Instruct has a further one, which measures influence."""
    return CellRuns(settings, tmp_path, world=0, seed=0)


def test_a_fair_cell_passes(runs: CellRuns) -> None:
    for run in (*ARMS, "self_instruct.influence"):
        _write_run(runs.directory, run)
    arms = [runs.settings.arms[name] for name in ARMS]
    # In both aligned arms one file of the warm-up and one of the scores.
    found = check_cell(runs, arms, [_example("sort a b")])
    assert found == {"cells": 1, "shared files": 4, "examples": 4}


@pytest.mark.parametrize(
    ("run", "change", "message"),
    [
        ("self_instruct", {"steps": 5}, "differ in the student's steps: .*'montessori': 6.* but 5 in the others"),
        ("random", {"steps": 5}, "differ in the student's steps: {'random': 5}, but 6 in the others"),
        ("random", {"settings": 1}, "differ in the settings of the student's training"),
        ("montessori", {"base": 0.6}, "differ in the base student"),
        ("random", {"digest": "e"}, "differ in what the shared stage iteration_1/influence wrote"),
        ("random", {"warm": "e"}, "differ in the warm student"),
        ("random", {"pairs": 8}, "differ in the number of preference pairs"),
        ("self_instruct", {"text": "Sort a b"}, "self_instruct.influence has read other training data"),
        ("montessori", {"text": "Sort a b"}, "holds 1 reference or test items, for example 'Sort a b'"),
    ],
)
def test_an_unfair_cell_is_refused(runs: CellRuns, run: str, change: dict[str, Any], message: str) -> None:
    for each in (*ARMS, "self_instruct.influence"):
        _write_run(runs.directory, each, **(change if each == run else {}))
    with pytest.raises(StudyError, match=message):
        check_cell(runs, [runs.settings.arms[name] for name in ARMS], [_example("sort a b")])


def test_alarms_of_all_iterations(settings: Settings, tmp_path: Path) -> None:
    for iteration, sentence in ((1, "fewer kinds"), (2, "too many repeats")):
        directory = tmp_path / f"iteration_{iteration}" / "training_data"
        directory.mkdir(parents=True)
        (directory / "metrics.json").write_text(json.dumps({"warnings": [sentence]}))
    assert alarms(tmp_path, settings.arms["two_iterations"]) == {"guard": ["fewer kinds", "too many repeats"]}
    assert alarms(tmp_path, settings.arms["montessori"]) == {"guard": ["fewer kinds"]}


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def _invented(settings: Settings) -> list[Cell]:
    """A cell of each arm in each world and seed, with numbers drawn at random; an overdosed one failed once."""
    rng = random.Random(0)
    cells = []
    for world in settings.worlds:
        for seed in settings.seeds:
            for name in settings.chosen:
                measures = {one: rng.gauss(1 + world / 4, 0.1) for one in ALL_MEASURES}
                bad = 5.0 if name in settings.overdosed else 0.0
                measures |= {"test loss": measures["test loss"] + bad, "accuracy": measures["accuracy"] - bad}
                students = tuple({"reference loss": measures["reference loss"] + spread} for spread in (-0.01, 0.01))
                alarms = {"guard": ["fewer kinds [of requests]"]} if bad and seed else {}
                families = {"copy": 3, "sort": 2, "story": 4, "malformed": 1}
                cells.append(Cell(world, seed, name, measures, students, {}, families, alarms))
    last = max(place for place, cell in enumerate(cells) if cell.arm in settings.overdosed)
    cells[last] = dataclasses.replace(cells[last], measures={}, students=(), alarms={}, failed="error: [no] data")
    return cells


@pytest.mark.slow
def test_everything_is_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_settings(SETTINGS).restricted([0, 1], [0, 1, 2], [])
    cells = _invented(settings)
    print_study(classroom_study.Console(width=200), cells, settings)
    printed = capsys.readouterr().out
    assert "Montessori minus Self-Instruct, 6 cells in 2 worlds" in printed
    assert "guard: fewer kinds [of requests]" in printed
    assert "failed: error: [no] data" in printed
    for path in draw(cells, settings, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4


def forked(command: Sequence[str], *, stdout: IO[str], **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Run the program in a fork of this process, which has imported it already: a start of its own takes seconds."""
    _, module_option, _, *arguments = command
    assert module_option == "-m"

    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            sys.stdout = sys.stderr = stdout
            program(arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            stdout.flush()
            os._exit(status)
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def test_a_cell_that_is_kept_is_not_run_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its world built; the result of other settings is refused, and one with a failed arm is not kept."""
    asked: list[int] = []

    def run(runs: CellRuns) -> tuple[list[Cell], dict[str, int]]:
        asked.append(runs.seed)
        students = ({"accuracy": 0.5}, {"accuracy": 1.0})
        return [Cell(runs.world, runs.seed, "random", {"accuracy": 0.75}, students)], {"cells": 1}

    monkeypatch.setattr(classroom_study, "run_cell", run)
    monkeypatch.setattr(classroom_study, "cell_directory", lambda out, world, seed: out / f"{world}_{seed}")
    one = settings.restricted([5], [0, 1], ["random"])
    study = functools.partial(classroom_study.run_study, out=tmp_path, counts="full", jobs=1, copy=True)
    found = study(one, results=tmp_path / "kept")
    monkeypatch.setattr(classroom_study, "cell_directory", None)
    assert study(one, results=tmp_path / "kept") == found
    assert asked == [0, 1]
    changed = dataclasses.replace(one.arms["random"], overrides={"teacher.beta": 0.5})
    with pytest.raises(StudyError, match=r"seed_0\.json holds the result of other settings"):
        study(dataclasses.replace(one, arms={**one.arms, "random": changed}), results=tmp_path / "kept")
    more = dataclasses.replace(one.arms["random"], seeds=(0,))
    with pytest.raises(StudyError, match=r"seed_1\.json holds"):  # where the arm is not run any more
        study(dataclasses.replace(one, arms={**one.arms, "random": more}), results=tmp_path / "kept")
    path = tmp_path / "kept" / "failed.json"
    keep_result(path, ([Cell(5, 0, "random", failed="why")], {}), {})
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms that run, and one with an override that does not exist, which does not stop them."""
    monkeypatch.setattr("study.runs.subprocess", SimpleNamespace(run=forked, STDOUT=subprocess.STDOUT))
    content = yaml.safe_load(SETTINGS.read_text())
    content |= {"worlds": [0], "seeds": [3], "student_seeds": 2}
    content["arms"]["random"]["overrides"]["recipe.preferences.at_randm"] = True
    for arm in content["arms"].values():
        arm.pop("seeds", None)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    command = ["--settings", str(path), "--counts", "small", "--out", str(tmp_path / "out"), "--arms", *ARMS]
    with pytest.raises(SystemExit) as end:
        classroom_study.main([*command, "--json", str(tmp_path / "s.json"), "--figures", str(tmp_path / "figures")])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "at_randm" in printed[printed.index("FAILED: world 0, seed 3, random: ") :]
    assert "checked in 1 cells: equal numbers of training examples and steps" in printed
    assert "Montessori minus Self-Instruct, 1 cell in 1 world" in (tmp_path / "out" / "study.txt").read_text()
    assert len(list((tmp_path / "figures").iterdir())) == 4
    found = json.loads((tmp_path / "s.json").read_text())
    cells = {cell["arm"]: cell for cell in found["cells"]}
    assert tuple(cells) == ARMS
    assert ALL_MEASURES.keys() <= cells["montessori"]["measures"].keys()
    for name in ("self_instruct", "montessori"):
        first, second = cells[name]["students"]
        assert first != second, "the students have seeds of their own"
        assert cells[name]["measures"]["test loss"] == pytest.approx((first["test loss"] + second["test loss"]) / 2)
        assert sum(cells[name]["families"].values()) == 48
    assert found["checks"]["shared files"] > 0

    # The same runs, after somebody has put a test item among the training data.
    (directory,) = (tmp_path / "out").glob("classroom-0-*/seed_3")
    settings = read_settings(path).restricted([], [], ["montessori"])
    test = read_records(classroom_study.resolve("classroom/test"), Example)
    for run in ("montessori", "montessori.students"):
        append_records(directory / run / "iteration_1" / "training_data" / "examples.jsonl", test[:1])
    with pytest.raises(StudyError, match="holds 1 reference or test items"):
        check_cell(CellRuns(settings, directory, 0, 3, "small"), [settings.arms["montessori"]], test)
