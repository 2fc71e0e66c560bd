"""Examples that somebody else wrote: JSON files in the usual layouts and saved Hugging Face datasets.

A source is a path, optionally with a slice over its rows: `seeds.jsonl`, `seeds.jsonl[:64]`, `dataset_directory[64:]`.
Each row's layout is recognised by its keys (`LAYOUTS`, in this order). Text is never altered. Whatever the layout, a
row may also say who wrote the response and how good it is (`RECORDED`). Knows only records.
"""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Example, Rejection, stable_id
from montessori_pl.data.trl_formats import from_completion, from_preference
from montessori_pl.data.turns import Row, Turns, Unusable, objects

_EXAMPLE_KEYS = {field.name for field in fields(Example)}


@dataclass(frozen=True)
class Layout:
    """One way of writing an example down."""

    name: str
    """Keys by which a reader of an error message recognises it."""
    matches: Callable[[Row], bool]
    """Whether a row has this layout."""
    read: Callable[[Row], Turns]
    """Takes the turns out of a row."""


def read_examples(source: str) -> list[Example]:
    """The usable examples of a source; `read_source` says as well what was left out.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the slice, the file or the layout cannot be read, or no row is usable.
    """
    return read_source(source)[0]


def read_source(source: str) -> tuple[list[Example], list[Rejection]]:
    """The examples of a source, and the rows that were left out.

    An example keeps the row's own `id` where it has one that is unique in the file; otherwise the id depends on the
    text alone. A row with the system message, instruction, response and teacher of an earlier one is left out as a
    duplicate, as are rows without an instruction or a response. Of a conversation the first system message, the first
    user turn and the first assistant turn after it are read; later turns are left out. Of a conversation tree the
    best-ranked reply is read. Of TRL's formats see `trl_formats`.

    The teacher stands in a column `teacher`, or else in `model` or `generator`, as text; the quality of the response in
    `quality`, or else in `reward` or `score`, as a finite number. Of a row with both other names neither is read,
    because nothing says which is meant.

    Args:
        source: path of a `.jsonl` or `.json` file (one object per line, or one list) or of a directory written by
            `Dataset.save_to_disk`, with an optional slice over its rows at the end. Of several splits `train` is read.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the slice, the file or the layout cannot be read, or no row is usable.
    """
    path, part = _split_source(source)
    rows = _read_directory(path) if path.is_dir() else _read_file(path)
    numbers = range(len(rows))[part]
    if not numbers:
        raise ValueError(f"no row to read in {source}: it has {len(rows)} rows; correct the file or the slice")
    own_ids = Counter(_own_id(row) for row in rows)
    examples: list[Example] = []
    rejections: list[Rejection] = []
    seen: set[tuple[Turns, str]] = set()
    # Two examples may differ in their system message alone; this count keeps their ids apart.
    copies: Counter[tuple[str, str]] = Counter()
    for number in numbers:
        row, place = rows[number], f"row {number + 1} of {path}"
        layout = _layout(row, place)
        own_id = _own_id(row) if own_ids[_own_id(row)] == 1 else ""
        try:
            turns = _checked(layout.read(row))
            words = turns.instruction, turns.response
            example = _example(row, layout, turns, own_id or stable_id(*words, copies[words]))
            if (turns, example.teacher) in seen:
                raise Unusable("duplicate", "an earlier row has the same instruction and response")
        except Unusable as problem:
            rejections.append(_rejection(row, own_id, number, place, problem))
            continue
        seen.add((turns, example.teacher))
        examples.append(example)
        copies[words] += 1
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejections).items())
        raise ValueError(f"no usable row in {source}: {reasons}; the first is {rejections[0].detail}")
    return examples, rejections


def read_row(row: Row, number: int) -> Example:
    """The example in one row of a data set, in any of the layouts.

    Args:
        row: the row.
        number: its place, for the message and, where the row has no id, as its id.

    Raises:
        ValueError: the row is in no layout, or has no instruction or no response.
    """
    place = f"row {number + 1}"
    layout = _layout(row, place)
    try:
        return _example(row, layout, _checked(layout.read(row)), _own_id(row) or str(number))
    except Unusable as problem:
        reason, detail = problem.args
        raise ValueError(f"{place} cannot be scored: {reason} ({detail})") from problem


