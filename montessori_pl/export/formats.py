"""The rows of a stage in the layouts that other trainers read.

All text is as it was written, without an end token: who trains on it puts one behind each response. Files are JSON
lines, which TRL (through `datasets`), LLaMA-Factory and axolotl all read; beside them stands what LLaMA-Factory wants
to know of a data set.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from montessori_pl.data.records import Example, Score, Turn, token_fields
from montessori_pl.export.source import EXAMPLES, PAIRS, Source
from montessori_pl.run_directory.atomic import write_json_lines

TRAIN = "train.jsonl"
"""The rows, in all formats but `hf`; the Hugging Face hub finds its split in the name."""
RANKED = "pairs_for_llama_factory.jsonl"
"""Pairs once more: LLaMA-Factory takes no lists of messages for a preferred response."""
DATASET_INFO = "dataset_info.json"
"""How LLaMA-Factory calls its description of data sets."""


def write_alpaca(source: Source, directory: Path) -> None:
    """`instruction`, `input` (always empty), `output`, and `system` and `history` where some example has them."""
    rows = (
        {
            "id": one.id,
            "instruction": one.instruction,
            "input": "",
            "output": one.response,
            "system": one.system,
            "history": _exchanges(one.history),
        }
        for one in source.examples
    )
    _write_alpaca(source, directory / TRAIN, rows, {"response": "output"})


def write_messages(source: Source, directory: Path) -> None:
    """`messages`, each a role and a content; an earlier answer that is not to be learned has `weight` 0."""
    path = directory / TRAIN
    write_json_lines(path, ({"id": one.id, "messages": _weighted(one)} for one in source.examples))
    roles = {f"{role}_tag": role for role in ("user", "assistant", "system")}
    tags = {"role_tag": "role", "content_tag": "content", **roles}
    _describe(source, path, formatting="sharegpt", columns={"messages": "messages"}, tags=tags)


def write_dpo(source: Source, directory: Path) -> None:
    """`prompt`, `chosen` and `rejected`, each a list of messages; and the same as text for LLaMA-Factory."""
    write_json_lines(
        directory / TRAIN,
        (
            {
                "id": pair.id,
                "prompt": pair.messages(),
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
                # Not `margin`: some trainers subtract a column of this name from the difference of rewards.
                "score_margin": pair.margin,
                "weight": pair.weight,
            }
            for pair in source.pairs
        ),
    )
    rows = (
        {
            "id": pair.id,
            "instruction": pair.prompt,
            "input": "",
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "system": pair.system,
            "history": _exchanges(pair.history),
        }
        for pair in source.pairs
    )
    _write_alpaca(source, directory / RANKED, rows, {"chosen": "chosen", "rejected": "rejected"}, ranking=True)


def write_hf(source: Source, directory: Path) -> None:
    """The whole records as split `train` of a saved `DatasetDict`, with the scores of each stage that scored them.

    Only the token ids are left out.
    """
    from datasets import Dataset, DatasetDict, Features, disable_progress_bars

    # Other trainers have tokenizers of their own.
    columns = {name: hint for name, hint in get_type_hints(Example).items() if name not in token_fields(Example)}
    features = {name: _feature(hint) for name, hint in columns.items()}
    rows = [{name: value for name, value in asdict(one).items() if name in columns} for one in source.examples]
    hints = get_type_hints(Score)
    for key, scores in source.scores().items():
        for column, field in score_columns(key).items():
            features[column] = _feature(hints[field])
            for row in rows:
                row[column] = getattr(scores.get(row["id"]), field, None)
    disable_progress_bars()
    DatasetDict({"train": Dataset.from_list(rows, features=Features(features))}).save_to_disk(directory)


WRITERS: dict[str, tuple[str, Callable[[Source, Path], None]]] = {
    "alpaca": (EXAMPLES, write_alpaca),
    "messages": (EXAMPLES, write_messages),
    "dpo": (PAIRS, write_dpo),
    "hf": (EXAMPLES, write_hf),
}
"""The formats: which kind of stage each takes, and who writes it."""


def has_system(source: Source) -> bool:
    """Whether some row has a system message."""
    return any(row.system for row in source.pairs or source.examples)


def has_history(source: Source) -> bool:
    """Whether some row has turns before its instruction."""
    return any(row.history for row in source.pairs or source.examples)


def unlearned_answers(source: Source) -> int:
    """How many answers before the instructions of examples are not to be learned."""
    turns = (turn for example in source.examples for turn in example.history)
    return sum(turn.role == "assistant" and turn.weight == 0 for turn in turns)


def dataset_name(source: Source) -> str:
    """How the data set is called where a name is asked for: without commas, at which LLaMA-Factory parts names."""
    return re.sub(r"[^\w.-]+", "_", f"{source.run.resolve().name}_{source.stage.name}")


def score_columns(key: str) -> dict[str, str]:
    """The columns with the scores of a stage, and the field of a score that each holds."""
    return {key: "value", f"{key}/standard_error": "standard_error"}


def _write_alpaca(
    source: Source, path: Path, rows: Iterable[Mapping[str, Any]], answers: Mapping[str, str], **description: Any
) -> None:
    """Write rows in the columns of Alpaca, without `system` and `history` where no row has any, and describe them."""
    columns = {"prompt": "instruction", "query": "input", **answers}
    columns |= {name: name for name, has in (("system", has_system), ("history", has_history)) if has(source)}
    written = {"id", *columns.values()}
    write_json_lines(path, ({name: value for name, value in row.items() if name in written} for row in rows))
    _describe(source, path, columns=columns, **description)


def _exchanges(history: Sequence[Turn]) -> list[list[str]]:
    """Pairs of a user turn and its answer."""
    texts = [turn.content for turn in history]
    return [texts[at : at + 2] for at in range(0, len(texts), 2)]


def _weighted(example: Example) -> list[dict[str, Any]]:
    """The messages, with OpenAI's `weight` on earlier answers that are not to be learned."""
    messages = [dict(message) for message in example.messages()]
    for message, turn in zip(messages[-2 - len(example.history) :], example.history, strict=False):
        if turn.weight == 0 and turn.role == "assistant":
            message["weight"] = 0
    return messages


def _describe(source: Source, path: Path, **description: Any) -> None:
    """Write the file in which LLaMA-Factory looks data sets up; in ASCII, for it is read in the locale's encoding."""
    content = {dataset_name(source): {"file_name": path.name, **description}}
    path.with_name(DATASET_INFO).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _feature(hint: Any) -> Any:
    """The column type of a record's field."""
    from datasets import List, Value

    if get_origin(hint) is tuple:
        return List(_feature(get_args(hint)[0]))
    if is_dataclass(hint):
        return {name: _feature(inner) for name, inner in get_type_hints(hint).items()}
    if get_origin(hint) is Literal:
        hint = type(get_args(hint)[0])
    return Value({str: "string", bool: "bool", int: "int64", float: "float64", float | None: "float64"}[hint])
