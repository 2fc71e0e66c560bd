"""What a run will take: requests, tokens, optimizer steps and US dollars.

Only numbers and the records they are about. Each number is an expected value and, where that is not certain, an upper
bound beside it. The two are equal where nothing is left to chance.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from montessori_pl.data.records import Example, PreferencePair, Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")

MAX_SAMPLES = 256
"""So many records are measured in place of all, where there are more."""


class NoEstimate(Exception):
    """Why a stage has no estimate, in a clause for the user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work: requests to one model, one training, or the scoring of examples."""

    what: str
    """In a few words: `instructions`, `training`, ..."""
    requests: int = 0
    """Completions that are asked for."""
    max_requests: int = 0
    """The same at most."""
    prompt_tokens: int = 0
    """Tokens of the conversations that are answered."""
    completion_tokens: int = 0
    """Sampled tokens."""
    max_completion_tokens: int = 0
    """The same if there are as many requests as there may be, and each completion is as long as it may be."""
    steps: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Tokens of examples that a model is trained on or that are scored, each epoch and each pass counted."""
    max_tokens: int = 0
    """The same at most."""
    longest: int = 0
    """Tokens of the longest sequence: of an example, or of a prompt with a completion of full length."""
    cost: float | None = None
    """US dollars; none where no price is known."""
    max_cost: float | None = None
    """The same at most, with prompts of the expected length."""
    engine: str = ""
    """Name of the engine that is asked, as its answers are kept under it; empty for the recipe's own."""
    budget_left: float | None = None
    """US dollars that this engine may still cost in this run; none where its settings set no limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedRecords(Generic[R]):
    """What a stage leaves behind for others to read."""

    count: int
    """Records."""
    upper_bound: int
    """Records at most."""
    prompts: int
    """Different prompts that they answer, where they answer prompts: what is paired."""
    instructions: int
    """Different instructions in them."""
    samples: Sequence[R]
    """Records that they will be like, or the records themselves where they exist."""

    def at_most(self, number: int) -> int:
        """A number that is in proportion to the records, if there are as many of them as there may be."""
        return -(-number * self.upper_bound // self.count) if self.count else number

    def some(self) -> list[R]:
        """Records that stand for all, evenly drawn from `samples`."""
        return evenly(self.samples, min(MAX_SAMPLES, len(self.samples)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What one stage will take."""

    work: Sequence[Work] = ()
    """All its work; none for a stage that only moves records."""
    expected_output: ExpectedRecords[Example] | ExpectedRecords[PreferencePair] | None = None
    """What it leaves behind; none for models and reports."""
    prompts: Sequence[str] = ()
    """Some prompts, as the model that is asked sees them."""
    notes: Sequence[str] = ()
    """What was assumed, a sentence each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """One step of a recipe with its estimate."""

    key: str
    """Iteration and name."""
    estimate: StageEstimate | None
    """What it will take, or what it has taken; none where nothing can be said."""
    state: str = ""
    """`finished before`, `going on` or `no estimate`; empty for a step that begins."""
    reason: str = ""
    """Why there is no estimate, a clause, where more is known than that the stage makes none."""
    finished: bool = False
    """Whether it has finished, so that its numbers are counted, not estimated."""


def real(records: Sequence[R]) -> ExpectedRecords[R]:
    """Records that exist."""
    examples = [record for record in records if isinstance(record, Example)]
    return ExpectedRecords(
        count=len(records),
        upper_bound=len(records),
        prompts=len({example.prompt_id for example in examples if example.prompt_id}),
        instructions=len({(example.system, example.history, example.instruction) for example in examples}),
        samples=records,
    )


def passes(what: str, tokens: int, max_tokens: int | None = None, longest: int = 0) -> Work:
    """A model's passes over examples of so many tokens, each pass counted; more than that at most, if anything."""
    return Work(what=what, tokens=tokens, max_tokens=tokens if max_tokens is None else max_tokens, longest=longest)


def together(works: Iterable[Work], what: str = "together") -> Work:
    """The sum of works; their cost is that of those whose price is known, and none where none is."""
    works = list(works)
    costs = [work for work in works if work.cost is not None]
    counted = [field.name for field in dataclasses.fields(Work) if field.type is int and field.name != "longest"]
    return Work(
        what=what,
        longest=max((work.longest for work in works), default=0),
        **{name: sum(getattr(work, name) for work in works) for name in counted},
        cost=sum(work.cost or 0.0 for work in costs) if costs else None,
        max_cost=sum(work.max_cost or 0.0 for work in costs) if costs else None,
    )


def beyond_budgets(works: Sequence[Work]) -> list[str]:
    """A sentence for each engine that is expected to cost more than it may."""
    left = {work.engine: work.budget_left for work in works if work.budget_left is not None}
    costs = {engine: together(work for work in works if work.engine == engine).cost or 0.0 for engine in left}
    return [
        f"the answers of {engine or 'the engine'} are expected to cost ${costs[engine]:,.4f}, and of its "
        f"budget ${max(dollars, 0.0):,.4f} are left: the run will stop there, and keep what it has; raise the budget"
        for engine, dollars in left.items()
        if costs[engine] > dollars
    ]


def evenly(items: Sequence[T], number: int) -> list[T]:
    """So many of the items, at equal distances; some of them several times where there are fewer."""
    return [items[place * len(items) // number] for place in range(number)] if items else []


def mean(numbers: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(numbers) / len(numbers) if numbers else 0.0
