"""What the stages hand to each other: frozen dataclasses, one JSON line each.

Knows nothing about models, files beyond JSON lines, or stages. An id is derived from what its record is (the prompt's
id, the sample's place), so that a resumed run and an uninterrupted one write the same bytes.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, TypeVar

R = TypeVar("R", bound="Record")


class Message(TypedDict):
    """One turn of a conversation, as chat templates expect it.

    A `text` is no turn and stands alone: it is continued as it is, without a chat template.
    """

    role: Literal["system", "user", "assistant", "text"]
    content: str


@dataclasses.dataclass(frozen=True, order=True)
class Turn:
    """A turn of a conversation before the one that is answered."""

    role: Literal["user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""
    weight: int = 1
    """0 for an answer that is only read and never learned, as in OpenAI's format."""


def conversation(system: str, history: Iterable[Turn], instruction: str) -> list[Message]:
    """The messages up to where the assistant answers."""
    said: list[Message] = [{"role": "system", "content": system}] if system else []
    said += [{"role": turn.role, "content": turn.content} for turn in history]
    return [*said, {"role": "user", "content": instruction}]


PromptFormat = Literal["chat", "text", "user_turn"]
"""What a teacher prompt is: a user turn, a text that is continued without a chat template, or nothing at all, where the
teacher writes the user turn itself."""


def teacher_messages(prompt: str, prompt_format: PromptFormat = "chat", prefill: str = "") -> list[Message]:
    """The messages that a teacher goes on with: the last one is open where it is a text or the assistant's.

    Without a message the user's turn is open.

    Args:
        prompt: as `prompt_format` says.
        prompt_format: what the prompt is.
        prefill: how the assistant's turn begins; empty where the teacher begins it.
    """
    if prompt_format == "user_turn":
        return []
    if prompt_format == "text":
        return [{"role": "text", "content": prompt}]
    asked: list[Message] = [{"role": "user", "content": prompt}]
    return [*asked, {"role": "assistant", "content": prefill}] if prefill else asked


def _shared(text: str) -> str:
    """The same text, which then is in memory once, however often it was read."""
    return sys.intern(text) if type(text) is str else text


def _as_turns(turns: "Iterable[Turn | Mapping[str, Any]]") -> tuple[Turn, ...]:
    return tuple(turn if isinstance(turn, Turn) else Turn(**turn) for turn in turns)


