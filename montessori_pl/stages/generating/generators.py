"""The models that write: each request goes to the model that is to answer it, with one model in memory at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from montessori_pl.data.records import Message
from montessori_pl.estimates.requests import RequestEstimator, known_chat_template
from montessori_pl.generation.base import Completion, GenerationBackend, Price, Request, Sampling
from montessori_pl.models.loading import ModelSource, load_chat_template
from montessori_pl.stages.base import StageContext
from montessori_pl.synthesis.base import Synthesizer

USAGE = ("prompt_tokens", "generated_tokens", "cost")
"""What is counted while generators write; the cost is in US dollars."""


@dataclass(frozen=True)
class Generator:
    """A model that writes, and the engine that runs it."""

    name: str
    """How examples name it."""
    source: ModelSource
    """The model."""
    member: str = ""
    """Its name in the pool, where it has an engine and a price of its own; empty for who is not of the pool."""

    @cached_property
    def _estimator(self) -> RequestEstimator:
        return RequestEstimator.of_template(known_chat_template(self.source))

    def shown(self, messages: Sequence[Message]) -> str:
        """The conversation as the model sees it; of a model whose tokenizer only an endpoint has, its last text."""
        return self._estimator.shown(messages)


def teacher(context: StageContext, setting: str, name: str) -> Generator:
    """The teacher that a setting names: of the pool, or the one that a stage has trained.

    Args:
        context: the stage's.
        setting: the setting, as the stage's `reads` calls it.
        name: what it says.
    """
    if name in context.pool:
        return Generator(name, context.pool[name].source(), member=name)
    return _unpooled(context.source(context.teacher(), setting))


def check_way_of_asking(synthesizer: Synthesizer, engine: GenerationBackend, source: ModelSource) -> None:
    """Look at whether the engine can ask this teacher as the synthesizer wants.

    Raises:
        ValueError: the engine takes user turns alone, or the teacher's chat template has no end of a user turn.
    """
    if synthesizer.asks_in_chat:
        return
    if not engine.continues_turns:
        what = {"user_turn": "an empty user turn", "text": "a text without a chat template"}.get(
            synthesizer.prompt_format, f"a turn that begins with {synthesizer.prefill!r}"
        )
        raise ValueError(
            f"the synthesizer lets the teacher go on with {what}, which {type(engine).__name__} cannot ask for; use "
            "answer_format whole_completion or tags, or an engine that takes tokens, such as TransformersBackend"
        )
    load_chat_template(source).open_turn(synthesizer.messages(""))


def student(context: StageContext, setting: str) -> Generator:
    """The student of the stage that a setting names."""
    return _unpooled(context.source(context.student(), setting))


def generator_name(source: ModelSource) -> str:
    """What examples say of who has written them: the backbone, and the stage that has trained it."""
    return f"{source.backbone} + {source.weights.parent.name}" if source.weights else source.backbone


def _unpooled(source: ModelSource) -> Generator:
    return Generator(generator_name(source), source)


class Generators:
    """The generators of one stage, and the engines that run them; a context manager that closes what it has opened.

    Args:
        context: the stage's.
    """

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self._usage: dict[str, float] = {}
        self._engines: dict[str, GenerationBackend] = {}
        self._prices: dict[str, Price | None] = {}  # those that the engines name
        self._loaded: Generator | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loaded is not None:
            self._engine(self._loaded).close()

    def fits(self, generator: Generator, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether the conversation and a completion of full length fit the generator's context."""
        loaded = self._loaded
        # Two adapters of a backbone share its context: asking one for the other spares loading.
        if loaded is None or (loaded.member, loaded.source.backbone) != (generator.member, generator.source.backbone):
            self._load(generator)
        return self._engine(generator).fits(messages, sampling)

    def generate(
        self, generators: Sequence[Generator], requests: Sequence[Request], sampling: Sampling
    ) -> list[Completion]:
        """One completion of each request by its generator, in order."""
        completions: dict[int, Completion] = {}
        # Who is loaded goes first: two teachers that write and answer change places twice and not four times.
        for generator in sorted(dict.fromkeys(generators), key=lambda generator: generator != self._loaded):
            self._load(generator)
            mine = [place for place, other in enumerate(generators) if other == generator]
            answers = self._engine(generator).generate([requests[place] for place in mine], sampling)
            self._count(generator, answers)
            completions |= dict(zip(mine, answers, strict=True))
        return [completions[place] for place in range(len(requests))]

    def take_usage(self) -> dict[str, float]:
        """What was read and written since the last call: notes for a journal.

        Returns:
            `prompt_tokens` and `generated_tokens`, and `cost` in US dollars where prices are known.
        """
        notes, self._usage = self._usage, {}
        return notes

    def _load(self, generator: Generator) -> None:
        if generator == self._loaded:
            return
        engine = self._engine(generator)
        if self._loaded is not None and self._engine(self._loaded) is not engine:
            self._engine(self._loaded).close()  # or both would be in memory while the second is loaded
            self._loaded = None
        engine.load(generator.source)
        # Who shares an engine may have a price of their own, which counts against its budget too.
        engine.price = self._price(generator)
        self._loaded = generator

    def _engine(self, generator: Generator) -> GenerationBackend:
        name = self._engine_name(generator)
        if name not in self._engines:
            generation = self.context.pool[name].generation if name else None
            engine = (generation or self.context.backend)()
            if name and self.context.requests is not None:
                engine.set_cache_dir(self.context.requests / name)  # each has a price of its own
            self._engines[name], self._prices[name] = engine, engine.price
        return self._engines[name]

    def _engine_name(self, generator: Generator) -> str:
        """Whose engine it is; empty for the run's, which those share who have none of their own."""
        member = self.context.pool.get(generator.member)
        return generator.member if member is not None and member.generation is not None else ""

    def _price(self, generator: Generator) -> Price | None:
        member = self.context.pool.get(generator.member)
        own = member.price if member is not None else None
        return own if own is not None else self._prices[self._engine_name(generator)]

    def _count(self, generator: Generator, completions: Sequence[Completion]) -> None:
        read = sum(completion.num_prompt_tokens for completion in completions)
        written = sum(completion.num_tokens for completion in completions)
        counts: dict[str, float] = {"prompt_tokens": read, "generated_tokens": written}
        if (price := self._price(generator)) is not None:
            counts["cost"] = price.cost(read, written)
        for name, count in counts.items():
            self._usage[name] = self._usage.get(name, 0) + count


def so_far(commits: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the progress of a stage says beside its count: which part was accepted, and what it has cost."""
    candidates, accepted = (sum(commit.get(name, 0) for commit in commits) for name in ("candidates", "accepted"))
    note = f"{accepted / candidates:.0%} accepted" if candidates else ""
    return {"note": note, "cost": usage_metrics(commits).get("cost", 0.0)}


def usage_metrics(commits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The usage of all batches of a journal, for a stage's metrics."""
    names = [name for name in USAGE if any(name in commit for commit in commits)]
    return {name: sum(commit.get(name, 0) for commit in commits) for name in names}
