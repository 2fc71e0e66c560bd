"""The study of the classroom: its statistics by hand, its checks on runs that differ, and once the whole of it."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from montessori_pl.records import Example, append_records, read_records

PATH = Path(__file__).parents[1] / "benchmarks" / "classroom_study.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classroom_study", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["classroom_study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


study = _load()


def _example(instruction: str, response: str = "x") -> Example:
    return Example(id=instruction, instruction=instruction, response=response)


def test_entropy() -> None:
    assert study.entropy({"sort": 5, "story": 5}) == pytest.approx(math.log(2))
    assert study.entropy({"sort": 2, "copy": 1, "story": 1}) == pytest.approx(1.5 * math.log(2))
    assert study.entropy({"sort": 7}) == 0
    assert study.entropy({}) == 0


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (7, 2.36462), (10, 2.22814), (200, 1.97190)]
)
def test_t_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert study.t_quantile(degrees) == pytest.approx(quantile, rel=1e-5)


def test_interval_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, so 2 +- 4.30265 / sqrt(3) = 2 +- 2.48414.

    Of the 27 bootstrap samples one has the mean 1 and one the mean 3, each more than 2.5% of them.
    """
    found = study.interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.t == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert found.bootstrap == (1, 3)


def test_no_interval_from_two_cells() -> None:
    found = study.interval([0.1, 0.3])
    assert (found.mean, found.t, found.bootstrap) == (pytest.approx(0.2), None, None)


def test_overlap_looks_through_case_and_blanks() -> None:
    held_out = [_example("sort a b c"), _example("copy d e")]
    assert study.overlap([_example("sort a b"), _example("  Sort a  b c")], held_out) == ["  Sort a  b c"]
    assert study.overlap([_example("sort a b")], held_out) == []


def test_content() -> None:
    """Two families of target skills with one right answer of two, and one that is none."""
    families, measures = study.content([_example("copy a b", "a b"), _example("sort b a", "b a"), _example("hm")])
    assert families == {"copy": 1, "sort": 1, "unknown": 1}
    assert measures == {
        "family entropy": pytest.approx(math.log(3)),
        "families": 3,
        "target share": pytest.approx(2 / 3),
        "right answers": 0.5,
    }


def test_shared_stages_are_those_before_the_pairs() -> None:
    assert study.shared_stages() == ["warmup_data", "warmup", "probing_data", "influence"]


def test_every_measure_stands_in_one_table() -> None:
    names = [one.name for table in study.MEASURES.values() for one in table]
    assert len(names) == len(set(names))


ARMS = ("montessori", "self_instruct", "random")


def _write_run(root: Path, arm: str, steps: int = 6, settings: int = 0, digest: str = "d", text: str = "hm") -> None:
    """A run directory with what `check_cell` reads."""
    stages: dict[str, Any] = {} if arm == "self_instruct" else {"influence": {}}
    stages |= {
        "training_data": {"accepted": 1},
        "trained": {"examples": 1, "left_out_as_too_long": 0, "steps": steps},
        "evaluation": {"students": {"base": {"accuracy": 0.5}}},
    }
    entries = {}
    for name, metrics in stages.items():
        directory = root / arm / "iteration_1" / name
        directory.mkdir(parents=True)
        (directory / "metrics.json").write_text(json.dumps(metrics))
        files = {"scores.jsonl": digest, "last.ckpt": arm}
        entries[f"iteration_1/{name}"] = {"settings": {"lr": settings}, "files": files, "seconds": 1.0}
    append_records(root / arm / "iteration_1" / "training_data" / "examples.jsonl", [_example(text)])
    (root / arm / "manifest.json").write_text(json.dumps({"facts": {}, "stages": entries}))


def test_a_fair_cell_passes(tmp_path: Path) -> None:
    for arm in ARMS:
        _write_run(tmp_path, arm)
    held_out = [_example("sort a b")]
    assert study.check_cell(tmp_path, ARMS, held_out) == {"cells": 1, "shared files": 2, "examples": 3}


@pytest.mark.parametrize(
    ("arm", "change", "message"),
    [
        ("self_instruct", {"steps": 5}, "differ in the student's steps: .*'self_instruct': 5"),
        ("random", {"settings": 1}, "differ in the settings of the student's training"),
        ("random", {"digest": "e"}, "differ in what the shared stage influence wrote"),
        ("self_instruct", {"text": "Sort a b"}, "holds 1 reference or test items, for example 'Sort a b'"),
    ],
)
def test_an_unfair_cell_is_refused(tmp_path: Path, arm: str, change: dict[str, Any], message: str) -> None:
    for each in ARMS:
        _write_run(tmp_path, each, **(change if each == arm else {}))
    with pytest.raises(study.StudyError, match=message):
        study.check_cell(tmp_path, ARMS, [_example("sort a b")])


def test_finished_stages_are_copied_once(tmp_path: Path) -> None:
    _write_run(tmp_path, "montessori")
    source, target = tmp_path / "montessori", tmp_path / "random"
    study.copy_stages(source, target, ["influence", "training_data"])
    assert list(study.manifest(target)) == ["influence", "training_data"]
    copied = (target / "iteration_1" / "training_data" / "examples.jsonl").read_bytes()
    assert copied == (source / "iteration_1" / "training_data" / "examples.jsonl").read_bytes()
    study.copy_stages(source, target, ["trained"])
    assert list(study.manifest(target)) == ["influence", "training_data"]


def test_cells_with_a_failed_arm_are_left_out() -> None:
    cells = [study.Cell(0, seed, arm, {"accuracy": seed + (arm == "random")}) for seed in (0, 1) for arm in ARMS]
    cells[-1] = study.Cell(0, 1, "random", failed="error: no")
    groups = study.complete(cells)
    assert [group["random"].seed for group in groups] == [0]
    found = study.comparisons(groups)
    assert found["accuracy"]["random"].differences == (-1,)
    assert found["accuracy"]["self_instruct"].differences == (0,)
    assert "test loss" not in found


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the first test that needs the world builds it
def test_the_whole_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--seeds", "3", "--counts", "small", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "s.json")]
    study.main(command)
    printed = capsys.readouterr().out
    assert "no interval below 3 cells" in printed
    assert "checked in 1 cells: equal numbers of training examples and steps" in printed
    content = json.loads((tmp_path / "s.json").read_text())
    cells = {cell["arm"]: cell for cell in content["cells"]}
    assert tuple(cells) == ARMS
    names = {one.name for table in study.MEASURES.values() for one in table}
    assert names <= cells["montessori"]["measures"].keys() == cells["random"]["measures"].keys()
    assert all(sum(cell["families"].values()) == 48 for cell in cells.values())
    assert content["checks"]["shared files"] > 0
    (directory,) = (tmp_path / "out").glob("classroom-0-*/seed_3")
    assert {path.name for path in directory.iterdir() if path.is_dir()} == {*ARMS, study.UNALIGNED}

    # The same runs, after somebody has put a test item among the training data.
    test = read_records(study.resolve("classroom/test"), Example)
    append_records(directory / "self_instruct" / "iteration_1" / "training_data" / "examples.jsonl", test[:1])
    with pytest.raises(study.StudyError, match="holds 1 reference or test items"):
        study.check_cell(directory, ARMS, test)