@dataclasses.dataclass(frozen=True)
class SampledTokens:
    """The token ids of a completion, kept where the tokenizer would make others of its text."""

    ids: tuple[int, ...]
    """As they were sampled, the end token included where there is one."""
    vocabulary: str
    """Whose ids they are: `ChatTemplate.fingerprint` of the model that sampled them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))


def _as_tokens(tokens: "SampledTokens | Mapping[str, Any] | None") -> SampledTokens | None:
    return SampledTokens(**tokens) if isinstance(tokens, Mapping) else tokens


_OF_TOKENIZER = {"of_tokenizer": True, "sparse": True}
"""Marks the fields that mean something to one tokenizer alone."""
SPARSE = {"sparse": True}
"""Marks the fields that have a place in a line only where they say something."""


def token_fields(kind: "type[Record]") -> frozenset[str]:
    """The fields of a record that mean something to one tokenizer alone."""
    return frozenset(field.name for field in dataclasses.fields(kind) if field.metadata == _OF_TOKENIZER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen dataclass that is one line of JSON."""

    id: str
    """Stable name of the record, unique within its file."""

    def to_json(self) -> str:
        """The record as one line, without the line break; non-ASCII text stays readable.

        Token ids, and how a prompt was put where it is no user turn, have a place in it only where there are any.
        """
        row = {}
        for name, field in self.__dataclass_fields__.items():
            value = getattr(self, name)
            if "sparse" not in field.metadata or value != field.default:
                row[name] = value
        # Not the whole record by `asdict`, which copies every number of a list by itself.
        return json_text(row, ensure_ascii=False, default=dataclasses.asdict)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Build the record from a parsed line.

        Raises:
            ValueError: a field is missing or unknown; the sentence names it and the fields that exist.
        """
        fields = cls.__dataclass_fields__
        required = {name for name, field in fields.items() if field.default is field.default_factory}
        unknown, missing = sorted(row.keys() - fields.keys()), sorted(required - row.keys())
        if unknown or missing:
            raise ValueError(
                f"not a {cls.__name__} record: unknown fields {unknown}, missing fields {missing}; "
                f"the fields are {sorted(fields)}"
            )
        return cls(**row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Record):
    """An instruction with its response, and where both came from."""

    instruction: str
    """What the student is asked: the last user turn."""
    response: str
    """What it is to answer."""
    system: str = ""
    """System message of the conversation; empty when there is none."""
    history: tuple[Turn, ...] = ()
    """The turns between the system message and the instruction, user and assistant in turn; often none."""
    prompt_id: str = ""
    """Groups the samples that answer one and the same teacher prompt; empty for examples without a teacher prompt."""
    prompt: str = ""
    """The user turn that the teacher was shown when it wrote the instruction, or what `prompt_format` says."""
    prompt_format: PromptFormat = dataclasses.field(default="chat", metadata=SPARSE)
    """What the prompt is, where it is no user turn."""
    prefill: str = dataclasses.field(default="", metadata=SPARSE)
    """How the assistant's turn began before the completion: text that the teacher was given and did not write."""
    completion: str = ""
    """What the teacher wrote, whole: rationale, tags and all."""
    completion_finished: bool = True
    """Whether the teacher ended the completion itself (False: cut at the token limit, or at what ends an instruction
    within a turn)."""
    completion_tokens: SampledTokens | None = dataclasses.field(default=None, metadata=_OF_TOKENIZER)
    """The tokens of the completion; none where the tokenizer finds them in the text, or where they are not known."""
    response_tokens: SampledTokens | None = dataclasses.field(default=None, metadata=_OF_TOKENIZER)
    """The same of the response."""
    teacher: str = ""
    """Who wrote it: the backbone, and the adapter's stage where there is one."""
    seed_task_ids: tuple[str, ...] = ()
    """Ids of the examples that were shown as shots."""
    batch: int = 0
    """The batch of prompts in which it was written."""
    quality: float | None = None
    """How good the response is according to its source, higher is better; none if not given."""

    def __post_init__(self) -> None:
        # Many examples of a file share these.
        object.__setattr__(self, "prompt", _shared(self.prompt))
        object.__setattr__(self, "teacher", _shared(self.teacher))
        object.__setattr__(self, "seed_task_ids", tuple(map(_shared, self.seed_task_ids)))
        object.__setattr__(self, "history", _as_turns(self.history))
        object.__setattr__(self, "completion_tokens", _as_tokens(self.completion_tokens))
        object.__setattr__(self, "response_tokens", _as_tokens(self.response_tokens))

    def messages(self) -> list[Message]:
        """The conversation that the student is trained on."""
        return [
            *conversation(self.system, self.history, self.instruction),
            {"role": "assistant", "content": self.response},
        ]

    def user_turns(self) -> list[str]:
        """All that the user says, the instruction last."""
        return [*(turn.content for turn in self.history if turn.role == "user"), self.instruction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection(Record):
    """A candidate that did not become an example, or an example that could not be scored, and why."""

    reason: str
    """One word or two, counted in the summary: `no instruction tag`, `near duplicate`, ..."""
    detail: str
    """What exactly: the keyword, the similarity and the text that it resembles, ..."""
    text: str
    """The text that was rejected."""
    prompt_id: str = ""
    """The teacher prompt it answered."""
    batch: int = 0
    """The batch of prompts in which it was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Record):
    """How good an example is for the student; `id` is the example's."""

    value: float
    """Higher is better for the student, whatever the signal."""
    standard_error: float | None = None
    """Standard error of `value`, where the signal can tell."""
    method: str = ""
    """The signal and how it was computed."""
    details: dict[str, float] = dataclasses.field(default_factory=dict)
    """What else the signal knows about the example."""
    terms: tuple[float, ...] = ()
    """The numbers whose mean is `value`, one for each reference example, where the signal has them."""
    texts: tuple[str, ...] = ()
    """What the signal said of the example in words, where it speaks."""
    gradient: tuple[float, ...] = dataclasses.field(default=(), metadata=SPARSE)
    """The student's gradient on the example, projected to a few dimensions, where the signal keeps it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "texts", tuple(self.texts))
        object.__setattr__(self, "gradient", tuple(self.gradient))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencePair(Record):
    """Two completions of one teacher prompt; the first helped the student more."""

    prompt: str
    """The user turn that both completions answer, or what `prompt_format` says."""
    chosen: str
    """The whole completion that is preferred."""
    rejected: str
    """The whole completion that is not."""
    chosen_id: str
    """Id of the example that `chosen` became."""
    rejected_id: str
    """Id of the example that `rejected` became."""
    prompt_id: str = ""
    """The teacher prompt that both answer; several may have the same text, as Magpie's have."""
    system: str = ""
    """System message of the conversation; empty when there is none."""
    history: tuple[Turn, ...] = ()
    """The turns between the system message and the prompt; often none."""
    margin: float
    """Score of the chosen example minus score of the rejected one."""
    weight: float = 1.0
    """How much the pair counts in alignment, beside others."""
    prompt_format: PromptFormat = dataclasses.field(default="chat", metadata=SPARSE)
    """What the prompt is, where it is no user turn."""
    prefill: str = dataclasses.field(default="", metadata=SPARSE)
    """How the assistant's turn began before both completions."""
    chosen_finished: bool = True
    """Whether the chosen completion ended itself, so that its end token is part of it."""
    rejected_finished: bool = True
    """Whether the rejected completion ended itself, so that its end token is part of it."""
    chosen_tokens: SampledTokens | None = dataclasses.field(default=None, metadata=_OF_TOKENIZER)
    """The tokens of `chosen`; none where the tokenizer finds them in the text, or where they are not known."""
    rejected_tokens: SampledTokens | None = dataclasses.field(default=None, metadata=_OF_TOKENIZER)
    """The same of `rejected`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", _as_turns(self.history))
        object.__setattr__(self, "chosen_tokens", _as_tokens(self.chosen_tokens))
        object.__setattr__(self, "rejected_tokens", _as_tokens(self.rejected_tokens))

    def messages(self) -> list[Message]:
        """The conversation that both completions answer, or go on with: see `teacher_messages`."""
        earlier = conversation(self.system, self.history, self.prompt)[:-1]
        return [*earlier, *teacher_messages(self.prompt, self.prompt_format, self.prefill)]


def json_text(value: Any, **options: Any) -> str:
    """Plain values as JSON, which has no NaN and no infinity: other programs could not read them.

    Args:
        value: mappings, sequences, texts and numbers.
        options: of `json.dumps`.

    Raises:
        ValueError: a number is none; the sentence says which.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        if (found := next(_no_numbers(value), None)) is None:
            raise
        raise ValueError(f"{found[0]} is {found[1]}, which is no number and has no place in JSON") from error


def _no_numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Where there is a number that is none, by names with dots."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place or "it", value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _no_numbers(one, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _no_numbers(one, f"{place}[{number}]")


def stable_id(*parts: object) -> str:
    """Twelve hexadecimal digits that depend on the parts and on nothing else."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:12]


def stable_seed(*parts: object) -> int:
    """A non-negative 63-bit seed that depends on the parts and on nothing else."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; a torn end is dropped.

    A kill can leave half a line. A power loss can leave NUL bytes, which JSON never holds, where data did not reach the
    disk, and lines behind them.

    Raises:
        ValueError: a whole line is not a JSON object; the sentence names the file and the line.
    """
    with open(path, "rb") as file:  # not as text: a torn line may end within a character
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") or b"\0" in line:
                return
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON from column {error.colno} on") from error
            except (ValueError, RecursionError) as error:  # numbers of thousands of digits
                raise ValueError(
                    f"{path}, line {number}: nested too deeply, or a number too long, to be read"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            yield row


def read_records(path: Path, kind: type[R]) -> list[R]:
    """All records of a JSON-lines file; a torn end is dropped.

    Raises:
        ValueError: a line is not a record of this kind.
    """
    return [kind.from_dict(row) for row in read_lines(path)]


def drop_torn_line(path: Path) -> None:
    """Cut off a torn end, as `read_lines` drops it, so that the next record gets a line of its own."""
    if path.exists():
        whole, _, _ = path.read_bytes().partition(b"\0")
        os.truncate(path, whole.rfind(b"\n") + 1)


def as_lines(records: Iterable[Record]) -> bytes:
    """Records as they stand in a file of JSON lines."""
    return "".join(record.to_json() + "\n" for record in records).encode()


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append records and hand them to the operating system, where a killed process cannot lose them."""
    with open(path, "ab") as file:
        file.write(as_lines(records))
