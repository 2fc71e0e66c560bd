"""Answers that were paid for, one line each as they arrive, found again by what was asked.

The name of a request is a hash of the body that is sent: the model's name, the conversation, the sampling, the seed and
whatever else goes to the server; and the request's seed, where that is not what is sent. Where it is sent, how many are
sent at once and what they cost is not part of it.
"""

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from montessori_pl.data.records import SPARSE, Record, append_records, drop_torn_line, read_records
from montessori_pl.generation.base import Completion, Price
from montessori_pl.generation.usage import Usage
from montessori_pl.run_directory.durable import make_directory, sync

ANSWERS = "answers.jsonl"
SECONDS_BETWEEN_SYNCS = 1.0
"""How long an answer may wait for the disk, which takes milliseconds a time: what a power loss can cost."""
SPENDING = "usage.json"
JUDGE = "judge"
"""Directory, within that of the run's answers, of those of judges; those of a teacher lie in one of its name."""
RESERVED = (JUDGE, ANSWERS, SPENDING)
"""Names in that directory that no teacher may have."""
MOST_TOKENS = 10**12
"""No answer has so many."""


def _as_price(price: Price | Mapping[str, Any] | None) -> Price | None:
    if price is None or isinstance(price, Price):
        return price
    if not isinstance(price, Mapping) or price.keys() != {"input", "output"}:
        raise ValueError(f"price must hold input and output, found {str(price)[:40]}")
    return Price(**price)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(Record):
    """What came back for a request; `id` is the request's."""

    text: str
    """The completion, as it came."""
    finished: bool
    """Whether the model ended it itself."""
    num_tokens: int
    """Sampled tokens, as they are billed."""
    num_prompt_tokens: int
    """Tokens of the conversation, as they are billed."""
    estimated: bool = False
    """Whether the server did not count the tokens, so that they are estimated."""
    usable: bool = True
    """Whether there is a completion in it; an answer without one may have been billed all the same."""
    refused: bool = dataclasses.field(default=False, metadata=SPARSE)
    """Whether the endpoint did not answer this request, though others like it: nothing is in it, and nothing billed."""
    model: str = dataclasses.field(default="", metadata=SPARSE)
    """Who was asked; empty in lines of earlier versions, which do not say."""
    price: Price | None = dataclasses.field(default=None, metadata=SPARSE)
    """What tokens cost when it came; none where nobody had said so."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"text must be a text, found {type(self.text).__name__}")
        counts = {"num_tokens": self.num_tokens, "num_prompt_tokens": self.num_prompt_tokens}
        for name, count in counts.items():
            if not isinstance(count, int) or not 0 <= count < MOST_TOKENS:
                raise ValueError(f"{name} must be a whole number from 0 to {MOST_TOKENS:,}, found {str(count)[:40]}")
        object.__setattr__(self, "price", _as_price(self.price))

    def completion(self) -> Completion:
        """The answer as an engine returns it."""
        return Completion(
            # Some servers, vLLM's among them, keep the blank that tokenizers of words put in front of the first one.
            text=self.text.removeprefix(" "),
            finished=self.finished,
            num_tokens=self.num_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
        )

    def usage(self) -> Usage:
        """What this one answer has used."""
        return Usage(
            num_answers=int(not self.refused),
            num_prompt_tokens=self.num_prompt_tokens,
            num_tokens=self.num_tokens,
            num_estimated=int(self.estimated),
            num_refused=int(self.refused),
        )


def request_id(body: Mapping[str, Any]) -> str:
    """The name of the request with this body: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class Spending:
    """What a number of answers has used and cost, whoever was asked."""

    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self.usage = Usage()
        """What all of them have used."""
        # Tokens and not dollars are summed up, whose last digits would decide whether a budget is spent.
        self._usages: dict[tuple[str, Price | None], Usage] = {}
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        """Count one more."""
        usage, key = answer.usage(), (answer.model, answer.price)
        self.usage += usage
        self._usages[key] = self._usages.get(key, Usage()) + usage

    def dollars(self, price: Price | None, model: str) -> float | None:
        """What they have cost, each by its own price; none where the price is not known.

        Args:
            price: of those that have none of their own, if this model was asked, or if they do not say who was. Other
                models without a price cost nothing that is counted.
            model: whose price it is; empty where that is not known yet, and then all are counted by it.
        """
        if price is None:
            return None
        costs = [
            (own or price).cost(usage.num_prompt_tokens, usage.num_tokens)
            for (name, own), usage in self._usages.items()
            if own is not None or not model or name in ("", model)
        ]
        return sum(costs, 0.0)


class RequestJournal:
    """All answers of a run. Threads may add to it at the same time.

    Args:
        directory: where `answers.jsonl` lies, created if absent; none keeps answers in memory only.

    Raises:
        ValueError: the file holds something else than answers.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / ANSWERS if directory is not None else None
        self._lock = threading.Lock()
        self._last_sync = -SECONDS_BETWEEN_SYNCS
        self.answers: dict[str, Answer] = {}
        """Usable answers by request."""
        self.spending = Spending()
        """What all answers have used and cost, those that could not be used included."""
        if self._path is not None and self._path.exists():
            drop_torn_line(self._path)
            for answer in _read(self._path):
                self._count(answer)

    def add(self, answer: Answer) -> None:
        """Keep an answer; when this returns, a killed process cannot lose it, and soon a power loss neither."""
        with self._lock:
            if self._path is not None:
                make_directory(self._path.parent)
                try:
                    append_records(self._path, [answer])
                    if time.monotonic() - self._last_sync >= SECONDS_BETWEEN_SYNCS:
                        self._sync(self._path)
                except OSError:  # a full disk: the next answer must not continue half a line
                    drop_torn_line(self._path)
                    raise
            self._count(answer)

    def sync(self) -> None:
        """Wait until all answers are on the disk."""
        with self._lock:
            if self._path is not None and self._path.exists():
                self._sync(self._path)

    def _sync(self, path: Path) -> None:
        sync(path)
        sync(path.parent)
        self._last_sync = time.monotonic()

    def __str__(self) -> str:
        """How many answers are kept, and where."""
        kept = f"kept in {self._path}" if self._path is not None else "in memory only"
        return f"{len(self.answers):,} answers are {kept}"

    def _count(self, answer: Answer) -> None:
        if answer.usable:
            self.answers[answer.id] = answer
        self.spending.add(answer)


def spending_of(directory: Path) -> Spending:
    """What the answers that are kept in a directory have used and cost; nothing is written there.

    Raises:
        ValueError: the file holds something else than answers.
    """
    path = directory / ANSWERS
    return Spending(_read(path) if path.exists() else ())


def _read(path: Path) -> list[Answer]:
    try:
        return read_records(path, Answer)
    except ValueError as error:
        raise ValueError(
            f"{path} holds something else than answers ({error}); restore it, or delete it: its requests are then sent "
            "and paid for again"
        ) from error
