"""A run directory survives a kill at any byte, has one writer, and names what does not fit."""

import json
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
from montessori_pl.run_directory.journal import Journal, check_journals
from montessori_pl.run_directory.run_directory import RunDirectory, RunDirectoryError, open_run

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

    def test_another_content_than_was_committed(self, tmp_path: Path) -> None:
        """Longer or of the same length: somebody has changed it, and nothing is thrown away."""
        journal = Journal(tmp_path, [EXAMPLES])
        for name in ("a", "b"):
            journal.commit({EXAMPLES: [example(name)]})
        path, whole = tmp_path / EXAMPLES, (tmp_path / EXAMPLES).read_bytes()
        first, second = whole.splitlines(keepends=True)
        for content in (second + first, whole.replace(b'"a"', b'"c"'), b"\n" + whole, second * 9):
            path.write_bytes(content)
            for read in (lambda: Journal(tmp_path, [EXAMPLES]), lambda: check_journals(tmp_path)):
                with pytest.raises(
                    RunDirectoryError,
                    match=rf"{path} is not what line 1 of journal.jsonl committed; restore the file, or delete",
                ):
                    read()
            assert path.read_bytes() == content

    def test_commits_whose_data_are_gone_are_made_again(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        journal = Journal(tmp_path, [EXAMPLES])
        for name in ("a", "b", "c"):
            journal.commit({EXAMPLES: [example(name)]})
        whole = (tmp_path / EXAMPLES).read_bytes()
        os.truncate(tmp_path / EXAMPLES, len(whole) - len(whole) // 3 - 1)
        with pytest.raises(RunDirectoryError, match=r"knows 3 commits, and the data of the last 2 are not there"):
            check_journals(tmp_path)
        again = Journal(tmp_path, [EXAMPLES])
        assert again.commits == journal.commits[:1]
        assert "the data of the last 2 commits are gone; they are made again" in caplog.text
        assert check_journals(tmp_path) == 1

    def test_a_line_that_is_no_commit(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, [EXAMPLES])
        for name in ("a", "b"):
            journal.commit({EXAMPLES: [example(name)]})
        path = tmp_path / "journal.jsonl"
        first, second = path.read_text().splitlines(keepends=True)
        for line, said in (
            ("x\n", "line 2: not JSON"),
            ("[]\n", "line 2: expected a JSON object"),
            ("{}\n", "line 2: not a commit of examples.jsonl"),
            (second.replace(EXAMPLES, REJECTIONS), "line 2: not a commit of"),
            (first.replace(": ", ": -", 1), "line 2: not a commit of"),
        ):
            path.write_text(first + line)
            with pytest.raises(RunDirectoryError, match=rf"{path}, {said}.*; restore the file, or delete {tmp_path}"):
                Journal(tmp_path, [EXAMPLES])

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


class TestManifest:
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "it is empty"),
            (b"\0" * 512, "it is empty"),
            (b"{}", "it needs 'stages' and 'facts'"),
            (b"[1]", "expected a JSON object, found list"),
            (b'{"facts": {}, "stages": {"iteration_1/a"', "Expecting ':' delimiter"),
            (b'{"facts": {}, "stages": {}}'[:-9] + b"\0" * 9, "Expecting value|Invalid control character"),
            (b"\xff\xfe", "invalid start byte"),
            (b'{"facts": {}, "stages": []}', "it needs 'stages' and 'facts'"),
            (b'{"facts": {}, "stages": {"a": {}}}', "'a' is no key of a stage"),
            (b'{"facts": {}, "stages": {"iteration_1/../../a": {}}}', "is no key of a stage"),
            (b'{"facts": {}, "stages": {"iteration_1/a": [1]}}', r"stage iteration_1/a has the keys list"),
            (
                b'{"facts": {}, "stages": {"iteration_1/a": {"settings": {}, "inputs": {}, "colour": 1}}}',
                r"has the keys \['colour', 'inputs', 'settings'\], expected some of",
            ),
            (
                b'{"facts": {}, "stages": {"iteration_1/a": {"settings": [], "inputs": {}}}}',
                "values of another kind under settings",
            ),
            (
                b'{"facts": {}, "stages": {"iteration_1/a": {"settings": {}, "inputs": {}, "files": {"b": 1}}}}',
                "values of another kind under inputs or files",
            ),
        ],
    )
    def test_foreign_manifest_is_named(self, content: bytes, why: str, tmp_path: Path) -> None:
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(
            RunDirectoryError, match=rf"manifest\.json is not a manifest of this program \(.*({why}).*with --run"
        ):
            RunDirectory(tmp_path)

    def test_manifest_that_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "directory" / "manifest.json").mkdir(parents=True)
        with pytest.raises(RunDirectoryError, match=r"not a manifest of this program \(.*Is a directory"):
            RunDirectory(tmp_path / "directory")
        (tmp_path / "dangling").mkdir()
        (tmp_path / "dangling" / "manifest.json").symlink_to("gone")
        with pytest.raises(RunDirectoryError, match=r"not a manifest of this program \(.*No such file"):
            RunDirectory(tmp_path / "dangling")

    def test_manifest_of_a_newer_version(self, tmp_path: Path) -> None:
        finished(tmp_path)
        path = tmp_path / "manifest.json"
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
        for read in (RunDirectory, open_run):
            with pytest.raises(
                RunDirectoryError, match=r"was written by a newer version .*\(format 2, this one knows 1"
            ):
                read(tmp_path)

    def test_manifest_of_an_older_version(self, tmp_path: Path) -> None:
        """Without a format, sizes and times: its files are read, and what was found is kept by who may write."""
        finished(tmp_path)
        path = tmp_path / "manifest.json"
        content = json.loads(path.read_text())
        del content["format"], content["stages"][KEY]["stamps"]
        path.write_text(json.dumps(content))
        run_directory = RunDirectory(tmp_path)
        run_directory.verify(KEY)
        assert "stamps" not in path.read_text()
        with run_directory.locked():
            run_directory.verify(KEY)
        assert RunDirectory(tmp_path).entries[KEY].stamps.keys() == {"a.txt"}


