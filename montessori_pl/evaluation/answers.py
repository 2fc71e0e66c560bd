r"""Whether an answer is the expected one: what counts is the final answer, and numbers are compared as numbers.

| what is written                     | is                                                            |
|-------------------------------------|---------------------------------------------------------------|
| `... #### 18`, `... \boxed{18} ...` | the final answer 18, by the last such mark                  |
| `#### Step 2`, and text below it    | a heading; behind the last one the final answer is looked for |
| `1,000`, `2.50`, `1/2`, `-5`, `+5`  | a number, exactly; its sign stands directly before it         |
| `$5`, `5%`, `5.`                    | the number 5: `$`, `%` and a period at the end say nothing    |
| `3 1 2`, `5 apples`, `1e5`, `1 1/2` | text, as LaTeX is; case and blanks in it say nothing          |

Where a number is expected, the last number in the given final answer counts, with whatever unit stands behind it:
`so it is 5 apples` is 5, but `3 1 2` is not 2. Digits behind a letter, `_`, `^` or `{` are no answer (`x1`, `x^2`,
`\frac{1}{2}`), nor are parts of dates, versions and lists without blanks (`1/2/2024`, `1.2.3`, `1,2`).

Reasoning in `<think>...</think>` is no part of an answer.
"""

import re
from fractions import Fraction

from montessori_pl.data.reasoning import without_reasoning
from montessori_pl.synthesis.contamination import normalized

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_^{])(?<![_^{][-+\u2212])(?<![0-9][.,/])"
    r"\\?\$?(?P<sign>(?<![A-Za-z0-9_)\]}])[-+\u2212\u2013])?\\?\$?"
    r"(?P<size>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:\s*/\s*(?P<divisor>[0-9]+))?"
    r"(?![0-9]|[.,/][0-9]|[eE][-+]?[0-9])"
)
_MARK = re.compile(r"(?P<of_a_line>^[ \t]*)?#{4,}", re.MULTILINE)


def same_answer(given: str, expected: str) -> bool:
    """Whether a given text ends in the expected answer.

    Args:
        given: what a model wrote.
        expected: what the test set says, with or without a way of getting there.
    """
    said = _beyond_reasoning(given)
    wanted = final_answer(_beyond_reasoning(expected) or expected)
    value = number(wanted)
    if value is not None:
        return last_number(final_answer(said)) == value
    return normalized(final_answer(said)) == normalized(wanted)


def same_text(given: str, expected: str) -> bool:
    """Whether two texts are one but for case, blanks and reasoning.

    Args:
        given: what a model wrote.
        expected: what the test set says.
    """
    return normalized(_beyond_reasoning(given)) == normalized(_beyond_reasoning(expected) or expected)


def answer_key(given: str, final: bool = True) -> str:
    """What two answers share that are the same, as far as that can be told without knowing which one is expected.

    Args:
        given: what a model wrote.
        final: whether the final answer counts, or the whole text. A final answer is a number where it ends in one, or
            holds one behind its mark (`#### 18 apples`): `Rome has 7 hills` and `A week has 7 days` are not the same.

    Returns:
        the number or the text in its normal form; empty where there is no answer.
    """
    said = _beyond_reasoning(given)
    if not final:
        return normalized(said)
    answer = final_answer(said)
    value = last_number(answer) if answer != said.strip() or _ends_in_number(answer) else None
    return normalized(answer) if value is None else str(value)


def _ends_in_number(text: str) -> bool:
    """Whether nothing but marks stands behind the last number of a text."""
    text = text.rstrip(" \n.!*)$%\\")
    return any(match.end() == len(text) for match in _NUMBER.finditer(text))


def _beyond_reasoning(text: str) -> str:
    """The text behind `<think>...</think>`; empty where the reasoning does not end, which is no answer yet."""
    return without_reasoning(text) or ""


def final_answer(text: str) -> str:
    r"""What the last mark gives: the line behind `####`, or what a closed `\boxed{...}` holds; else the whole text.

    A line of words behind `####` with text on later lines is a heading and no mark: `#### Conclusion`. Without any mark
    the answer is the text behind the last heading.
    """
    start, box = _last_box(text)
    headings = []
    for mark in reversed([*_MARK.finditer(text, start + 1)]):
        line, _, later = text[mark.end() :].strip().partition("\n")
        if not (mark["of_a_line"] is not None and later and _is_heading(line)):
            return line.strip()
        headings.append(later)
    if box is not None:
        return box
    return (headings[0] if headings else text).strip()


def _is_heading(line: str) -> bool:
    """Whether a line is one of words: it holds no number in front, or one that counts a step (`2. Add both`)."""
    line = line.strip(" *_`$\\(")
    found = _NUMBER.match(line)
    return found is None or re.match(r"[.:)]\s+\S", line[found.end() :]) is not None


def _last_box(text: str) -> tuple[int, str | None]:
    r"""Where the last closed `\boxed{...}` begins, and what it holds; -1 and none where there is none."""
    start = text.rfind(r"\boxed{")
    while start >= 0:
        inside = start + len(r"\boxed{")
        depth = 1
        for place in range(inside, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return start, text[inside:place].strip()
        start = text.rfind(r"\boxed{", 0, start)
    return -1, None


def number(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else; None for any other."""
    match = _NUMBER.fullmatch(text.strip().rstrip(".%$\\ "))
    return _value(match) if match else None


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none, or if the text is a row of numbers."""
    words = text.split()
    if len(words) > 1 and all(number(word) is not None for word in words):
        return None
    matches = list(_NUMBER.finditer(text))
    return _value(matches[-1]) if matches else None


def _value(match: re.Match[str]) -> Fraction | None:
    try:
        size = Fraction(match["size"].replace(",", "")) / int(match["divisor"] or 1)
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, or a division by zero
        return None
    return size if match["sign"] in (None, "+") else -size
