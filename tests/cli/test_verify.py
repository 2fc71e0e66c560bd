"""`verify`: a line for each stage of a run, and whether all is as it was written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_files import contents

from montessori_pl.__main__ import main
from montessori_pl.data.records import Example
from montessori_pl.run_directory.journal import Journal
from montessori_pl.run_directory.run_directory import RunDirectory

DATA, TRAINED, MORE = Path("run/iteration_1/data"), Path("run/iteration_1/trained"), Path("run/iteration_1/more")
ALL_THERE = [
    "iteration_1/data: finished, 2 files as they were written",
    "iteration_1/trained: finished, 2 files as they were written",
    "iteration_1/more: begun, 2 commits as they were made",
    "iteration_1/last: begun",
]

Verify = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run `verify`; returns its exit status, and what it says."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        before = contents(Path("run")) if Path("run").is_dir() else {}
        capsys.readouterr()
        try:
            main(["verify", *arguments])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        assert before == (contents(Path("run")) if Path("run").is_dir() else {}), "nothing is written"
        return status, (printed.out + printed.err).splitlines()

    return run


@pytest.fixture(autouse=True)
def run() -> None:
    """A run that was interrupted: two stages have finished, one is at work, and one has just begun."""
    run = RunDirectory(Path("run"))
    for name, files in (("data", ["examples.jsonl"]), ("trained", ["weights/adapter.safetensors"])):
        run.begin(f"iteration_1/{name}", {}, {})
        paths = [run.directory(f"iteration_1/{name}") / file for file in (*files, "metrics.json")]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}\n")
        run.finish(f"iteration_1/{name}", paths)
    run.begin("iteration_1/more", {}, {})
    journal = Journal(MORE, ["examples.jsonl"])
    for name in ("a", "b"):
        journal.commit({"examples.jsonl": [Example(id=name, instruction="?", response="!")]})
    run.begin("iteration_1/last", {}, {})


def test_all_is_there(verify: Verify) -> None:
    assert verify("run") == (0, [*ALL_THERE, "all that run vouches for is there"])
    with open(MORE / "examples.jsonl", "a") as file:  # what is being committed at this moment
        file.write('{"id": "c", "instr')
    assert verify("run")[0] == 0


def test_a_copy(verify: Verify) -> None:
    """Other times of modification, the same content."""
    shutil.copytree("run", "copy", copy_function=shutil.copyfile)
    assert verify("copy")[0] == 0


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change(path: Path) -> None:
    """Neither the size nor the time tells."""
    stamp = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"}", b"]"))
    os.utime(path, ns=(stamp, stamp))


def _link(path: Path) -> None:
    path.rename("elsewhere")
    path.symlink_to(Path("elsewhere").absolute())


@pytest.mark.parametrize(
    ("damage", "path", "number", "said"),
    [
        (Path.unlink, DATA / "examples.jsonl", 0, "iteration_1/data: DAMAGED: examples.jsonl is missing"),
        (_cut, DATA / "metrics.json", 0, "iteration_1/data: DAMAGED: metrics.json is not what stage iteration_1/data"),
        (_change, DATA / "examples.jsonl", 0, "iteration_1/data: DAMAGED: examples.jsonl is not what stage"),
        (_link, DATA / "examples.jsonl", 0, "iteration_1/data: DAMAGED: examples.jsonl is a link"),
        (
            _link,
            TRAINED / "weights",
            1,
            "iteration_1/trained: DAMAGED: weights/adapter.safetensors is not there itself, for run/iteration_1/t",
        ),
        (shutil.rmtree, DATA, 0, "iteration_1/data: DAMAGED: its directory is gone; `fit` does the stage again"),
        (_cut, MORE / "examples.jsonl", 2, "iteration_1/more: DAMAGED: run/iteration_1/more/journal.jsonl knows 2"),
        (_change, MORE / "examples.jsonl", 2, "iteration_1/more: DAMAGED: run/iteration_1/more/examples.jsonl is not"),
    ],
)
def test_damage(damage: Callable[[Path], None], path: Path, number: int, said: str, verify: Verify) -> None:
    damage(path)
    status, lines = verify("run")
    assert status == 1
    assert lines[number].startswith(said)
    assert [line for place, line in enumerate(lines[:4]) if place != number] == [
        line for place, line in enumerate(ALL_THERE) if place != number
    ]
    assert len(lines) == 5
    assert lines[4].startswith("1 of 4 stages are damaged; restore their files, or delete the directory of a stage")


def test_a_stage_that_the_manifest_does_not_know(verify: Verify) -> None:
    manifest = json.loads(Path("run/manifest.json").read_text())
    del manifest["stages"]["iteration_1/trained"]
    Path("run/manifest.json").write_text(json.dumps(manifest))
    status, lines = verify("run")
    assert status == 0
    assert lines[3] == (
        "iteration_1/trained: the manifest does not know it; `fit` moves it aside before it begins this stage"
    )


@pytest.mark.parametrize("argument", ["nothing", "run/iteration_1", "--runs"])
def test_mistakes_end_in_a_sentence(argument: str, verify: Verify) -> None:
    status, lines = verify(argument)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
