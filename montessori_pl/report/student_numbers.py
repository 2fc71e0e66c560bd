"""Which numbers of a student stand for themselves, and which say how far another one can be trusted."""

from collections.abc import Mapping

STANDARD_ERROR, LOW, HIGH = "_standard_error", "_low", "_high"
"""Ends of the names of a number's standard error, and of the ends of its 95% interval."""
ABOUT_OTHERS = ("answers_cut", "judged_rate", "unparsed_judgements", "order_agreement_rate", "mt_bench_unparsed")
"""Beginnings of the names of what else is about others."""


def is_about_another(name: str) -> bool:
    """Whether a number says something of another one."""
    return name.endswith((STANDARD_ERROR, LOW, HIGH)) or name.startswith(ABOUT_OTHERS)


def interval_of(numbers: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """The 95% interval of a number, where the evaluator gives one."""
    low, high = numbers.get(f"{name}{LOW}"), numbers.get(f"{name}{HIGH}")
    return (low, high) if low is not None and high is not None else None
