"""The command `report`: where the page and the figures lie, and mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hand_made_runs import HOSTILE, HandMadeRun, write_run

from montessori_pl.__main__ import main
from montessori_pl.report.page.page import run_figures
from montessori_pl.run_directory.fingerprint import with_content
from montessori_pl.run_directory.run_directory import RunDirectory

NAMES = {"students-accuracy", "scores-1", "timeline", "rejections-iteration_1-warmup_data"}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence with which a mistaken `report` ends."""
    with pytest.raises(SystemExit) as end:
        main(["report", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ").strip()


def test_page_lies_in_the_run_or_here(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("one"))
    write_run(Path("two"), seed=2, lr=1, warning="it narrows")
    main(["report", "one"])
    assert re.fullmatch(r"one/report\.html: 0\.\d\d MB on 1 run\n", capsys.readouterr().out)
    main(["report", "one", "two", "--baseline", "two"])
    assert re.fullmatch(r"report\.html: 0\.\d\d MB on 2 runs\n", capsys.readouterr().out)
    main(["verify", "one"])
    assert "all that one vouches for is there" in capsys.readouterr().out
    page = Path("report.html").read_text()
    assert "one and two are not told apart in accuracy" in page
    assert "Runs with warnings, which stand with each of them: two (1)." in page
    assert "<li>iteration_1/training_data: it narrows</li>" in page
    main(["report", "one", "two", "--baseline", "two"])
    assert Path("report.html").read_text() == page, "the same runs give the same page"


def test_another_student() -> None:
    """Of the warm one, 2 of 8 answers are other ones than the base's, one better and one worse."""
    write_run(Path("run"))
    main(["report", "run", "--student", "warmup"])
    assert "warmup and base are not told apart in accuracy: +0, 95% interval" in Path("run/report.html").read_text()


def test_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in letters that the font does not have, and with what Matplotlib would read, are no problem.

    One figure of each section is drawn: each takes a good part of a second.
    """
    monkeypatch.setattr(
        "montessori_pl.cli.report.run_figures",
        lambda run: {section: [one for one in some if one.name in NAMES] for section, some in run_figures(run).items()},
    )
    write_run(Path("odd $\\frac"), text=HOSTILE[:300] + "$\\frac 漢字", count=4)
    main(["report", "odd $\\frac", "--figures", "figures"])
    names = {path.stem for path in Path("figures").glob("*.png")}
    assert names == {path.stem for path in Path("figures").glob("*.csv")}
    assert names == NAMES
    assert (Path("figures") / "scores-1.png").read_bytes().startswith(b"\x89PNG")
    assert (Path("figures") / "timeline.csv").read_text().startswith("series,label,start,value,low,high\n")


def test_figures_of_several_runs_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("montessori_pl.report.page.save_figures._draw", lambda one, path: path.touch())
    for seed, name in enumerate(("a/run", "b/run")):
        write_run(Path(name), seed, lr=seed)
    main(["report", "a/run", "b/run", "--figures", "figures"])
    assert {path.name for path in (Path("figures") / "a_run").glob("timeline.*")} == {"timeline.csv", "timeline.png"}
    assert (Path("figures") / "runs-accuracy.csv").read_text().splitlines()[1].startswith(",a/run,")


def test_figures_need_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(Path("run"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'montessori-pl[report]'" in said(capsys, "run", "--figures", "figures")
    assert not Path("run/report.html").exists()


def test_no_run_has_finished() -> None:
    for name in ("a", "b"):
        HandMadeRun(Path(name), seed_everything=1, name=name).begin("iteration_1/data", "Synthesize", {})
    main(["report", "a", "b"])
    assert "No run has finished the evaluation" in Path("report.html").read_text()


def test_names_of_runs() -> None:
    """A name that one run has, or as much of the path as tells it from others; a link keeps its own name."""
    for seed, name in enumerate(("a/run", "b/run", "c/run")):
        write_run(Path(name), seed, lr=1)
    Path("link").symlink_to("c/run")
    main(["report", "both=a/run", "both=b/run", "mine=link"])
    page = Path("report.html").read_text()
    assert re.findall(r'<option value="\d">(.*?)</option>', page) == ["a/run", "b/run", "mine"]
    main(["report", "a/run", "link"])
    assert re.findall(r'<option value="\d">(.*?)</option>', Path("report.html").read_text())[1].endswith("link")


def test_baseline_has_not_finished() -> None:
    """The page says so: it is for runs that go on, too."""
    write_run(Path("ours"))
    HandMadeRun(Path("theirs"), seed_everything=1).begin("iteration_1/data", "Synthesize", {})
    main(["report", "ours", "theirs", "--baseline", "theirs"])
    page = Path("report.html").read_text()
    assert "There is no baseline that has finished" in page
    assert "theirs: 1 of 1 runs have not finished (theirs: none)." in page


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"))
    write_run(Path("other"), seed=2, lr=1)
    assert "there is no directory nothing" in said(capsys, "nothing")
    assert "--baseline compares several runs, and one is given" in said(capsys, "run", "--baseline", "run")
    assert "names 'x', which is no group; there are: run, other" in said(capsys, "run", "other", "--baseline", "x")
    assert "--student names 'x', which no run has evaluated" in said(capsys, "run", "other", "--student", "x")
    assert "--student names 'x', which no run has evaluated" in said(capsys, "run", "--student", "x")
    assert "there is no directory away" in said(capsys, "run", "--output", "away/report.html")
    Path("report.html").mkdir()
    assert "report.html cannot be written" in said(capsys, "run", "--output", "report.html")


def test_questions_are_those_of_the_test_set() -> None:
    """Found where it is what the run has read, and not where it has changed since."""
    test = Path("test.jsonl")
    test.write_text('{"id": "item-0", "instruction": "what is two and three?", "response": "five"}\n')
    write_run(Path("run"), data={"test": with_content("test.jsonl", test)})
    RunDirectory(Path("run")).remember(data={"test": {"source": "test.jsonl", "notes": []}})
    main(["report", "run"])
    assert "what is two and three?" in Path("run/report.html").read_text()
    test.write_text('{"id": "item-0", "instruction": "what is it now?", "response": "five"}\n')
    main(["report", "run"])
    assert "what is it now?" not in Path("run/report.html").read_text()


@pytest.mark.slow
def test_no_model_is_imported() -> None:
    """The command starts at once: no torch, no Transformers, no Matplotlib without --figures."""
    write_run(Path("run"))
    script = (
        "import sys; from montessori_pl.__main__ import main; main(['report', 'run']); "
        "print(sorted({'torch', 'transformers', 'lightning', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
