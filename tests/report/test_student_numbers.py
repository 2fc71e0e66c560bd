"""Numbers of students with their intervals, on the console and on the page."""

from typing import Any

from rich.console import Console

from montessori_pl.report.student_numbers import interval_of, is_about_another
from montessori_pl.report.table import print_summary


def test_what_is_about_another() -> None:
    names = ["win_rate", "win_rate_against_base", "length_controlled_win_rate", "mt_bench", "mmlu_acc", "highlow"]
    about = [f"{name}{end}" for name in names for end in ("_low", "_high", "_standard_error")]
    about += ["judged_rate", "judged_rate_against_base", "unparsed_judgements_against_base", "answers_cut"]
    assert not any(map(is_about_another, names))
    assert all(map(is_about_another, about))


def test_interval_in_the_table() -> None:
    """In the place of twice the standard error: below the number, and in no column of its own."""
    numbers = {"win_rate": 0.5, "win_rate_standard_error": 0.1, "win_rate_low": 0.25, "win_rate_high": 0.75}
    controlled = {"length_controlled_win_rate": 0.4, "length_controlled_win_rate_low": 0.3}
    assert interval_of(numbers, "win_rate") == (0.25, 0.75)
    assert interval_of({"win_rate": 0.5, "win_rate_low": 0.25}, "win_rate") is None
    evaluations = {
        "iteration_1/evaluation": {"trained": {**numbers, **controlled, "judged_rate": 0.9, "accuracy": 0.2}}
    }
    summary: dict[str, Any] = {"warnings": [], "evaluations": evaluations, "influence": {}, "data": {}, "stages": {}}
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        print_summary({**summary, "run": "run"}, console)
    text = captured.get()
    assert "0.250 to 0.750" in text
    assert "0.400 LC" in text
    assert "judged" not in text
    assert "length" not in text
    assert "±" not in text


def test_parts_have_a_table_of_their_own() -> None:
    """Families of an accuracy; but a rate against another student is no part of the rate against the test set."""
    own = {
        "accuracy": 0.25,
        "accuracy_count": 0.125,
        "accuracy_day": 0.375,
        "win_rate": 0.5,
        "win_rate_against_base": 0.75,
    }
    summary: dict[str, Any] = {"warnings": [], "influence": {}, "data": {}, "stages": {}, "run": "run"}
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        print_summary(
            {
                **summary,
                "evaluations": {"iteration_1/evaluation": {"base": own, "trained": {**own, "accuracy_day": 1.0}}},
            },
            console,
        )
    whole, parts = captured.get().split("students, further numbers")
    assert "0.250" in whole
    assert "0.750" in whole
    assert "0.125" not in whole
    lines = [line.strip("│ ").split("│") for line in parts.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["accuracy count", "0.125", "0.125"],
        ["accuracy day", "0.375", "1.000"],
    ]
