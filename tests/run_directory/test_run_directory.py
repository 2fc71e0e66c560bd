"""A run directory survives a kill at any byte, has one writer, and names what does not fit."""

import os
import shutil
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from montessori_pl.data.records import Example, Rejection, append_records
from montessori_pl.run_directory.atomic import (
    directory_written_atomically,
    write_atomically,
    write_json,
    write_json_lines,
    write_records,
)
from montessori_pl.run_directory.journal import Journal
from montessori_pl.run_directory.run_directory import RunDirectory, RunDirectoryError

KEY = "iteration_1/warmup"
EXAMPLES, REJECTIONS = "examples.jsonl", "rejections.jsonl"


def example(name: str) -> Example:
    return Example(id=name, instruction="ñ?", response="🎉")


def finished(root: Path, **settings: object) -> RunDirectory:
    """A workspace with one finished stage that wrote `a.txt`."""
    run_directory = RunDirectory(root)
    with run_directory.locked():
        run_directory.begin(KEY, settings or {"lr": 1e-3}, {"examples": "base"})
        (run_directory.directory(KEY) / "a.txt").write_text("a")
        run_directory.finish(KEY, [run_directory.directory(KEY) / "a.txt"])
    return run_directory


def killed(*arguments: object) -> None:
    """What a call does when the process ends there."""
    raise KeyboardInterrupt


