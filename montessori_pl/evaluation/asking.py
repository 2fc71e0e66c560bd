"""How evaluators ask students and judges: in batches that are kept one by one, so that a kill costs one of them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from montessori_pl.batches.samplers import chunks
from montessori_pl.data.records import Message, Record, read_records
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.generation.request_journal import JUDGE
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.durable import make_directory
from montessori_pl.run_directory.journal import Journal

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Loaded(Protocol):
    """A model that is in memory."""

    def close(self) -> None:
        """Give the memory back."""


L = TypeVar("L", bound=Loaded)


def kept_records(directory: Path | None, name: str, kind: type[R]) -> list[R]:
    """The records of earlier sessions in an evaluator's directory."""
    path = directory / name if directory is not None else None
    return read_records(path, kind) if path is not None and path.exists() else []


class BatchedWork:
    """Files of records in an evaluator's directory, one record for each item, that are made in batches.

    Args:
        directory: of the evaluator; none keeps nothing.
        names: the files.
        batch_size: items between two commits.
    """

    def __init__(self, directory: Path | None, names: Sequence[str], batch_size: int) -> None:
        self._directory, self._batch_size, self._journal = directory, batch_size, None
        if directory is not None:
            make_directory(directory)
            self._journal = Journal(directory, names)  # cuts off what was never committed

    def records(
        self,
        name: str,
        kind: type[R],
        items: Sequence[T],
        load: Callable[[], L],
        make: Callable[[Sequence[T], L], list[R]],
    ) -> list[R]:
        """The records of a file: those that are kept, and then the others.

        Args:
            name: of the file.
            kind: of the records.
            items: what there is a record of, in order.
            load: loads who is asked, if anything is left.
            make: asks it about some items.
        """
        records = kept_records(self._directory, name, kind)
        if len(records) == len(items):
            return records
        model = load()
        for some in chunks(items[len(records) :], self._batch_size):
            made = make(some, model)
            records += made
            if self._journal is not None:
                self._journal.commit({name: made})
        model.close()
        return records


def loaded(backend: Callable[[], GenerationBackend], source: ModelSource) -> GenerationBackend:
    """An engine of the recipe's kind, with this model."""
    engine = backend()
    engine.load(source)
    return engine


def ask(
    engine: GenerationBackend, conversations: Sequence[Sequence[Message]], sampling: Sampling, seeds: Sequence[int]
) -> list[Completion | None]:
    """What the loaded model answers; none where a conversation leaves no room for an answer."""
    fits = [engine.fits(messages, sampling) for messages in conversations]
    requests = [
        Request(messages=messages, seed=seed)
        for messages, seed, fit in zip(conversations, seeds, fits, strict=True)
        if fit
    ]
    completions = iter(engine.generate(requests, sampling) if requests else ())
    return [next(completions) if fit else None for fit in fits]


@dataclasses.dataclass(frozen=True)
class Judge:
    """A model that judges, and the engine that runs it."""

    source: ModelSource
    """The model."""
    engine: GenerationBackend | None
    """Its engine; none for the recipe's."""
    sampling: Sampling
    """How judgements are drawn."""

    def check_environment(self) -> None:
        """Look at engine and model before a run begins.

        Raises:
            ValueError: something is missing.
        """
        engine = self.engine or TransformersBackend()  # the recipe's finds a model where Transformers does
        engine.check_environment(self.source)
        engine.check(self.source)

    def loaded(self, backend: Callable[[], GenerationBackend], requests: Path | None) -> GenerationBackend:
        """The engine with the judge.

        Args:
            backend: makes an engine of the recipe's kind.
            requests: the run's directory of answers that were paid for.
        """
        engine = self.engine or backend()
        if requests is not None:
            engine.set_cache_dir(requests / JUDGE)
        engine.load(self.source)
        return engine

    def estimator(self, backend: Callable[[], GenerationBackend], requests: Path | None) -> RequestEstimator:
        """What judgements will take."""
        return RequestEstimator.of(self.source, self.engine or backend(), JUDGE, requests)
