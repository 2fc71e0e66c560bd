"""Whether two answers are the same answer."""

from montessori_pl.data import normalized


def same_answer(given: str, expected: str) -> bool:
    """Whether an answer is the expected one, without regard to case and blanks."""
    return normalized(given) == normalized(expected)
