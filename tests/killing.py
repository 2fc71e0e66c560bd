"""Killing the program at a chosen moment, and starting it again: what the tests of `kill -9` share.

Starting the program takes seconds: of imports, and of reading the recipe. The attempts are therefore forked from a
server that has imported everything and read its command line, and has not looked at the run directory yet; only the
kills from outside start `python -m montessori_pl`.
"""

import dataclasses
import json
import multiprocessing
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from montessori_pl.__main__ import main
from montessori_pl.cli.fit import MontessoriCLI
from montessori_pl.processes import peers
from montessori_pl.processes.stop import STOP
from montessori_pl.run_directory.run_directory import RunDirectory

IMPORTED_ONCE = [
    "pytest",
    "montessori_pl.cli.fit",
    "montessori_pl.report",
    "peft",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "transformers.optimization",
]
"""What the server imports, so that its children need not."""

NO_RUN = Path("/dev/null/run")
"""The run of the server, in which nothing can be written: its children are given theirs."""

Action = Callable[..., Any]
"""What is still done of a call before the kill; gets the function that was called, and its arguments."""


def nothing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Die before the call."""


def everything(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Die after the call."""
    function(*args, **kwargs)


def half_a_move(function: Callable[..., Any], source: str, destination: str) -> None:
    """Die as a move between two file systems would: half of the file has been copied."""
    content = Path(source).read_bytes()
    Path(destination).write_bytes(content[: len(content) // 2])


def half_a_tensor_file(function: Callable[..., Any], tensors: dict[str, Any], path: str, **kwargs: Any) -> None:
    """Die when half of a safetensors file is on the disk."""
    function(tensors, path, **kwargs)
    os.truncate(path, Path(path).stat().st_size // 2)


def half_a_line(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Open a file, and die when half of the first thing that is written to it is on the disk."""
    return TornFile(function(*args, **kwargs))


class TornFile:
    """An open file that is killed while it is written to."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def __enter__(self) -> "TornFile":
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> None:
        """Write half of it, and die; nothing to write is no moment."""
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        die()


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A call of a function, within a stage, that is not survived."""

    stage: str
    """Name of the stage; empty for what happens outside of all stages."""
    function: str
    """Which function: its module and its name."""
    action: Action = nothing
    """What is still done of the call."""
    call: int = 1
    """Which call within the stage, from 1."""
    file: str = ""
    """Only calls count whose first argument is a file of this name, and not to read it."""
    seconds: float = 0.0
    """For a kill from outside: how long after the stage has begun."""

    def arm(self, note: Path, end: Callable[[], None] = die) -> None:
        """Wait for the moment; write it to `note` when it has come."""
        here, name = self.function.rsplit(".", 1)
        owner = pkgutil.resolve_name(here)
        original = getattr(owner, name)
        stage = _follow_stages()
        calls = 0

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            reads = self.function == OPEN and "r" in kwargs.get("mode", args[1] if len(args) > 1 else "r")
            if stage() != self.stage or not str(args[0]).endswith(self.file) or reads:
                return original(*args, **kwargs)
            calls += 1
            if calls != self.call:
                return original(*args, **kwargs)
            note.write_text(self.stage, encoding="utf-8")
            result = self.action(original, *args, **kwargs)
            if isinstance(result, TornFile):
                return result
            end()
            return original(*args, **kwargs)

        setattr(owner, name, wrapper)


def _follow_stages() -> Callable[[], str]:
    """A function that says which stage the program works on now."""
    from montessori_pl.pipeline.runner import Runner

    lead, now = Runner._lead, ""

    @wraps(lead)
    def follow(self: Runner, step: Any, *args: Any) -> None:
        nonlocal now
        now = step.name
        lead(self, step, *args)
        now = ""

    Runner._lead = follow  # type: ignore[method-assign]
    return lambda: now


TWO_PROCESSES = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
OPEN, REPLACE = "builtins.open", "os.replace"
STUDENT_STEP = "montessori_pl.models.student.StudentModule.training_step"
SAVE_WEIGHTS = "montessori_pl.stages.training.fit.save_weights"
GENERATE = "montessori_pl.generation.TransformersBackend.generate"
OUTSIDE = "(from outside)"


@dataclasses.dataclass(frozen=True)
class End:
    """The end of a process."""

    status: int
    """The exit status; of a process that a signal has ended, minus the signal."""
    time: float
    """When, by the clock of `time.monotonic`, which is the same in all processes."""


@dataclasses.dataclass
class Program:
    """The program on one recipe, as it is started again and again."""

    recipe: Path
    """The recipe."""
    directory: Path
    """Where logs are written."""
    options: Sequence[str] = ()
    """More of the command line."""
    _server: Connection | None = None
    """The connection to the server, which has read the recipe."""

    def arguments(self, run: Path) -> list[str]:
        """The command line."""
        return ["fit", "--config", str(self.recipe), "--run", str(run), *self.options]

    def start(
        self, run: Path, moment: Moment | None = None, end: Callable[[], None] = die, donors: Sequence[Path] = ()
    ) -> tuple[int, str]:
        """Run it in a process that is forked from the server.

        Returns:
            the exit status, and what the program has said.
        """
        self.launch(run, 1, moment, end, donors)
        return self.ends()[0].status, self.log.read_text(encoding="utf-8")

    def launch(
        self,
        run: Path,
        processes: int,
        moment: Moment | None = None,
        end: Callable[[], None] = die,
        donors: Sequence[Path] = (),
    ) -> list[int]:
        """Begin to run it in processes that are forked from the server, and form a group of their own.

        Returns:
            their numbers, that of the first process first, which is the number of the group.
        """
        self.log.write_text("", encoding="utf-8")
        if self._server is None:
            self._server = self._serve(self.log)
        self._server.send((run, processes, moment, end, donors))
        numbers: list[int] = self._answer()
        return numbers

    def ends(self) -> "list[End]":
        """Wait until all processes have ended that were launched last."""
        ends: list[End] = self._answer()
        return ends

    def _answer(self) -> Any:
        assert self._server is not None
        try:
            return self._server.recv()
        except (EOFError, ConnectionResetError):
            raise AssertionError(f"the server has ended\n{self.log.read_text(encoding='utf-8')}") from None

    @property
    def log(self) -> Path:
        """What the processes say that were launched last."""
        return self.directory / "log.txt"

    def _serve(self, log: Path) -> Connection:
        """Start a server, which ends when the connection to it does."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(self.arguments(NO_RUN), log, self.note, theirs), daemon=True).start()
        theirs.close()
        return ours

    @property
    def note(self) -> Path:
        """The file in which a moment says that it has come."""
        return self.directory / "note.txt"

    def kill(self, run: Path, moment: Moment) -> None:
        """Run it until the moment comes."""
        if moment.function == OUTSIDE:
            self.kill_from_outside(run, moment.stage, moment.seconds)
            return
        self.note.unlink(missing_ok=True)
        status, log = self.start(run, moment)
        assert status == -signal.SIGKILL, f"{moment}: exit status {status}\n{log}"
        assert self.note.read_text(encoding="utf-8") == moment.stage

    def kill_from_outside(self, run: Path, stage: str, seconds: float) -> None:
        """Start it as a user does, and kill it some time after it has begun a stage."""
        with subprocess.Popen(
            [sys.executable, "-m", "montessori_pl", *self.arguments(run)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and f"iteration_1/{stage}" not in RunDirectory(run).entries:
                time.sleep(0.05)
            time.sleep(seconds)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not RunDirectory(run).finished(f"iteration_1/{stage}")

    def finish(self, run: Path, donors: Sequence[Path] = ()) -> None:
        """Run it to its end.

        Args:
            run: the run's directory.
            donors: finished runs of other recipes; stages that both have alike are copied, and not done again.
        """
        status, log = self.start(run, donors=donors)
        assert status == 0, log


def _serve(arguments: list[str], log: Path, note: Path, requests: Connection) -> None:
    """The program, which stops where it would look at the run directory: from there on it is forked at each request."""
    fit = MontessoriCLI.fit

    def fit_at_request(self: MontessoriCLI) -> None:
        while True:
            try:
                run, processes, moment, end, donors = requests.recv()
            except EOFError:
                sys.exit()  # nobody will ask again
            port = _free_port()
            children: list[int] = []
            while len(children) < processes and (child := os.fork()):
                children.append(child)
                os.setpgid(child, children[0])  # the group is there before the next one would join it
            if len(children) < processes:
                break
            requests.send(children)
            ends = {}
            for _ in children:
                child, status = os.wait()
                ends[child] = End(os.waitstatus_to_exitcode(status), time.monotonic())
            requests.send([ends[child] for child in children])
        _write_into(log)
        os.setpgid(0, children[0] if children else 0)
        # Started in the background of a script, or by nohup, tests are deaf to these, and so would be their children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        STOP.install()
        if processes > 1:
            _be_one_of(processes, len(children), port)
        if moment is not None:
            moment.arm(note, end)
        self.config["fit"]["run"] = str(run)
        for donor in donors:
            copy_equal_stages(donor, run, self._settings())
        fit(self)

    _write_into(log)
    MontessoriCLI.fit = fit_at_request  # type: ignore[method-assign]
    main(arguments)


def _be_one_of(processes: int, number: int, port: int) -> None:
    """What Lightning's launcher tells the processes that it starts."""
    names = {"LOCAL_RANK": number, "NODE_RANK": 0, "WORLD_SIZE": processes, "MASTER_PORT": port, peers.SESSION: port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    rank_zero_only.rank = number  # which Lightning has looked for when it was imported


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        number: int = one.getsockname()[1]
        return number


def copy_equal_stages(donor: Path, run: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Begin a run with the stages of a finished run that it would do alike: same settings, and inputs of this kind.

    When the run goes on, the program compares the settings and the hashes of what was copied once more.
    """
    source, target = RunDirectory(donor), RunDirectory(run)
    run.mkdir(exist_ok=True)
    for key, entry in source.entries.items():
        stage = key.split("/")[1]
        makers = [text.split(" ")[0] for text in entry.inputs.values()]
        equal = stage in settings and entry.settings == json.loads(json.dumps(settings[stage], default=str))
        if equal and key not in target.entries and all(one in ("base", *target.entries) for one in makers):
            shutil.copytree(donor / key, run / key)
            target.entries[key] = entry
    target.remember()


def _write_into(log: Path) -> None:
    """What this process says goes into a file."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def copy_until(run: Path, stage: str, copy: Path) -> None:
    """Copy of a finished run of one iteration what it holds when a stage has not begun yet, and no engine was asked."""
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    keys = list(manifest["stages"])
    for key in keys[keys.index(f"iteration_1/{stage}") :]:
        shutil.rmtree(copy / key)
        del manifest["stages"][key]
    (copy / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(copy / "requests", ignore_errors=True)
    (copy / "summary.json").unlink()


def artifacts(run: Path, pattern: str) -> dict[str, bytes]:
    """All files of a run's stages that fit the pattern, by path."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob(f"iteration_*/**/{pattern}"))}


def assert_same_run(run: Path, other: Path) -> None:
    """Records, metrics and weights are the same bytes, checkpoints hold the same numbers, and students do as well."""
    for pattern in ("*.jsonl", "*.safetensors", "metrics.json"):
        files, other_files = artifacts(run, pattern), artifacts(other, pattern)
        assert files
        assert list(files) == list(other_files)
        differing = [name for name, content in files.items() if content != other_files[name]]
        if pattern == "metrics.json":  # small enough to say which number
            assert {name: json.loads(files[name]) for name in differing} == {
                name: json.loads(other_files[name]) for name in differing
            }
        assert differing == []
    for path in sorted(run.rglob("last.ckpt")):
        one = torch.load(path, weights_only=False)
        two = torch.load(other / path.relative_to(run), weights_only=False)
        assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    summary, other_summary = (json.loads((one / "summary.json").read_text())["students"] for one in (run, other))
    assert summary
    assert summary == other_summary
