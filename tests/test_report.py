"""The summary of a run that is written by hand: a manifest and the stages' metrics."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from montessori_pl.pipeline.runner import _headline
from montessori_pl.report import print_summary, summarize, write_summary
from montessori_pl.run_directory.run_directory import RunDirectory

BREADTH = {"token_entropy": 4.321, "first_word_entropy": 2.1, "distinct_rate": 0.98, "mean_max_rouge_l": 0.625}
NARROW = {"token_entropy": 2.5, "first_word_entropy": 0.75, "distinct_rate": 0.5, "mean_max_rouge_l": 0.875}
RESPONSES = {"distinct_rate": 0.005, "mean_max_rouge_l": 1.0}
SCORED = {"count": 2613, "mean": 0.0002, "standard_error": 0.00003, "positive_rate": 0.54, "references": 96}
SENTENCE = "after 512 completions the writing had moved beyond the limits (entropy of the words 2.10, before 4.32)"


def test_what_was_not_read_of_the_data_is_in_the_summary(run_directory: RunDirectory) -> None:
    """First among the warnings, which the console and `compare` show."""
    before = summarize(run_directory.root)
    assert before["sources"] == {}
    note = "data.reference: 1 of 2 rows are left out: 1 empty response"
    sources = {"reference": {"source": "x", "examples": 1, "left_out": {"empty response": 1}, "notes": [note]}}
    run_directory.remember(data=sources)
    summary = summarize(run_directory.root)
    assert summary["sources"] == sources
    assert summary["warnings"] == [note, *before["warnings"]]
    file = io.StringIO()
    print_summary(summary, Console(file=file, width=200))
    assert f"warning: {note}" in file.getvalue()


def add(run_directory: RunDirectory, key: str, kind: str, metrics: dict[str, Any], **inputs: str) -> None:
    """A finished stage."""
    run_directory.begin(key, {}, inputs)
    path = run_directory.directory(key) / "metrics.json"
    path.write_text(json.dumps({"kind": kind, **metrics}))
    run_directory.finish(key, [path])


@pytest.fixture
def run_directory(tmp_path: Path) -> RunDirectory:
    """A run of one iteration with everything that the summary shows; its training data have collapsed."""
    run_directory = RunDirectory(tmp_path / "run")
    run_directory.root.mkdir()
    accepted = {"accepted": 200, "rejected": {"surplus": 3}}
    add(
        run_directory,
        "iteration_1/warmup_data",
        "examples",
        {**accepted, "diversity": {**BREADTH, "distinct_2": 0.4}, "response_diversity": RESPONSES},
        teacher="base",
    )
    learned = {"steps": 3, "loss": 1.0}
    add(run_directory, "iteration_1/warmup", "student", learned, examples="iteration_1/warmup_data 0123456789ab")
    add(
        run_directory,
        "iteration_1/influence",
        "scores",
        {**SCORED, "diversity": {**BREADTH, "distinct_2": 0.4}, "reference_loss": 1.0049},
        examples="iteration_1/warmup_data 0123456789ab",
        student="iteration_1/warmup ba9876543210",
    )
    add(run_directory, "iteration_1/aligned", "teacher", {**learned, "warnings": []})
    add(
        run_directory,
        "iteration_1/training_data",
        "examples",
        {**accepted, "diversity": {**NARROW, "distinct_2": 0.1}, "warnings": [SENTENCE]},
        teacher="iteration_1/aligned aaaaaaaaaaaa",
    )
    add(run_directory, "iteration_1/trained", "student", learned, examples="iteration_1/training_data bb")
    losses = {"base": 1.5, "warmup": 1.25, "trained": 1.125}
    inputs = {"students.base": "base"}
    inputs |= {f"students.{name}": f"iteration_1/{name} cccccccccccc" for name in ("warmup", "trained")}
    students = {name: {"reference_loss": loss} for name, loss in losses.items()}
    add(run_directory, "iteration_1/evaluation", "report", {"students": students}, **inputs)
    return run_directory


def printed(summary: dict[str, Any], width: int = 80) -> str:
    file = io.StringIO()
    print_summary(summary, Console(file=file, width=width))
    return file.getvalue()


def test_influence_stands_beside_diversity_and_reference_loss(run_directory: RunDirectory) -> None:
    summary = write_summary(run_directory.root)
    expected = {name: SCORED[name] for name in ("mean", "standard_error", "positive_rate", "count")}
    assert summary["influence"] == {"iteration_1/influence": {**expected, **BREADTH, "reference_loss": 1.0049}}
    assert summary["data"]["iteration_1/influence"]["reference_loss"] == 1.0049
    assert json.loads((run_directory.root / "summary.json").read_text()) == summary


def test_students_stand_beside_the_diversity_of_what_they_learned(run_directory: RunDirectory) -> None:
    """Read through the manifest: the evaluation's student, that student's examples, their metrics."""
    students = summarize(run_directory.root)["students"]
    assert students["base"] == {"reference_loss": 1.5}
    for name, loss, diversity in (("warmup", 1.25, BREADTH), ("trained", 1.125, NARROW)):
        data = {f"data_{measure}": value for measure, value in {"accepted": 200, **diversity}.items()}
        data |= {"data_response_distinct_rate": 0.005} if name == "warmup" else {}
        assert students[name] == {"reference_loss": loss, **data}


def test_tables(run_directory: RunDirectory) -> None:
    """Nothing is broken within a number or a name on a console of 80 columns."""
    text = printed(summarize(run_directory.root))
    assert max(map(len, text.splitlines())) <= 80
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    for row in (
        ["base", "1.500", "-"],
        ["warmup", "1.250", "words 4.32"],
        ["", "", "first 2.10"],
        ["", "", "distinct 98%"],
        ["", "", "ROUGE 0.62"],
        ["", "", "responses 0.5%"],
        ["iteration_1/warmup_data", "200 examples accepted"],
        ["", "responses: distinct 0.5%, ROUGE-L 1.00"],
        ["trained", "1.125", "words 2.50"],
        ["iteration_1/", "0.0002 ± 3e-05", "words 4.32, first 2.10", "1.005"],
        ["influence", "positive 54%", "distinct 98%, ROUGE 0.62", ""],
        ["iteration_1/influence", "2613 examples scored on 96 references"],
    ):
        assert row in lines
    assert "positive" not in text.partition("\ndata\n")[2], "no influence without what belongs beside it"


def test_cut_answers_stand_below_the_accuracy(run_directory: RunDirectory) -> None:
    """Of those students of whom any were cut; there is no column of zeros."""
    evaluated = {"accuracy": 0.5, "accuracy_standard_error": 0.02}
    students = {"base": {**evaluated, "answers_cut": 0.0}, "trained": {**evaluated, "answers_cut": 0.0625}}
    text = printed({**summarize(run_directory.root), "evaluations": {"iteration_1/again": students}})
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    first = lines.index(["base", "0.500 ± 0.020", "-"])
    assert lines[first : first + 3] == [
        ["base", "0.500 ± 0.020", "-"],
        ["trained", "0.500 ± 0.020", "-"],
        ["", "6.2% cut", ""],
    ]
    assert "answers cut" not in text


def test_warnings_come_first(run_directory: RunDirectory) -> None:
    summary = summarize(run_directory.root)
    assert summary["warnings"] == [f"iteration_1/training_data: {SENTENCE}"]
    assert " ".join(printed(summary).split()).startswith(f"warning: iteration_1/training_data: {SENTENCE} students ")


def test_stages_that_have_not_finished_say_nothing(run_directory: RunDirectory) -> None:
    """A run that has only begun, and stages that a version before this one has finished."""
    run_directory.begin("iteration_1/influence_after", {}, {})
    add(run_directory, "iteration_1/old", "scores", SCORED)
    summary = summarize(run_directory.root)
    assert list(summary["influence"]) == ["iteration_1/influence", "iteration_1/old"]
    assert not summary["stages"]["iteration_1/influence_after"]["finished"]
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(summary).splitlines()]
    assert ["iteration_1/", "0.0002 ± 3e-05", "-", "-"] in lines


def test_last_line_of_a_stage_that_scored() -> None:
    assert _headline({"looked_at": 96, "mistakes": 30}) == " (30 mistakes in 96 examples)"
    assert _headline({**SCORED, "diversity": BREADTH, "reference_loss": 1.0049}) == (
        " (mean 0.0002, positive 54% of 2613; entropy of words 4.32, of first words 2.10; reference loss 1.005)"
    )
    # A signal that needs no student has no loss to tell.
    assert _headline({**SCORED, "diversity": BREADTH}) == (
        " (mean 0.0002, positive 54% of 2613; entropy of words 4.32, of first words 2.10)"
    )


def test_scores_without_a_student(tmp_path: Path) -> None:
    """No reference was looked at, and no loss is shown."""
    run_directory = RunDirectory(tmp_path / "run")
    numbers = {name: number for name, number in SCORED.items() if name != "references"}
    add(run_directory, "iteration_1/quality", "scores", {**numbers, "diversity": {**BREADTH, "distinct_2": 0.4}})
    said = printed(summarize(run_directory.root))
    assert "2613 examples scored" in said
    assert "references" not in said