def _own_id(row: Any) -> str:
    id = row.get("id") if isinstance(row, dict) else None
    return "" if id is None or not _writable(str(id)) else str(id)


def _writable(text: str) -> bool:
    r"""Whether UTF-8 can write it; JSON may hold half of a pair ("\ud83d"), as of texts that were cut in an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _example(row: Row, layout: Layout, turns: Turns, id: str) -> Example:
    # An example that we wrote ourselves keeps where it came from; columns of a dataset may be empty.
    origin = {key: value for key, value in row.items() if value is not None} if layout is LAYOUTS[0] else {}
    recorded = {field: columns.find(row) for field, columns in RECORDED.items()}
    example = Example.from_dict({**origin, **recorded, **turns._asdict(), "id": id})
    if (origin or example.teacher) and not _writable(example.to_json()):
        raise Unusable("malformed row", "a field holds half of a surrogate pair, which is no character")
    return example


def _rejection(row: Row, own_id: str, number: int, place: str, problem: Unusable) -> Rejection:
    reason, detail = problem.args
    text = json.dumps(row, ensure_ascii=False, default=str)
    if not _writable(text):
        text = json.dumps(row, default=str)
    return Rejection(id=own_id or stable_id(text, number), reason=reason, detail=f"{place}: {detail}", text=text)


def source_path(source: str) -> Path:
    """The file or directory that a source names, without the slice over its rows."""
    return Path(_parts(source)[0])


def _parts(source: str) -> tuple[str, str | None]:
    """A source's path and what stands in its brackets, if any do."""
    match = re.fullmatch(r"(?s)(.+?)\[([^\[\]]*)\]", source)
    return (source, None) if match is None or Path(source).exists() else (match[1], match[2])


def _split_source(source: str) -> tuple[Path, slice]:
    path, part = _parts(source)
    if part is None:
        return Path(path), slice(None)
    bounds = re.fullmatch(r"(-?\d+)?:(-?\d+)?", part)
    if bounds is None:
        raise ValueError(f"bad slice [{part}] in {source}; write [:64], [64:] or [10:20]")
    return Path(path), slice(*(int(bound) if bound else None for bound in bounds.groups()))


def _read_file(path: Path) -> Sequence[Any]:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; {_what_exists(path)}")
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"cannot read {path}: give a .jsonl file, a .json file or a directory of a saved dataset")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if text.lstrip().startswith("["):
        return _parse(text, path, 1)
    # Not splitlines(), which also breaks at line separators inside a text.
    lines = enumerate(text.split("\n"), start=1)
    return [_parse(line, path, number) for number, line in lines if line.strip()]


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg}); write one object per line, or one list"
        ) from error


def _read_directory(path: Path) -> Sequence[Any]:
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if "train" not in splits:
            raise ValueError(f"{path} has no split train but {', '.join(splits)}; name one, as in {path / splits[0]}")
        path = path / "train"
    if not (path / "state.json").exists():
        raise ValueError(f"{path} is a directory but no saved dataset; {_what_exists(path / 'state.json')}")
    # Importing datasets takes longer than reading most files.
    from datasets import load_from_disk

    return load_from_disk(str(path)).to_list()


def _what_exists(missing: Path) -> str:
    if not missing.parent.is_dir():
        return f"its directory {missing.parent} does not exist either; correct the path"
    names = sorted(entry.name for entry in missing.parent.iterdir())
    similar = difflib.get_close_matches(missing.name, names, n=5, cutoff=0.5)
    readable = similar or [name for name in names if name.endswith((".json", ".jsonl"))][:5]
    if not readable:
        return f"{missing.parent} holds no .json or .jsonl file; correct the path"
    return f"{missing.parent} holds {', '.join(readable)}; correct the path"


def _layout(row: Any, place: str) -> Layout:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    for layout in LAYOUTS:
        if layout.matches(row):
            return layout
    raise ValueError(
        f"{place}: unknown layout with the keys {', '.join(row) or '(none)'}; "
        f"known are {'; '.join(layout.name for layout in LAYOUTS)}"
    )


