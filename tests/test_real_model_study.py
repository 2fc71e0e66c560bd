"""The study of the real model: its arms, its checks, its intervals by hand, and the whole with a tiny model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_classroom_study import forked
from tiny_models import save_tiny_model

from montessori_pl.stages import SelfConsistency
from montessori_pl.worlds.gym import teacher

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import real_model_study as study
    from study import StudyError
finally:
    sys.path.remove(str(BENCHMARKS))


def result(right: list[bool], **measures: float) -> study.Result:
    """With as many examples and steps as any other."""
    return study.Result(right, {"examples": 8.0, "steps": 1.0, **measures})


def test_a_difference_is_paired_by_item_and_seed() -> None:
    """Two seeds on which an arm answers the same three of four more items: no draw of seeds can change that."""
    theirs = [result([False, False, False, True])] * 2
    ours = [result([True, True, True, True])] * 2
    found = study.accuracy_interval(ours, theirs)
    assert found.mean == 0.75
    assert found.ends is not None
    assert 0 < found.ends[0] < 0.75 < found.ends[1] <= 1
    assert study.accuracy_interval(theirs, theirs).ends == (0.0, 0.0)


def test_students_that_learned_unequally_are_not_compared() -> None:
    with pytest.raises(StudyError, match=r"differ in the number of their steps: \[1.0, 2.0\]"):
        study.check({"one": {1: result([True])}, "other": {1: result([True], steps=2.0)}})
    with pytest.raises(StudyError, match="different numbers of test items"):
        study.check({"one": {1: result([True])}, "other": {1: result([True, False])}})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_study_with_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is kept is not run again, even where the runs are gone, nor mistaken for that of other settings."""
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    # The programs are forks of this process, in which a second thread of OpenMP would wait for ever.
    monkeypatch.setattr(teacher, "NUM_THREADS", 1)
    monkeypatch.setattr(teacher, "NUM_STEPS", 8)
    # Nor does a model of random weights ever answer twice in the same way.
    monkeypatch.setattr(SelfConsistency, "vote", lambda self, answers: answers[0])
    model = save_tiny_model(tmp_path / "model", max_position_embeddings=512)
    small = {
        "num_threads": 1,  # two would wait for each other, and for the other tests
        "student.backbone": model,
        "teacher.backbone": f"gym-easy/teacher:{model}",
        "data.reference": "gym-easy/reference[:6]",
        "data.test": "gym-easy/test[:12]",
        "recipe.warmup_data.num_examples": 8,
        "recipe.probing_data.num_prompts": 8,
        "recipe.training_data.num_examples": 8,
        "recipe.candidates.num_examples": 16,
        "recipe.self_instruct_data.num_examples": 8,
        "recipe.aligned_teacher.monitor.num_samples": 4,
    }
    settings = yaml.safe_load(study.SETTINGS.read_text(encoding="utf-8"))
    for rival, number in {"self_instruct_agreed": 8, "active_agreed": 2, "active_selected": 4}.items():
        settings["others"][rival]["overrides"]["recipe.candidates.num_examples"] = number  # in each iteration
    monkeypatch.setattr(study, "SETTINGS", tmp_path / "settings.yaml")
    study.SETTINGS.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    options = [part for name, value in small.items() for part in ("--set", name, yaml.safe_dump(value).split("\n")[0])]
    out = tmp_path / "study"
    command = [
        "real_model_study.py",
        "--seeds",
        "1",
        "--out",
        str(out),
        "--results",
        str(tmp_path / "results"),
        *options,
    ]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("study.runs.subprocess", SimpleNamespace(run=forked, STDOUT=subprocess.STDOUT))
    study.main()
    shown = capsys.readouterr().out
    arms = ("Self-Instruct", "Montessori", "random pairs", "paper's rule", "Magpie", "+ selection")
    assert all(
        arm in shown for arm in (*arms, "Self-Instruct + agreement", "active + agreement", "agreement + selection")
    )
    assert (out / "study.txt").read_text() == shown
    for rival in ("random", "paper", "magpie", "selection", "self_instruct_agreed", "active_selected", "agreed"):
        kept = json.loads((tmp_path / "results" / "seed_1" / f"{rival}.json").read_text())
        assert "trained" in kept["seconds"]
        assert "self_instruct" not in kept["seconds"], "it is taken over from the main run"
    shutil.rmtree(out)
    study.main()
    assert capsys.readouterr().out == shown
    assert [path.name for path in out.iterdir()] == ["study.txt"]
    command += ["--set", "recipe.trained.training.lr", "0.002"]
    with pytest.raises(SystemExit, match=r"main\.json holds the result of other settings"):
        study.main()
