"""Examples from elsewhere: rows of files and data sets in the usual layouts.

Each row's layout is recognised by its keys (`LAYOUTS`, in this order). Text is never altered. Whatever the layout, a
row may also say who wrote the response and how good it is (`RECORDED`). What has no place in an example is said: a row
that holds more becomes a rejection, and a column that is not read is counted. Knows only records.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from montessori_pl.data.columns import CHOICES, MATERIAL, asked, chosen
from montessori_pl.data.conversations import (
    CONVERSATION_COLUMNS,
    MORE_THAN_TEXT,
    from_conversation,
    from_texts,
    history_of,
    refuse_more_than_text,
)
from montessori_pl.data.files import is_table, read_rows, source_path
from montessori_pl.data.records import Example, PromptFormat, Rejection, stable_id
from montessori_pl.data.text import is_blank, is_number, is_writable, says_something, value_of_cell, without_nan
from montessori_pl.data.trl_formats import from_completion, from_preference
from montessori_pl.data.turns import HISTORY, SYSTEM_COLUMNS, Row, Turns, Unusable, as_text, objects, system_of

__all__ = ["LoadedSource", "load_source", "read_examples", "read_row", "read_source", "source_path"]

_EXAMPLE_KEYS = {field.name for field in fields(Example)}


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


ORIGIN: Mapping[str, Callable[[Any], bool]] = {
    "prompt_id": _is_str,
    "prompt": _is_str,
    "prompt_format": lambda value: value in get_args(PromptFormat),
    "prefill": _is_str,
    "completion": _is_str,
    "completion_finished": lambda value: isinstance(value, bool),
    "seed_task_ids": lambda value: isinstance(value, list | tuple) and all(map(_is_str, value)),
    "batch": lambda value: type(value) is int,
}
"""What says where an example of ours came from, and whether a value can be meant: another's file may have the same
names. Tokens are not read: of recorded data the text counts, and not as what it was sampled in another run."""


@dataclass(frozen=True)
class Layout:
    """One way of writing an example down."""

    name: str
    """Keys by which a reader of an error message recognises it."""
    matches: Callable[[Row], bool]
    """Whether a row has this layout."""
    read: Callable[[Row], Turns]
    """Takes the turns out of a row."""
    columns: tuple[str, ...]
    """The columns that it reads, beside those that every layout does."""


@dataclass(frozen=True)
class LoadedSource:
    """A source: what of it became examples, and what did not."""

    examples: list[Example]
    """The usable rows."""
    rejections: list[Rejection]
    """The rows that were left out."""
    unread: Mapping[str, int]
    """In how many rows a column says something that is not read, by its name."""

    def left_out(self) -> dict[str, int]:
        """How many rows were left out, by reason, the most frequent first."""
        return dict(Counter(rejection.reason for rejection in self.rejections).most_common())

    def notes(self) -> list[str]:
        """What a user must know of it, a sentence each: rows that were left out, columns that are not read."""
        notes = []
        if self.rejections:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out().items())
            rows = len(self.examples) + len(self.rejections)
            notes.append(
                f"{len(self.rejections)} of {rows} rows are left out: {reasons}; the first is "
                f"{self.rejections[0].detail}"
            )
        if self.unread:
            columns = ", ".join(
                f"{name} ({count} row{'s' if count > 1 else ''})" for name, count in self.unread.items()
            )
            notes.append(f"columns that are not read: {columns}")
        return notes


def read_examples(source: str) -> list[Example]:
    """The usable examples of a source; `read_source` says as well what was left out.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the slice, the file or the layout cannot be read, or no row is usable.
    """
    return read_source(source)[0]


def read_source(source: str) -> tuple[list[Example], list[Rejection]]:
    """The examples of a source, and the rows that were left out; `load_source` counts the unread columns as well."""
    loaded = load_source(source)
    return loaded.examples, loaded.rejections


def load_source(source: str) -> LoadedSource:
    """The examples of a source, the rows that were left out, and the columns that were not read.

    An example keeps the row's own `id` where it has one that is unique in the file; otherwise the id depends on the
    text alone. A row with the conversation and teacher of an earlier one is left out as a duplicate, as are rows
    without an instruction or a response. Of a conversation the last exchange is the instruction and its response, and
    what stands before it the history (see `conversations`). Of a conversation tree the best-ranked reply is read. Of
    TRL's formats see `trl_formats`; of columns beside an instruction see `columns`.

    The teacher stands in a column `teacher`, or else in `model` or `generator`, as text; the quality of the response in
    `quality`, or else in `reward` or `score`, as a finite number. Of a row with both other names neither is read,
    because nothing says which is meant.

    Args:
        source: path of a `.jsonl` or `.json` file (one object per line, or one list), of a `.csv`, `.tsv` or `.parquet`
            file, or of a directory written by `Dataset.save_to_disk`, with an optional slice over its rows at the end.
            All but Parquet may be compressed (`.gz`). Of several splits `train` is read.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the slice, the file or the layout cannot be read, or no row is usable.
    """
    path, rows, numbers = read_rows(source)
    if is_table(path):
        rows = [_with_values(row) for row in rows]
    own_ids = Counter(_own_id(row) for row in rows)
    examples: list[Example] = []
    rejections: list[Rejection] = []
    unread: Counter[str] = Counter()
    seen: set[tuple[Turns, str]] = set()
    # Two examples may differ in their system message alone; this count keeps their ids apart.
    copies: Counter[tuple[str, ...]] = Counter()
    for number in numbers:
        row, place = without_nan(rows[number]), f"row {number + 1} of {path}"
        layout = _layout(row, place)
        own_id = _own_id(row) if own_ids[_own_id(row)] == 1 else ""
        try:
            turns = _turns(layout, row)
            words = (*(turn.content for turn in turns.history), turns.instruction, turns.response)
            example = _example(row, layout, turns, own_id or stable_id(*words, copies[words]))
            if (turns, example.teacher) in seen:
                raise Unusable("duplicate", "an earlier row has the same conversation")
        except Unusable as problem:
            rejections.append(_rejection(row, own_id, number, place, problem))
            continue
        seen.add((turns, example.teacher))
        examples.append(example)
        copies[words] += 1
        unread.update(_unread(row, layout, turns))
    loaded = LoadedSource(examples, rejections, dict(unread.most_common()))
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in loaded.left_out().items())
        raise ValueError(f"no usable row in {source}: {reasons}; the first is {rejections[0].detail}")
    return loaded


def read_row(row: Row, number: int) -> Example:
    """The example in one row of a data set, in any of the layouts.

    Args:
        row: the row.
        number: its place, for the message and, where the row has no id, as its id.

    Raises:
        ValueError: the row is in no layout, or has no instruction or no response.
    """
    row, place = without_nan(row), f"row {number + 1}"
    layout = _layout(row, place)
    try:
        return _example(row, layout, _turns(layout, row), _own_id(row) or str(number))
    except Unusable as problem:
        reason, detail = problem.args
        raise ValueError(f"{place} cannot be scored: {reason} ({detail})") from problem


def _with_values(cells: Row) -> Row:
    """A row of a table with numbers and truths in the columns that hold some; the others stay text."""
    names = [*LEARNED, RECORDED["quality"].name, *RECORDED["quality"].others]
    return {**cells, **{name: value_of_cell(cells[name]) for name in names if name in cells}}


def _own_id(row: Any) -> str:
    id = row.get("id") if isinstance(row, dict) else None
    return "" if id is None or id != id or not is_writable(str(id)) else str(id)


def _example(row: Row, layout: Layout, turns: Turns, id: str) -> Example:
    origin = {name: row[name] for name in _origin(row, layout)}
    recorded = {field: columns.find(row) for field, columns in RECORDED.items()}
    said = {"instruction": turns.instruction, "response": turns.response, "system": turns.system}
    example = Example.from_dict({**origin, **recorded, **said, "history": turns.history, "id": id})
    if (origin or example.teacher) and not is_writable(example.to_json()):
        raise Unusable("malformed row", "a field holds half of a surrogate pair, which is no character")
    return example


def _origin(row: Row, layout: Layout) -> list[str]:
    """The columns that say where an example of ours came from."""
    return [name for name, fits in ORIGIN.items() if fits(row.get(name))] if layout is LAYOUTS[0] else []


def _rejection(row: Row, own_id: str, number: int, place: str, problem: Unusable) -> Rejection:
    reason, detail = problem.args
    text = json.dumps(row, ensure_ascii=False, default=str)
    if not is_writable(text):
        text = json.dumps(row, default=str)
    return Rejection(id=own_id or stable_id(text, number), reason=reason, detail=f"{place}: {detail}", text=text)


def _layout(row: Any, place: str) -> Layout:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    # First by what says something: a table that was put together from several has all columns in every row.
    filled = {key: value for key, value in row.items() if says_something(value)}
    for keys in (filled, row):
        for layout in LAYOUTS:
            if layout.matches(keys):
                return layout
    raise ValueError(
        f"{place}: unknown layout with the keys {', '.join(row) or '(none)'}; "
        f"known are {'; '.join(layout.name for layout in LAYOUTS)}"
    )


def _turns(layout: Layout, row: Row) -> Turns:
    """What the layout finds in a row that is to be learned and holds no more than text.

    Raises:
        Unusable: it is none.
    """
    for name, values in LEARNED.items():
        if _means(row, name, values) and not row[name]:
            raise Unusable("undesirable completion", f"its {name} is {json.dumps(row[name])}: it is not to be learned")
    refuse_more_than_text(row, "the row")
    found = layout.read(row)
    turns = Turns(
        as_text(found.instruction, "instruction"),
        as_text(found.response, "response"),
        as_text(found.system, "system"),
        found.history,
        found.unread,
    )
    if is_blank(turns.instruction):
        raise Unusable("empty instruction", "the instruction is blank")
    if is_blank(turns.response):
        raise Unusable("empty response", "the response is blank")
    return turns


def _means(row: Row, name: str, values: tuple[Any, ...]) -> bool:
    """Whether a column holds one of these values; 1 is not true here, as it may be the number of a class."""
    return any(type(row.get(name)) is type(value) and row[name] == value for value in values)


def _unread(row: Row, layout: Layout, turns: Turns) -> list[str]:
    """The columns that say something which the example does not."""
    known = {*layout.columns, *EVERYWHERE, *(name for one in RECORDED.values() for name in one.names(row))}
    known |= {name for name, values in LEARNED.items() if _means(row, name, values)}
    known.update(_origin(row, layout))
    texts = {turns.instruction, turns.response, turns.system, *(turn.content for turn in turns.history)}
    columns = (
        name
        for name, value in row.items()
        # Many data sets repeat the first question beside the conversation.
        if name not in known and says_something(value) and not (isinstance(value, str) and value in texts)
    )
    return [*columns, *sorted(turns.unread)]


@dataclass(frozen=True)
class Columns:
    """Where a row may say one thing beside its turns."""

    name: str
    """Our own name for it, which goes before the others."""
    others: tuple[str, ...]
    """Names under which published data sets keep it."""
    fits: Callable[[Any], bool]
    """Whether a value can be meant; a column of the same name may hold something else."""
    absent: Any
    """What stands for it where no row says it."""

    def find(self, row: Row) -> Any:
        """The value under our own name, or else under the only other name that has one."""
        return next((row[name] for name in self.names(row)), self.absent)

    def names(self, row: Row) -> list[str]:
        """The column that is read; none where no column, or no single one, has a value that can be meant."""
        if self.fits(row.get(self.name)):
            return [self.name]
        found = [name for name in self.others if self.fits(row.get(name))]
        return found if len(found) == 1 else []


RECORDED = {
    "teacher": Columns("teacher", ("model", "generator"), lambda value: isinstance(value, str) and value != "", ""),
    "quality": Columns("quality", ("reward", "score"), is_number, None),
}
"""What a row may say of its response, by field of `Example`."""


EVERYWHERE = ("id", *SYSTEM_COLUMNS, *MORE_THAN_TEXT)
"""Columns that are read in every layout; a row that has one of the last ones is left out."""
LEARNED = {"label": (True, False), "kto_tag": (True, False), "weight": (0, 1)}
"""Columns that say whether the response is to be learned, and the values of which they then are."""


def _columns(instruction: str, response: str) -> Callable[[Row], Turns]:
    # Most layouts are two columns under some name.
    return lambda row: Turns(asked(row, row[instruction]), chosen(row, row[response]), system_of(row), history_of(row))


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _from_instances(row: Row) -> Turns:
    instances = objects(row["instances"], "instances")
    first = instances[0] if instances else {}
    instruction = asked({"input": first.get("input")}, row["instruction"])
    others = frozenset(["instances after the first"] if len(instances) > 1 else [])
    return Turns(instruction, first.get("output"), system_of(row), unread=others)


def _from_tree(row: Row) -> Turns:
    replies = [
        reply
        for reply in objects(row["prompt"].get("replies"), "replies")
        if reply.get("role", "assistant") == "assistant" and not reply.get("deleted")
    ]
    if not replies:
        raise Unusable("no assistant turn", "the first user turn has no answer")
    best = min(replies, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    others = len(replies) > 1 or says_something(best.get("replies"))
    return Turns(
        row["prompt"].get("text"),
        best.get("text"),
        system_of(row),
        unread=frozenset(["replies of the tree but the best"] if others else []),
    )


_BESIDE = (*MATERIAL, *CHOICES, HISTORY)
_CONVERSATION = (*CONVERSATION_COLUMNS, HISTORY, "chosen", "rejected")
LAYOUTS = (
    Layout(
        "our own (instruction, response and other fields of Example)",
        lambda row: {"instruction", "response"} <= row.keys() <= _EXAMPLE_KEYS,
        _columns("instruction", "response"),
        ("instruction", "response", HISTORY),
    ),
    Layout("messages (role, content)", _has("messages"), from_conversation, _CONVERSATION),
    Layout(
        "conversations (from, value)",
        lambda row: not {"conversations", "conversation"}.isdisjoint(row),
        from_conversation,
        _CONVERSATION,
    ),
    Layout(
        "instruction, instances (input, output)",
        _has("instruction", "instances"),
        _from_instances,
        ("instruction", "instances"),
    ),
    Layout(
        "instruction, input, output",
        _has("instruction", "output"),
        _columns("instruction", "output"),
        ("instruction", "output", *_BESIDE),
    ),
    Layout(
        "instruction, response",
        _has("instruction", "response"),
        _columns("instruction", "response"),
        ("instruction", "response", *_BESIDE),
    ),
    Layout("prompt (text, replies)", lambda row: isinstance(row.get("prompt"), dict), _from_tree, ("prompt",)),
    Layout(
        "prompt, completion",
        _has("prompt", "completion"),
        from_completion,
        ("prompt", "completion", *_BESIDE),
    ),
    Layout(
        "question, answer",
        _has("question", "answer"),
        _columns("question", "answer"),
        ("question", "answer", *_BESIDE),
    ),
    Layout(
        "chosen, rejected",
        _has("chosen", "rejected"),
        from_preference,
        ("prompt", "instruction", "chosen", "rejected", *_BESIDE),
    ),
    Layout(
        "data (texts of user and assistant in turn)",
        lambda row: isinstance(row.get("data"), list) and all(isinstance(text, str) for text in row["data"]),
        from_texts,
        ("data",),
    ),
)
"""The layouts that are read, in the order in which they are tried."""