class TestJournal:
    def test_cut_at_every_byte_of_a_commit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A commit appends to examples, then rejections, then the journal; only its whole line makes it count.

        After a kill at any byte before that, opening the journal leaves what the commit before left, and the same
        commit writes the same bytes as if nothing had happened.
        """
        monkeypatch.setattr(os, "fsync", lambda file: None)  # which takes most of the time
        first = {EXAMPLES: [example("a")], REJECTIONS: [Rejection(id="r", reason="x", detail="", text="")]}
        second = {
            EXAMPLES: [example("b"), example("c")],
            REJECTIONS: [Rejection(id="s", reason="y", detail="", text="")],
        }
        journal = Journal(tmp_path, [EXAMPLES, REJECTIONS])
        journal.commit(first, candidates=2)
        names = (EXAMPLES, REJECTIONS, "journal.jsonl")
        before = {name: (tmp_path / name).read_bytes() for name in names}
        journal.commit(second, candidates=3)
        after = {name: (tmp_path / name).read_bytes() for name in names}

        added = [(name, after[name][len(before[name]) :]) for name in names]
        total = sum(len(data) for _, data in added)
        for written in range(total):
            left = written
            for name, data in added:
                (tmp_path / name).write_bytes(before[name] + data[:left])
                left = max(0, left - len(data))
            journal = Journal(tmp_path, [EXAMPLES, REJECTIONS])
            assert {name: (tmp_path / name).read_bytes() for name in names} == before
            assert len(journal.commits) == 1
            journal.commit(second, candidates=3)
            assert {name: (tmp_path / name).read_bytes() for name in names} == after

    def test_commits_are_remembered_with_their_notes(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, [EXAMPLES])
        journal.commit({EXAMPLES: [example("a")]}, candidates=4)
        journal.commit({}, candidates=5)
        size = (tmp_path / EXAMPLES).stat().st_size
        checksum = zlib.crc32((tmp_path / EXAMPLES).read_bytes())
        expected = [
            {EXAMPLES: size, "candidates": 4, "crc32": checksum},
            {EXAMPLES: size, "candidates": 5, "crc32": 0},
        ]
        assert journal.commits == expected
        assert Journal(tmp_path, [EXAMPLES]).commits == expected

    def test_without_a_journal_nothing_was_committed(self, tmp_path: Path) -> None:
        (tmp_path / EXAMPLES).write_text("leavings\n")
        assert Journal(tmp_path, [EXAMPLES]).commits == []
        assert (tmp_path / EXAMPLES).read_bytes() == b""


class TestAtomicWrites:
    def test_file_is_the_old_one_or_the_new_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "manifest.json"
        write_atomically(path, "old")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, "new")
        assert path.read_text() == "old"
        write_atomically(path, "new")
        assert path.read_text() == "new"
        assert [one.name for one in tmp_path.iterdir()] == ["manifest.json"]

    def test_bytes_of_json_and_of_json_lines(self, tmp_path: Path) -> None:
        """An object is indented, and in ASCII; lines are short, and their text stays readable."""
        write_json(tmp_path / "a.json", {"a": "ñ", "b": [1, {}]})
        assert (tmp_path / "a.json").read_bytes() == b'{\n "a": "\\u00f1",\n "b": [\n  1,\n  {}\n ]\n}\n'
        write_json_lines(tmp_path / "a.jsonl", [{"a": "ñ\n"}, {"b": 0.1}])
        assert (tmp_path / "a.jsonl").read_bytes() == '{"a": "ñ\\n"}\n{"b": 0.1}\n'.encode()

    def test_records_are_written_as_they_are_appended(self, tmp_path: Path) -> None:
        records = [example("a"), example("b")]
        append_records(tmp_path / "appended.jsonl", records)
        for _ in range(2):
            write_records(tmp_path / "written.jsonl", iter(records))
            assert (tmp_path / "written.jsonl").read_bytes() == (tmp_path / "appended.jsonl").read_bytes()
        write_records(tmp_path / "written.jsonl", [])
        assert (tmp_path / "written.jsonl").read_bytes() == b""

    def test_directory_is_the_old_one_or_the_new_one(self, tmp_path: Path) -> None:
        path = tmp_path / "weights"
        with directory_written_atomically(path) as draft:
            (draft / "old").touch()
        with suppress(KeyboardInterrupt), directory_written_atomically(path) as draft:
            (draft / "new").touch()
            raise KeyboardInterrupt
        assert [one.name for one in path.iterdir()] == ["old"]
        with directory_written_atomically(path) as draft:
            (draft / "newer").touch()
        assert [one.name for one in path.iterdir()] == ["newer"]

    def test_manifest_of_a_killed_writer_is_the_one_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_directory = finished(tmp_path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run_directory.begin("iteration_1/other", {}, {})
        assert list(RunDirectory(tmp_path).entries) == [KEY]
        assert RunDirectory(tmp_path).finished(KEY)


class TestStages:
    def test_begin_and_finish(self, tmp_path: Path) -> None:
        run_directory = RunDirectory(tmp_path)
        assert (run_directory.begun(KEY), run_directory.finished(KEY)) == (False, False)
        run_directory.begin(KEY, {"lr": 1e-3, "betas": (0.9, 0.99)}, {"teacher": "base"})
        assert (run_directory.begun(KEY), run_directory.finished(KEY)) == (True, False)
        path = run_directory.directory(KEY) / "a" / "b.txt"
        path.parent.mkdir()
        path.write_text("a")
        run_directory.finish(KEY, [path])
        again = RunDirectory(tmp_path)
        assert (again.begun(KEY), again.finished(KEY)) == (True, True)
        assert again.verify(KEY) == tmp_path / KEY
        assert list(again.entries[KEY].files) == ["a/b.txt"]
        again.check(KEY, {"lr": 1e-3, "betas": (0.9, 0.99)}, {"teacher": "base"})

    def test_digest_stands_for_the_artifacts(self, tmp_path: Path) -> None:
        one, same = finished(tmp_path / "one"), finished(tmp_path / "same", lr=5)
        assert one.digest(KEY) == same.digest(KEY), "settings are compared by themselves"
        path = one.directory(KEY) / "a.txt"
        path.write_text("b")
        one.finish(KEY, [path])
        assert one.digest(KEY) != same.digest(KEY)

    def test_changed_settings_are_named_with_both_values(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path, training={"lr": 1e-3, "wsd": (0.1, 0.9)}, old=1)
        with pytest.raises(RunDirectoryError) as error:
            run_directory.check(KEY, {"training": {"lr": 2e-3, "wsd": (0.1, 0.9)}, "new": None})
        assert str(error.value) == (
            f"stage {KEY} of {tmp_path} has finished under other settings (new: absent then, None now; old: 1 then, "
            "absent now; training.lr: 0.001 then, 0.002 now); restore them, start another run with --run DIR, "
            f"or delete {tmp_path / KEY} to do the stage again"
        )

    def test_changed_settings_of_a_begun_stage(self, tmp_path: Path) -> None:
        run_directory = RunDirectory(tmp_path)
        run_directory.begin(KEY, {"lr": 1}, {})
        with pytest.raises(RunDirectoryError, match=r"has begun under other settings \(lr: 1 then, 2 now\)"):
            run_directory.check(KEY, {"lr": 2})
        run_directory.begin(KEY, {"lr": 2}, {})
        assert run_directory.entries[KEY].settings == {"lr": 1}, "what has begun stays pinned"

    def test_how_much_may_change_until_somebody_has_read_it(self, tmp_path: Path) -> None:
        run_directory = RunDirectory(tmp_path)
        run_directory.begin("iteration_1/data", {"recipe.data": {"num": 4, "lr": 1}}, {})
        path = run_directory.directory("iteration_1/data") / "examples.jsonl"
        path.write_text("{}\n")
        run_directory.finish("iteration_1/data", [path])
        more = {"recipe.data": {"num": 6, "lr": 1}}
        run_directory.check("iteration_1/data", more, adjustable=["recipe.data.num"])
        run_directory.adjust("iteration_1/data", {"recipe.data": {"num": 4, "lr": 1}})
        assert run_directory.finished("iteration_1/data"), "nothing has changed"
        run_directory.adjust("iteration_1/data", more)
        again = RunDirectory(tmp_path)
        assert again.begun("iteration_1/data")
        assert not again.finished("iteration_1/data"), "it goes on"
        with pytest.raises(
            RunDirectoryError, match=r"has begun under other settings \(recipe\.data\.lr: 1 then, 2 now; rec"
        ):
            again.check("iteration_1/data", {"recipe.data": {"num": 8, "lr": 2}}, adjustable=["recipe.data.num"])
        again.finish("iteration_1/data", [path])
        again.begin("iteration_1/student", {}, {"examples": f"iteration_1/data {again.digest('iteration_1/data')}"})
        with pytest.raises(
            RunDirectoryError, match=r"has finished under other settings \(recipe\.data\.num: 6 then, 8 now\)"
        ):
            again.check("iteration_1/data", {"recipe.data": {"num": 8, "lr": 1}}, adjustable=["recipe.data.num"])

    def test_changed_inputs(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path)
        run_directory.check(KEY, {"lr": 1e-3})
        with pytest.raises(
            RunDirectoryError,
            match=r"has finished with other inputs \(examples: 'base' then, 'x 12' now\); start another",
        ):
            run_directory.check(KEY, {"lr": 1e-3}, {"examples": "x 12"})

    def test_damaged_or_missing_artifact_is_named(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path)
        path = tmp_path / KEY / "a.txt"
        path.write_text("b")
        with pytest.raises(
            RunDirectoryError, match=rf"{path} is not what stage {KEY} wrote; restore the file, or delete"
        ):
            run_directory.verify(KEY)
        path.unlink()
        with pytest.raises(
            RunDirectoryError, match=rf"{path} is missing; restore the file, or delete {tmp_path / KEY} to do"
        ):
            run_directory.verify(KEY)

    def test_deleted_directory_counts_as_not_begun(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path)
        shutil.rmtree(tmp_path / KEY)
        assert (run_directory.begun(KEY), run_directory.finished(KEY)) == (False, False)
        run_directory.check(KEY, {"lr": 5}, {"examples": "other"})
        run_directory.begin(KEY, {"lr": 5}, {"examples": "other"})
        assert RunDirectory(tmp_path).entries[KEY].settings == {"lr": 5}
        assert not RunDirectory(tmp_path).finished(KEY)

    def test_seconds_add_up_and_facts_stay(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path)
        run_directory.add_seconds(KEY, 1.5)
        run_directory.remember(wandb_id="x")
        again = RunDirectory(tmp_path)
        again.add_seconds(KEY, 2)
        assert again.entries[KEY].seconds == 3.5
        assert RunDirectory(tmp_path).facts == {"wandb_id": "x"}

    @pytest.mark.parametrize("content", ["", "{}", '{"facts": {}, "stages": {"a": {"colour": 1}}}', "[1]"])
    def test_foreign_manifest_is_named(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(RunDirectoryError, match=r"manifest\.json is not a manifest of this program .* with --run"):
            RunDirectory(tmp_path)


def test_one_writer_and_the_lock_of_a_dead_process(tmp_path: Path) -> None:
    """While another process writes, nobody else may; when it is killed, its lock is taken over."""
    program = (
        "import sys; from pathlib import Path; from montessori_pl.run_directory.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(
                RunDirectoryError, match=rf"is being written by process {other.pid} on \S+; wait for it, stop it"
            ),
            RunDirectory(tmp_path).locked(),
        ):
            pass
        other.kill()
    assert (tmp_path / ".owner").exists(), "what the dead process left"
    with RunDirectory(tmp_path).locked():
        assert f"process {os.getpid()} on" in (tmp_path / ".owner").read_text()
    assert not (tmp_path / ".owner").exists()


def test_lock_reads_what_others_have_written(tmp_path: Path) -> None:
    """A workspace that was opened before another session ended sees what that session has done."""
    early = RunDirectory(tmp_path)
    finished(tmp_path)
    assert not early.finished(KEY)
    with early.locked():
        assert early.finished(KEY)
