"""A dry run on the console: a row for each step, the total of what is left, assumptions, and some prompts."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice, zip_longest

from rich.console import Console
from rich.table import Table

from montessori_pl.estimates.estimate import StepEstimate, Work, beyond_budgets, together

NUM_PROMPTS = 3
"""So many prompts are shown."""


def print_estimates(estimates: Sequence[StepEstimate], console: Console) -> None:
    """Print the estimates of a run.

    Args:
        estimates: its steps.
        console: where to.
    """
    left = [
        work for step in estimates if not step.finished and step.estimate is not None for work in step.estimate.work
    ]
    everything = [work for step in estimates if step.estimate is not None for work in step.estimate.work]
    paid = any(work.cost is not None for work in everything)
    table = Table(
        title="estimate; nothing has been run",
        title_justify="left",
        caption="≤: at most, with completions of full length. Scoring and training: tokens of\n"
        "examples, each epoch and each pass counted",
        caption_justify="left",
    )
    table.add_column("stage")
    for name in ("requests", "prompt\ntokens", "completion\ntokens", "training,\nscoring", *(["US dollars"] * paid)):
        table.add_column(name, justify="right")
    for iteration, steps in groupby(estimates, key=lambda step: step.key.partition("/")[0]):
        table.add_section()
        table.add_row(f"{iteration}/")
        for step in steps:
            works = step.estimate.work if step.estimate is not None else []
            state = f"\n    {step.state}" if step.state else ""
            table.add_row(f"  {step.key.partition('/')[2]}{state}", *_cells(together(works), paid))
    table.add_section()
    unknown = any(step.estimate is None for step in estimates)
    table.add_row("left to do" + "\nas far as it is known" * unknown, *_cells(together(left), paid))
    console.print(table)
    for sentence in _sentences(estimates, left):
        console.print(sentence, soft_wrap=False)
    for key, prompt in islice(_prompts(estimates), NUM_PROMPTS):
        console.print(f"\n--- a prompt of {key}")
        console.print(prompt)


def _cells(work: Work, paid: bool) -> list[str]:
    steps = f"{work.steps:,} steps\n" if work.steps else ""
    tokens = _number(work.tokens) if work.tokens else ""
    more = f"\n≤ {_number(work.max_tokens)}" if work.max_tokens > work.tokens else ""
    cells = [
        _bounded(work.requests, work.max_requests),
        _number(work.prompt_tokens) if work.prompt_tokens else "-",
        _bounded(work.completion_tokens, work.max_completion_tokens),
        f"{steps}{tokens}{more}".strip() or "-",
    ]
    if not paid:
        return cells
    if work.cost is None:
        return [*cells, "-"]
    more = f"\n≤ {work.max_cost:,.4f}" if work.max_cost is not None and work.max_cost > work.cost else ""
    return [*cells, f"{work.cost:,.4f}{more}"]


def _bounded(number: int, most: int) -> str:
    """A number with its upper bound, where it has another one; a dash for nothing."""
    if not most and not number:
        return "-"
    return _number(number) + (f"\n≤ {_number(most)}" if most > number else "")


def _number(number: int) -> str:
    """Four digits at most, and then thousands, millions or billions."""
    if number < 10_000:
        return f"{number:,}"
    size, unit = next(one for one in ((10**9, "B"), (10**6, "M"), (10**3, "K")) if number >= one[0])
    return f"{number / size:.1f}{unit}"


def _sentences(estimates: Sequence[StepEstimate], left: Sequence[Work]) -> list[str]:
    """What exceeds a budget, what is not known, and what was assumed, each once."""
    budgets = [f"warning: {sentence}" for sentence in beyond_budgets(left)]
    unknown = [f"{step.key}: no estimate, because {step.reason}." for step in estimates if step.reason]
    notes = [note for step in estimates if step.estimate is not None for note in step.estimate.notes]
    return [*budgets, *unknown, *dict.fromkeys(notes)]


def _prompts(estimates: Sequence[StepEstimate]) -> Iterator[tuple[str, str]]:
    """Different prompts with the step that asks them: the first ones of each step, then the second ones, and so on."""
    asking = [
        [(prompt, step.key) for prompt in step.estimate.prompts] for step in estimates if step.estimate is not None
    ]
    seen: set[str] = set()
    for prompt, key in (one for row in zip_longest(*asking) for one in row if one is not None):
        if prompt not in seen:
            yield key, prompt
        seen.add(prompt)
