import json
from pathlib import Path
from typing import Any

import pytest

from montessori_pl.data.formats import read_examples, read_source
from montessori_pl.data.records import Example, append_records, stable_id

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def write(path: Path, *rows: Any) -> str:
    """Write rows as JSON lines and give the path as a source."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


LAYOUTS = {
    "ours": ({"id": "x", "instruction": "Q", "response": "A", "system": "S"}, ("S", "Q", "A")),
    "alpaca": ({"instruction": "Q", "input": "I\n", "output": "A"}, ("", "Q\nI\n", "A")),
    "alpaca_blank_input": ({"instruction": "Q", "input": " ", "output": "A", "text": "all"}, ("", "Q", "A")),
    "alpaca_null_input": ({"instruction": "Q", "input": None, "output": "A"}, ("", "Q", "A")),
    "alpaca_system": ({"instruction": "Q", "output": "A", "system": "S"}, ("S", "Q", "A")),
    "response": ({"instruction": "Q", "response": "A", "topic": "T"}, ("", "Q", "A")),
    "messages": ({"messages": [turn("system", "S"), turn("user", "Q"), turn("assistant", "A")]}, ("S", "Q", "A")),
    "messages_many_turns": (
        {
            "prompt": "Q",
            "messages": [turn(r, t) for t in "QR" for r in ("user", "assistant")],
        },
        ("", "R", "R"),
    ),
    "conversations": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
        ("S", "Q", "A"),
    ),
    "completion": ({"prompt": "Q", "completion": "A"}, ("", "Q", "A")),
    "seed_task": (
        {"instruction": "Q", "instances": [{"input": "I", "output": "A"}, {"input": "J", "output": "B"}]},
        ("", "Q\nI", "A"),
    ),
    "tree": (
        {
            "prompt": {
                "text": "Q",
                "replies": [
                    {"text": "unranked", "rank": None, "role": "assistant"},
                    {"text": "second", "rank": 1, "role": "assistant"},
                    {"text": "deleted", "rank": -1, "role": "assistant", "deleted": True},
                    {"text": "A", "rank": 0, "role": "assistant", "replies": [{"text": "R"}]},
                ],
            }
        },
        ("", "Q", "A"),
    ),
    "tree_unranked": ({"prompt": {"text": "Q", "replies": [{"text": "A"}, {"text": "B"}]}}, ("", "Q", "A")),
    "question": ({"question": "Q", "answer": "A"}, ("", "Q", "A")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(layout: str, tmp_path: Path) -> None:
    row, expected = LAYOUTS[layout]
    examples, rejections = read_source(write(tmp_path / "data.jsonl", row))
    assert rejections == []
    assert [(example.system, example.instruction, example.response) for example in examples] == [expected]


def test_layouts_may_be_mixed_row_by_row(tmp_path: Path) -> None:
    rows = [row | {"id": name} for name, (row, _) in LAYOUTS.items() if name in ("alpaca", "question", "conversations")]
    assert [example.id for example in read_examples(write(tmp_path / "data.jsonl", *rows))] == [r["id"] for r in rows]


def test_our_own_examples_come_back_whole(tmp_path: Path) -> None:
    origin: dict[str, Any] = {"prompt": "P", "completion": "C", "seed_task_ids": ("a", "b"), "batch": 3, "teacher": "T"}
    example = Example(id="x", instruction="Q", response="A", quality=0.5, **origin)
    append_records(tmp_path / "examples.jsonl", [example])
    assert read_examples(str(tmp_path / "examples.jsonl")) == [example]


@pytest.mark.parametrize(
    "text", ["  def f(x):\n\treturn x\r\n", "Größe 日本語 😀", "line\u2028separator\x85here", '"[1:2]"']
)
def test_text_is_kept_exactly(text: str, tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path / "data.jsonl", {"instruction": text, "response": text}))
    assert (example.instruction, example.response) == (text, text)


@pytest.mark.parametrize("written", ["[{row},\n {row2}]", "\ufeff{row}\r\n\r\n{row2}", "\n {row}\n{row2}\n\n"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_lists_and_lines_in_either_file(written: str, suffix: str, tmp_path: Path) -> None:
    rows = {"row": '{"question": "Q", "answer": "A"}', "row2": '{"question": "R", "answer": "B"}'}
    text = written.replace("{row}", rows["row"]).replace("{row2}", rows["row2"])
    (tmp_path / f"data.{suffix}").write_text(text, encoding="utf-8")
    assert [example.instruction for example in read_examples(str(tmp_path / f"data.{suffix}"))] == ["Q", "R"]


def test_ids(tmp_path: Path) -> None:
    """The row's own where it is unique, otherwise one that depends on the text alone."""
    ids: list[Any] = ["own", 7, "twice", "twice", None, ""]
    rows = [{"id": id, "instruction": f"Q{n}", "output": "A"} for n, id in enumerate(ids)]
    rows.append({"instruction": "Q6", "output": "A"})
    derived = [stable_id(f"Q{n}", "A", 0) for n in range(2, 7)]
    source = write(tmp_path / "data.jsonl", *rows)
    assert [example.id for example in read_examples(source)] == ["own", "7", *derived]
    # A slice changes no id, although only one of the equal ones is in it.
    assert [example.id for example in read_examples(source + "[3:]")] == derived[1:]


