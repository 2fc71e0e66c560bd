"""The power fails before any sync, in each of the ways in which it can: the work goes on and leaves the same bytes.

A small run that uses all that stages use to write, without models, in this process.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from power_loss import LOSSES, Disk, Loss
from stage_runs import Killed

from montessori_pl.data.records import Example, Rejection, Score, as_lines, drop_torn_line, read_records
from montessori_pl.generation.request_journal import Answer, RequestJournal
from montessori_pl.run_directory import durable
from montessori_pl.run_directory.atomic import directory_written_atomically, write_json
from montessori_pl.run_directory.journal import Journal, check_journals
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stages.scoring.score_files import ScoreFiles

WRITTEN, SCORED, TRAINED = KEYS = ("iteration_1/written", "iteration_1/scored", "iteration_1/trained")


def example(number: int) -> Example:
    return Example(id=f"e{number}", instruction="ñ?" * 3, response="🎉")


def write(directory: Path) -> None:
    """Three commits of two examples and a rejection."""
    journal = Journal(directory, ["examples.jsonl", "rejections.jsonl"])
    for number in range(len(journal.commits), 3):
        rejection = Rejection(id=f"r{number}", reason="x", detail="", text="")
        examples = [example(2 * number), example(2 * number + 1)]
        journal.commit({"examples.jsonl": examples, "rejections.jsonl": [rejection]}, candidates=3)


def score(directory: Path) -> None:
    """A line for each example, in the file of a process, and all of them in one file in the end."""
    files = ScoreFiles(directory)
    part = files.part("scores.jsonl", 0)
    drop_torn_line(part)
    examples = [example(number) for number in range(3)]
    for one in (one for one in examples if one.id not in files.done()):
        durable.append(part, as_lines([Score(id=one.id, value=1.0)]))
    files.finish(examples)


def train(directory: Path) -> None:
    """A checkpoint that is replaced at each step, and weights."""
    checkpoint = directory / "last.ckpt"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for number in range(step + 1, 3):
        draft = directory / "last.ckpt.draft"
        draft.write_text(str(number))
        durable.replace(draft, checkpoint)
    with directory_written_atomically(directory / "weights") as draft:
        (draft / "adapter.safetensors").write_text("weights " * 20)
        (draft / "config.json").write_text("{}")
    (directory / "signal.json").write_text("what a plug-in writes without a sync")


def work(root: Path) -> None:
    """A run of three stages, or what is left of it."""
    run = RunDirectory(root)
    with run.locked():
        assert run.set_aside(KEYS) is None, "nothing is ever there that the manifest does not know"
        for key, stage in zip(KEYS, (write, score, train), strict=True):
            if run.finished(key):
                run.verify(key)
                continue
            run.begin(key, {"lr": 1}, {})
            directory = run.directory(key)
            stage(directory)
            check_journals(directory)
            write_json(directory / "metrics.json", {"kind": "x"})
            run.finish(key, sorted(path for path in directory.rglob("*") if path.is_file()))


def ask(root: Path) -> None:
    """Answers of an endpoint, which are kept as they come."""
    journal = RequestJournal(root / "requests")
    for number in range(4):
        if str(number) not in journal.answers:
            journal.add(Answer(id=str(number), text="a" * 9, finished=True, num_tokens=1, num_prompt_tokens=1))
    journal.sync()


def contents(root: Path) -> dict[str, str | bytes]:
    """All files of a run, and of the manifest the hashes."""
    files: dict[str, str | bytes] = {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }
    for name in (".lock", "manifest.json"):
        files.pop(name, None)
    return files


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("task", [work, ask])
def test_power_fails_before_each_sync(
    task: Callable[[Path], None],
    loss: Loss,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    undisturbed = Disk(tmp_path / "undisturbed")
    monkeypatch.setattr(os, "fsync", undisturbed.fsync)
    task(tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    assert undisturbed.num_syncs > 5
    first = 1 + LOSSES.index(loss)  # together they fail before each of them, and each way before many
    for number in range(first, undisturbed.num_syncs + 1, 2 if task is work else 1):
        root = tmp_path / str(number) / "run"
        root.parent.mkdir()

        def fail(now: int, number: int = number) -> None:
            if now == number:
                raise Killed

        disk = Disk(root, fail)
        monkeypatch.setattr(os, "fsync", disk.fsync)
        with pytest.raises(Killed):
            task(root)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        disk.lose_power(loss)
        with caplog.at_level(logging.WARNING):
            task(root)
        assert not caplog.records, "a journal has vouched for data that were not there"
        assert contents(root) == expected, f"before sync {number} of {undisturbed.num_syncs}"


@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_committed_is_not_lost(loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", disk.fsync)
    durable.make_directory(tmp_path / "run")
    write(tmp_path / "run")
    durable.append(tmp_path / "run" / "scores.part0.jsonl", b"score\n")
    expected = contents(tmp_path / "run")
    disk.lose_power(loss)
    assert contents(tmp_path / "run") == expected


def test_the_simulation_loses_what_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would prove nothing: a write without a sync, and a new name, are gone in their ways."""

    def left(loss: Loss) -> dict[str, str | bytes]:
        root = tmp_path / loss / "run"
        root.mkdir(parents=True)
        (root / "old").write_bytes(b"old\n")
        disk = Disk(root)
        monkeypatch.setattr(os, "fsync", disk.fsync)
        with open(root / "old", "ab") as file:
            file.write(b"new\n")
        (root / "draft").write_bytes(b"data")
        os.replace(root / "draft", root / "named")
        durable.sync(root / "old")
        with open(root / "old", "ab") as file:
            file.write(b"newer\n")
        disk.lose_power(loss)
        return contents(root)

    assert left("all") == {"old": b"old\nnew\n"}
    assert left("data") == {"old": b"old\nnew\n" + b"\0" * 6, "named": b"\0" * 4}
    assert left("names") == {"old": b"old\nnew\nnewer\n"}


def test_data_that_fell_behind_their_journal(tmp_path: Path) -> None:
    """On a disk that keeps no order: cut anywhere, or filled with NUL bytes, the same commits are made again."""
    write(tmp_path)
    expected = contents(tmp_path)
    for name in ("examples.jsonl", "rejections.jsonl"):
        whole = expected[name]
        assert isinstance(whole, bytes)
        for size in range(0, len(whole), 101):
            for content in (whole[:size], whole[:size] + b"\0" * (len(whole) - size)):
                (tmp_path / name).write_bytes(content)
                write(tmp_path)
                assert contents(tmp_path) == expected
        (tmp_path / name).unlink()
        write(tmp_path)
        assert contents(tmp_path) == expected


def test_answers_behind_a_hole(tmp_path: Path) -> None:
    """A block of the file did not reach the disk, and the next one did: what stands behind the hole is asked again."""
    ask(tmp_path)
    path = tmp_path / "requests" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * len(lines[1]) + lines[2] + lines[3])
    assert list(RequestJournal(tmp_path / "requests").answers) == ["0"]
    ask(tmp_path)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["0", "1", "2", "3"]
    assert [one.id for one in read_records(path, Answer)] == ["0", "1", "2", "3"]