class TestVerify:
    """Finished stages, before they are believed."""

    def test_unchanged_files_are_not_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        finished(tmp_path)
        monkeypatch.setattr("montessori_pl.run_directory.run_directory._sha256", killed)
        assert RunDirectory(tmp_path).verify(KEY) == tmp_path / KEY
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(tmp_path).problem(KEY, "a.txt", whole=True)

    def test_a_copy_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its files have other times: their hashes decide, and the new times are kept by who holds the lock."""
        finished(tmp_path / "run")
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "run", copy, copy_function=shutil.copyfile)
        before = (copy / "manifest.json").read_bytes()
        RunDirectory(copy).verify(KEY)
        assert (copy / "manifest.json").read_bytes() == before, "read by someone who may not write"
        run_directory = RunDirectory(copy)
        with run_directory.locked():
            run_directory.verify(KEY)
        monkeypatch.setattr("montessori_pl.run_directory.run_directory._sha256", killed)
        RunDirectory(copy).verify(KEY)

    @pytest.mark.parametrize("content", ["", "b", "aa"])
    def test_another_content_is_named(self, content: str, tmp_path: Path) -> None:
        run_directory = finished(tmp_path)
        path = tmp_path / KEY / "a.txt"
        path.write_text(content)
        os.utime(path, ns=(1, 1))
        with pytest.raises(RunDirectoryError, match=rf"{path} is not what stage {KEY} wrote"):
            run_directory.verify(KEY)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path)
        path = tmp_path / KEY / "a.txt"
        path.unlink()
        path.mkdir()
        with pytest.raises(RunDirectoryError, match=rf"{path} is no file; restore"):
            run_directory.verify(KEY)
        with pytest.raises(RunDirectoryError, match=r"b\.txt is not known to the manifest as a file of stage"):
            run_directory.verify(KEY, "b.txt")


class TestLinks:
    """What a run has written lies in its own directory."""

    def test_an_artifact(self, tmp_path: Path) -> None:
        run_directory = finished(tmp_path / "run")
        path = tmp_path / "run" / KEY / "a.txt"
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RunDirectoryError, match=rf"{path} is a link; restore the file"):
            run_directory.verify(KEY)

    @pytest.mark.parametrize("linked", [KEY, "iteration_1"])
    def test_a_directory(self, linked: str, tmp_path: Path) -> None:
        run_directory = finished(tmp_path / "run")
        path = tmp_path / "run" / linked
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(
            RunDirectoryError, match=rf"{path} is a link, and what a run has written may lie in its own"
        ):
            run_directory.check(KEY, {"lr": 1e-3})
        with pytest.raises(RunDirectoryError, match=rf"a\.txt is not there itself, for {path} is a link"):
            run_directory.verify(KEY)

    def test_the_run_directory_may_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "scratch")
        run_directory = finished(tmp_path / "run")
        run_directory.check(KEY, {"lr": 1e-3})
        run_directory.verify(KEY)

    def test_a_stage_that_leaves_one(self, tmp_path: Path) -> None:
        run_directory = RunDirectory(tmp_path)
        run_directory.begin(KEY, {}, {})
        path = run_directory.directory(KEY) / "a.txt"
        path.symlink_to("/etc/hostname")
        with pytest.raises(RunDirectoryError, match=rf"{path}, which stage {KEY} has left, is a link"):
            run_directory.finish(KEY, [path])
        assert not RunDirectory(tmp_path).finished(KEY)


def test_leftovers_are_moved_aside(tmp_path: Path) -> None:
    """The manifest is gone: what stages have written is not used, and not lost either."""
    finished(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "iteration_1" / "empty").mkdir()
    run_directory = RunDirectory(tmp_path)
    keys = [KEY, "iteration_1/empty", "iteration_1/none"]
    aside = run_directory.set_aside(keys)
    assert aside is not None
    assert aside.parent == tmp_path / "leftovers"
    assert (aside / KEY / "a.txt").read_text() == "a"
    assert not (tmp_path / KEY).exists()
    run_directory.begin(KEY, {"lr": 5}, {})
    assert not any((tmp_path / KEY).iterdir())
    assert run_directory.set_aside(keys) is None, "a stage that has begun stays where it is"
    run_directory.begin("iteration_1/empty", {}, {})


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