def test_examples_that_differ_in_the_system_message_are_two(tmp_path: Path) -> None:
    rows = [{"instruction": "Q", "output": "A", "system": system} for system in ("S", "T", "S")]
    examples, rejections = read_source(write(tmp_path / "data.jsonl", *rows))
    assert [(example.id, example.system) for example in examples] == [
        (stable_id("Q", "A", 0), "S"),
        (stable_id("Q", "A", 1), "T"),
    ]
    assert [rejection.reason for rejection in rejections] == ["duplicate"]


def test_rows_without_an_example_are_rejected_with_their_number(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Q", "output": "A"},
        {"instruction": " ", "input": "I", "output": "A"},
        {"instruction": "Q", "output": None},
        {"instruction": "Q", "output": "A", "id": "own"},
        {"messages": [turn("user", "Q")]},
        {"messages": [turn("assistant", "A")]},
        {"messages": ["Q", "A"]},
        {"instruction": "Q", "instances": []},
        {"prompt": {"text": "Q", "replies": []}},
        {"question": "Q", "answer": True},
    ]
    source = write(tmp_path / "data.jsonl", *rows)
    examples, rejections = read_source(source)
    assert [example.instruction for example in examples] == ["Q"]
    assert [(rejection.reason, rejection.detail.removeprefix("row ").split()[0]) for rejection in rejections] == [
        ("empty instruction", "2"),
        ("empty response", "3"),
        ("duplicate", "4"),
        ("no assistant turn", "5"),
        ("no user turn", "6"),
        ("malformed row", "7"),
        ("empty response", "8"),
        ("no assistant turn", "9"),
        ("malformed row", "10"),
    ]
    assert rejections[-1].detail == f"row 10 of {source}: response is bool, not text"
    assert [json.loads(rejection.text) for rejection in rejections] == rows[1:]
    assert rejections[2].id == "own"
    assert len({rejection.id for rejection in rejections}) == len(rejections)


@pytest.mark.parametrize(
    ("part", "numbers"), [("[:2]", [0, 1]), ("[3:]", [3, 4]), ("[1:3]", [1, 2]), ("[-2:]", [3, 4]), ("[:]", range(5))]
)
def test_slices(part: str, numbers: list[int], tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", *({"question": f"Q{n}", "answer": "A"} for n in range(5)))
    assert [example.instruction for example in read_examples(source + part)] == [f"Q{n}" for n in numbers]


def test_a_file_whose_name_ends_like_a_slice(tmp_path: Path) -> None:
    directory = tmp_path / "data[1]"
    directory.mkdir()
    source = write(directory / "data.json", {"question": "Q", "answer": "A"})
    assert len(read_examples(source)) == len(read_examples(source + "[:1]")) == 1


def test_a_saved_dataset(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"id": n, "messages": [turn("user", f"Q{n}\n"), turn("assistant", "Ä")]} for n in range(3)]
    dataset = Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "one")
    examples = read_examples(str(tmp_path / "one"))
    assert [(e.id, e.instruction, e.response) for e in examples] == [(str(n), f"Q{n}\n", "Ä") for n in range(3)]
    assert read_examples(f"{tmp_path / 'one'}[1:]") == examples[1:]

    DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "several")
    assert read_examples(str(tmp_path / "several")) == examples
    assert read_examples(str(tmp_path / "several" / "test")) == examples[:1]

    DatasetDict(test=dataset, validation=dataset).save_to_disk(tmp_path / "no_train")
    with pytest.raises(ValueError, match=r"no_train has no split train but test, validation; name one, as in .*test$"):
        read_source(str(tmp_path / "no_train"))


@pytest.mark.parametrize(
    ("columns", "teacher", "quality"),
    [
        ({}, "", None),
        ({"teacher": "t", "quality": 2}, "t", 2),
        ({"model": "t", "reward": -1.5}, "t", -1.5),
        ({"generator": "t", "score": 0.0}, "t", 0.0),
        ({"teacher": "t", "model": "m", "quality": 1.0, "score": 9.0}, "t", 1.0),
        ({"teacher": None, "model": "m", "quality": None, "score": 9.0}, "m", 9.0),
        ({"model": "m", "generator": "g", "reward": 1.0, "score": 9.0}, "", None),
        ({"model": "m", "generator": None, "reward": 1.0, "score": "good"}, "m", 1.0),
        ({"model": {"name": "m"}, "score": float("nan"), "reward": True}, "", None),
    ],
)
@pytest.mark.parametrize("layout", ["ours", "alpaca", "messages_many_turns", "question"])
def test_who_wrote_a_response_and_how_good_it_is(
    layout: str, columns: dict[str, Any], teacher: str, quality: float | None, tmp_path: Path
) -> None:
    """Our own names go first; of two other names with a value neither is read."""
    row, _ = LAYOUTS[layout]
    (example,) = read_examples(write(tmp_path / "data.jsonl", {**row, **columns}))
    assert (example.teacher, example.quality) == (teacher, quality)


