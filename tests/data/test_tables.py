"""The same rows in every kind of file: lines, lists, tables of text, Parquet, compressed or not."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from montessori_pl.data.formats import load_source, read_examples

ROWS = [
    {"instruction": "How many?", "input": "", "output": "007"},
    {"instruction": 'Which\nword, "exactly"?', "input": "NA", "output": "None"},
    {"instruction": "Größe 日本語", "input": "null", "output": "1.50"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as the path's suffix says, without the library that reads them where there is another."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
        return str(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        if kind in ("csv", "tsv"):
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
        else:
            file.write(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json.gz", "csv", "csv.gz", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_examples(kind: str, tmp_path: Path) -> None:
    """Above all, what looks like a number or like nothing stays the text that it is."""
    source = write(tmp_path / f"data.{kind}", ROWS)
    examples = read_examples(source)
    assert [(one.instruction, one.response) for one in examples] == [
        ("How many?", "007"),
        ('Which\nword, "exactly"?\nNA', "None"),
        ("Größe 日本語\nnull", "1.50"),
    ]
    assert read_examples(source + "[1:]") == examples[1:]


def test_parquet_with_conversations_numbers_and_nulls(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 1}]
    rows = [
        {"messages": turns, "question": None, "answer": None},
        {"messages": None, "question": "R", "answer": 2},
    ]
    first, second = read_examples(write(tmp_path / "data.parquet", rows))
    assert (first.instruction, first.response) == ("Q", "A")
    assert (second.instruction, second.response) == ("R", "2")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv.gz"])
def test_columns_of_numbers_and_truths_mean_the_same_in_tables(kind: str, tmp_path: Path) -> None:
    """A completion that is not to be learned is none, and how good a response is may be read; the rest is text."""
    learned = write(
        tmp_path / f"learned.{kind}",
        [{"prompt": "P", "completion": "A", "label": False}, {"prompt": "Q", "completion": "1", "label": True}],
    )
    loaded = load_source(learned)
    assert [(one.instruction, one.response) for one in loaded.examples] == [("Q", "1")]
    assert loaded.left_out() == {"undesirable completion": 1}
    assert loaded.unread == {}
    weighed = write(
        tmp_path / f"weighed.{kind}",
        [{"question": "P", "answer": "0.5", "weight": 1, "score": 0.5}, {"question": "Q", "answer": "A", "weight": 0}],
    )
    loaded = load_source(weighed)
    assert [(one.response, one.quality) for one in loaded.examples] == [("0.5", 0.5)]
    assert loaded.left_out() == {"undesirable completion": 1}


def test_cells_that_are_no_numbers_are_not_read(tmp_path: Path) -> None:
    """Classes are no truths, as in other files; and neither words nor infinity are a number."""
    source = write(
        tmp_path / "data.csv",
        [
            {"question": f"Is it {word}?", "answer": "A", "label": "1", "quality": word}
            for word in ("high", "inf", "null", "1e999")
        ],
    )
    loaded = load_source(source)
    assert [one.quality for one in loaded.examples] == [None] * 4
    assert loaded.unread == {"label": 4, "quality": 4}


def test_a_row_that_ends_early_has_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("instruction,output,input\nQ,A,I\nR,B\n")
    assert [one.instruction for one in read_examples(str(tmp_path / "data.csv"))] == ["Q\nI", "R"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"instruction,output\nQ,A,B,C\nR,A,B\n", r"row 1 of .*data\.csv has 4 cells and the first line"),
        ("data.csv", b'instruction,output\nQ,"A" B\n', r"cannot read .*data\.csv: .*; put quotation marks"),
        ("data.csv", b"output,output\nQ,A\n", r"data\.csv: its first line must name each column, found output, output"),
        ("data.csv", b"", r"data\.csv: .*first line"),
        (
            "data.csv",
            b"instruction;output\nQ;A, or B\n",
            r"cells are separated by ';', and those of a \.csv file by ','",
        ),
        ("data.tsv", b"instruction,output\nQ,A\n", r"cells are separated by ',', and those of a \.tsv file by '\\t'"),
        (
            "data.jsonl",
            b'[{"role": "user"}]\n\n[{"role": "user"}]\n',
            r"its lines are lists; write one object per line",
        ),
        ("data.parquet", b"instruction", r"cannot read .*data\.parquet: no Parquet file \(.*\); write it again"),
        ("data.jsonl.gz", b"{}", r"cannot read .*data\.jsonl\.gz: not a whole gzip file"),
        ("data.jsonl.gz", gzip.compress(b'{"question": "Q"}' * 99, mtime=0)[:-9], r"not a whole gzip file"),
        ("data.parquet.gz", b"", r"cannot read .*parquet\.gz: give a file of one of the kinds .*, \.parquet \(all but"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_source(str(tmp_path / name))
