"""What models answer to the items of a test set, kept and exchanged in the files of AlpacaEval.

`outputs.json` is a list of `{instruction, output, generator}`. `annotations.json` is one of comparisons, in which the
other side is output 1, the student output 2, and `preference` 1, 1.5 for a tie, or 2; null where there is none.
`model_judgment.jsonl` holds graded judgements as Arena-Hard's code reads them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.data.files import READABLE, read_rows, source_path
from montessori_pl.data.records import Example, Record, json_text
from montessori_pl.data.text import writable
from montessori_pl.data.text_files import GZIP
from montessori_pl.run_directory.atomic import write_atomically

OUTPUTS = "outputs.json"
ANNOTATIONS = "annotations.json"
ARENA_HARD = "model_judgment.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output(Record):
    """What a model answers to an item of the test set; `id` is the item's."""

    output: str
    """The answer; empty where the prompt leaves no room for one."""
    cut: bool
    """Whether it reached the token limit before it ended."""


def outputs_file(name: str) -> Path | None:
    """The file that a name means; none for the name of a student."""
    path = source_path(name)
    return path if path.name.removesuffix(GZIP).endswith(READABLE) else None


def side_name(path: Path) -> str:
    """What the other side is called whose outputs a file holds: the file's name without the endings of its kind."""
    name = path.name.removesuffix(GZIP)
    return next((name.removesuffix(kind) for kind in READABLE if name.endswith(kind)), name)


def read_outputs(source: str, items: Sequence[Example]) -> list[str]:
    """The outputs of a file for these items, found by their instructions.

    Where an instruction stands in it several times, the outputs are taken in their order, and the last one again.

    Args:
        source: a file of rows with `instruction` and `output`, as AlpacaEval's `model_outputs.json`, or with
            `messages`, as Arena-Hard's `model_answer`.
        items: of the test set.

    Raises:
        ValueError: the file cannot be read, or has no output for an item.
    """
    path, rows, numbers = read_rows(source)
    found: dict[str, list[str]] = {}
    for number in numbers:
        row = rows[number]
        instruction, output = _fields(row)
        if not isinstance(instruction, str) or not isinstance(output, str):
            has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise ValueError(f"{path}, row {number + 1}: expected the texts instruction and output, found {has}")
        found.setdefault(instruction.strip(), []).append(writable(output))
    missing = [item.instruction for item in items if item.instruction.strip() not in found]
    if missing:
        raise ValueError(
            f"{path} has no output for {len(missing)} of the {len(items)} items of data.test, for example "
            f"{missing[0][:80]!r}; instructions must be the same in both, and {path.name} has {len(found)} of them"
        )
    outputs = []
    for item in items:
        left = found[item.instruction.strip()]
        outputs.append(left.pop(0) if len(left) > 1 else left[0])
    return outputs


def _fields(row: Any) -> tuple[Any, Any]:
    """Instruction and output of a row; in Arena-Hard's form these are its last two messages."""
    if not isinstance(row, Mapping):
        return None, None
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(one, Mapping) for one in messages):
        return row.get("instruction"), row.get("output")
    asked, said = (one.get("content") for one in messages[-2:])
    return asked, said.get("answer") if isinstance(said, Mapping) else said


def write_alpaca_eval(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file's content by a list of rows, as AlpacaEval reads it."""
    write_atomically(path, json_text(rows, ensure_ascii=False, indent=1) + "\n")