def test_two_teachers_may_say_the_same(tmp_path: Path) -> None:
    rows = [{"instruction": "Q", "output": "A", "model": name} for name in ("a", "b", "a")]
    examples, rejections = read_source(write(tmp_path / "data.jsonl", *rows))
    assert [(example.teacher, example.id) for example in examples] == [
        ("a", stable_id("Q", "A", 0)),
        ("b", stable_id("Q", "A", 1)),
    ]
    assert [rejection.reason for rejection in rejections] == ["duplicate"]


def test_our_own_examples_from_a_saved_dataset(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"id": "x", "instruction": "Q", "response": "A", "teacher": None, "seed_task_ids": ["a"]}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "ours")
    expected = [Example(id="x", instruction="Q", response="A", seed_task_ids=("a",))]
    assert read_examples(str(tmp_path / "ours")) == expected


def test_missing_files_name_what_exists(tmp_path: Path) -> None:
    write(tmp_path / "seed_tasks.jsonl", {})
    with pytest.raises(FileNotFoundError, match=r"no file .*seed_task\.jsonl; .* holds seed_tasks\.jsonl; correct"):
        read_source(str(tmp_path / "seed_task.jsonl[:3]"))
    with pytest.raises(FileNotFoundError, match=r"no file .*x; .* holds seed_tasks\.jsonl; correct"):
        read_source(str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError, match=r"its directory .*nowhere does not exist either"):
        read_source(str(tmp_path / "nowhere" / "data.jsonl"))
    with pytest.raises(ValueError, match=r"is a directory but no saved dataset; .* holds seed_tasks\.jsonl"):
        read_source(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no \.jsonl, \.json, \.csv, \.tsv, \.parquet file"):
        read_source(str(tmp_path / "empty" / "data.jsonl"))


@pytest.mark.parametrize("part", ["[5]", "[a:b]", "[::2]", "[]", "[-:]", "[1.5:]"])
def test_bad_slices(part: str, tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", {"question": "Q", "answer": "A"})
    with pytest.raises(ValueError, match=r"bad slice \[.*\] in .*; write \[:64\], \[64:\] or \[10:20\]"):
        read_source(source + part)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"question": "Q", "answer": "A"}\n{"question"',
            r"data\.jsonl, line 2: not JSON from column 12 on; write one",
        ),
        (b'[{"question": "Q",\n "answer"}]', r"data\.jsonl, line 2: not JSON"),
        (b'{"question": "\xff"}', r"data\.jsonl: not UTF-8 at byte 14; save it as UTF-8"),
        (b'{"question": "Q", "answer": "A"}\n"text"', r"row 2 of .*data\.jsonl: expected a JSON object, found str"),
        (
            b'{"stem": "Q", "key": "A"}',
            r"row 1 of .*: unknown layout with the keys stem, key; known are our own .*answer",
        ),
        (b"{}", r"unknown layout with the keys \(none\)"),
        (b"", r"no row to read in .*data\.jsonl: it has 0 rows"),
        (
            b'{"question": "Q", "answer": ""}',
            r"no usable row in .*: 1 empty response; the first is row 1 of .*: the resp",
        ),
    ],
)
def test_files_that_cannot_be_read(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_source(str(tmp_path / "data.jsonl"))


def test_other_mistakes(tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", {"question": "Q", "answer": "A"})
    with pytest.raises(ValueError, match=r"no row to read in .*\[1:\]: it has 1 rows; correct the file or the slice"):
        read_source(source + "[1:]")
    (tmp_path / "data.xlsx").write_text("instruction,output\n")
    with pytest.raises(
        ValueError, match=r"cannot read .*data\.xlsx: give a file of one of the kinds \.jsonl, \.json, \.c"
    ):
        read_source(str(tmp_path / "data.xlsx"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not in {SHARED}")
@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("self_instruct/seed_tasks.jsonl", 175),
        ("self_instruct/user_oriented_instructions.jsonl", 252),
        ("open_assistant/en_100_tree.jsonl", 100),
        ("gsm8k/train.jsonl", 7473),
        ("gsm8k/test.jsonl[64:]", 1319 - 64),
    ],
)
def test_real_files(source: str, count: int) -> None:
    examples, rejections = read_source(str(SHARED / source))
    assert len(examples) + len(rejections) == count
    assert len(rejections) < count / 100
    assert len({example.id for example in examples}) == len(examples)
