"""Files and templates that would never end, or take all memory: bounded, and refused in a sentence."""

import gzip
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_template_text import text_of

from montessori_pl.data import template_text, text_files
from montessori_pl.data.formats import read_source
from montessori_pl.data.limits import TooSlowError, memory_at_most, seconds_at_most
from montessori_pl.data.records import read_lines
from montessori_pl.evaluation.judge_prompts import load_prompt
from montessori_pl.synthesis.prompts import load_template

ROW = '{"question": "Q", "answer": "A"}\n'


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".jsonl.gz"])
def test_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    path = Path(f"data{suffix}")
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"cannot read data{suffix}: it is {kind}; give a regular file"):
        read_source(str(path))


@pytest.mark.parametrize("load", [load_prompt, load_template])
def test_prompts_are_regular_files_in_utf_8(tmp_path: Path, load: object) -> None:
    assert callable(load)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="or the path of a text file"):
        load(str(tmp_path / "pipe.txt"))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 at byte 0; save it as UTF-8"):
        load(str(tmp_path / "latin.txt"))


def test_a_file_larger_than_the_free_memory(tmp_path: Path) -> None:
    """A hole in a file takes no room on the disk; this one is larger than any memory."""
    with open(tmp_path / "data.jsonl", "wb") as file:
        file.truncate(2**43)
    with pytest.raises(ValueError, match=r"data\.jsonl: it holds 8796\.1 GB, and the memory .* split it"):
        read_source(str(tmp_path / "data.jsonl"))


def test_a_small_file_that_decompresses_to_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 MB of memory, of which four copies must fit, 1 MB can be read."""
    free = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=4_000_000))
    monkeypatch.setattr(text_files, "psutil", free)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress((ROW * 40_000).encode()))
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"it holds at least 0\.0 GB, and the memory"):
        read_source(str(path))
    path.write_bytes(gzip.compress(ROW.encode()))
    assert len(read_source(str(path))[0]) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, r"line 1: nested too deeply"),
        (ROW + '{"question": ' + "[" * 5_000 + "]" * 5_000 + "}\n", r"line 2: nested too deeply"),
        (ROW + '{"question": ' + "9" * 5_000 + "}\n", r"line 2: .*a number.* too long"),
        (ROW + '{"question": "Q\n', r"line 2: not JSON from column 1[46] on"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: str, sentence: str) -> None:
    """In a file of data and in one of records alike."""
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_source(str(path))
    path.write_text(text if text.endswith("\n") else text + "\n")
    with pytest.raises(ValueError, match=sentence):
        list(read_lines(path))


def test_data_set_without_splits(tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"splits": 3}'):
        (tmp_path / "dataset_dict.json").write_text(content)
        with pytest.raises(ValueError, match=r"dataset_dict\.json names no splits"):
            read_source(str(tmp_path))
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_dict\.json, line 1: not JSON"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "no end after 0.2 seconds"),
        ("{% for i in range(10**9) %}a{% endfor %}", "does not come to an end .*Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "does not come to an end .*recursion"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "does not come to an end .*recursion"),
        ("{{ messages[0]['content'] * 10**9 }}", "does not come to an end .*more than .* bytes of memory"),
        ("{{ messages[0]['content'] }}{{ 'a' * 2**21 }}", "writes 2,097,168 characters for a short conversation"),
        ("{{ 1 / 0 }}", "refuses a conversation .*division by zero"),
    ],
)
def test_templates_that_do_not_end(template: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_text, "SECONDS", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(ValueError, match=sentence):
        text_of(template)
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_bounds_end_with_their_block() -> None:
    def for_ever() -> None:
        while True:
            pass

    with pytest.raises(TooSlowError, match=r"no end after 0\.05 seconds"), seconds_at_most(0.05):
        for_ever()
    with seconds_at_most(0.05):
        time.sleep(0.1)  # who waits does not compute
    with memory_at_most(2**28):
        with pytest.raises(MemoryError):
            bytes(2**29)
        bytes(2**26)
    assert len(bytes(2**29)) == 2**29