def _checked(turns: Turns) -> Turns:
    turns = Turns(*(_text(value, name) for name, value in turns._asdict().items()))
    if not turns.instruction.strip():
        raise Unusable("empty instruction", "the instruction is blank")
    if not turns.response.strip():
        raise Unusable("empty response", "the response is blank")
    return turns


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
        if self.fits(row.get(self.name)):
            return row[self.name]
        found = [row[name] for name in self.others if self.fits(row.get(name))]
        return found[0] if len(found) == 1 else self.absent


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


RECORDED = {
    "teacher": Columns("teacher", ("model", "generator"), lambda value: isinstance(value, str) and value != "", ""),
    "quality": Columns("quality", ("reward", "score"), _is_number, None),
}
"""What a row may say of its response, by field of `Example`."""


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str | None):
        raise Unusable("malformed row", f"{name} is {type(value).__name__}, not text")
    if value and not _writable(value):
        raise Unusable("malformed row", f"{name} holds half of a surrogate pair, which is no character")
    return value or ""


def _columns(instruction: str, response: str) -> tuple[Callable[[Row], bool], Callable[[Row], Turns]]:
    # Most layouts are two columns under some name.
    return (
        lambda row: instruction in row and response in row,
        lambda row: Turns(row[instruction], row[response], row.get("system")),
    )


def _with_input(row: Row, input: Any, output: Any) -> Turns:
    instruction, input = _text(row["instruction"], "instruction"), _text(input, "input")
    joined = f"{instruction}\n{input}" if instruction.strip() and input.strip() else instruction
    return Turns(joined, output, row.get("system"))


def _from_instances(row: Row) -> Turns:
    first = objects(row["instances"], "instances")[:1] or [{}]
    return _with_input(row, first[0].get("input"), first[0].get("output"))


def _from_conversation(row: Row) -> Turns:
    turns = [
        (turn.get("role", turn.get("from")), turn.get("content", turn.get("value")))
        for turn in objects(row.get("messages", row.get("conversations")), "the conversation")
    ]
    system = next((text for who, text in turns if who == "system"), row.get("system"))
    asked = next((place for place, (who, _) in enumerate(turns) if who in ("user", "human")), None)
    if asked is None:
        raise Unusable("no user turn", f"the roles are {', '.join(str(who) for who, _ in turns) or '(none)'}")
    answers = (text for who, text in turns[asked + 1 :] if who in ("assistant", "gpt"))
    return Turns(turns[asked][1], _first_answer(answers), system)


def _from_tree(row: Row) -> Turns:
    replies = [
        reply
        for reply in objects(row["prompt"].get("replies"), "replies")
        if reply.get("role", "assistant") == "assistant" and not reply.get("deleted")
    ]
    replies.sort(key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    return Turns(row["prompt"].get("text"), _first_answer(reply.get("text") for reply in replies))


def _first_answer(answers: Iterable[Any]) -> Any:
    for answer in answers:
        return answer
    raise Unusable("no assistant turn", "nobody answers the first user turn")


LAYOUTS = (
    Layout(
        "our own (instruction, response and other fields of Example)",
        lambda row: {"instruction", "response"} <= row.keys() <= _EXAMPLE_KEYS,
        lambda row: Turns(row["instruction"], row["response"], row.get("system")),
    ),
    Layout("messages (role, content)", lambda row: "messages" in row, _from_conversation),
    Layout("conversations (from, value)", lambda row: "conversations" in row, _from_conversation),
    Layout(
        "instruction, instances (input, output)",
        lambda row: {"instruction", "instances"} <= row.keys(),
        _from_instances,
    ),
    Layout(
        "instruction, input, output",
        lambda row: {"instruction", "output"} <= row.keys(),
        lambda row: _with_input(row, row.get("input"), row["output"]),
    ),
    Layout("instruction, response", *_columns("instruction", "response")),
    Layout("prompt (text, replies)", lambda row: isinstance(row.get("prompt"), dict), _from_tree),
    Layout("prompt, completion", lambda row: {"prompt", "completion"} <= row.keys(), from_completion),
    Layout("question, answer", *_columns("question", "answer")),
    Layout("chosen, rejected", lambda row: {"chosen", "rejected"} <= row.keys(), from_preference),
)
"""The layouts that are read, in the order in which they are tried."""
