"""The processes of a run end together: what ends one of them ends the others, in seconds and with its words.

Each process holds the lock of a file of its own in the run directory. The operating system frees the lock of a process
that has ended, be it by `kill -9`, so that the others need no sign of life that could be late on a busy machine. A
process that knows why it ends writes that into its file first. The first process looks at all files, the others look at
the first one's.

The files lie in a directory that is named by what started the processes, so that those of an earlier start say nothing.
They are removed when the next run begins.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from montessori_pl.processes.stop import STOP, Reason, Stopped, by_signal, rank

DIRECTORY = ".processes"
SESSION = "MONTESSORI_PL_SESSION"
"""The environment variable that Lightning's launcher hands on to the processes that it starts."""
SESSIONS = ((SESSION,), ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
"""Environment variables that tell one start from any other."""
ELASTIC = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
"""Those of torchrun: the user's name for a run, which the next start may have too, and `none` where there is none."""
SECONDS_BETWEEN_LOOKS = 1.0
FAREWELL = 2.0
"""Seconds that the others have when the first process ends, before it kills those that it has started."""
BEGAN = time.time()
"""When this process did; nearly, for this is among the first modules that it imports."""
FINISHED: dict[str, Any] = {"finished": True}
OPEN = "open"
"""The file by which the first process lets the others in."""


class Peers:
    """This process among those of the run.

    Args:
        root: the run directory, which all processes see.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.rank = root, rank()
        self._directory: Path | None = None
        self._file = -1
        self._children: Sequence[subprocess.Popen[bytes]] = ()
        self._seen: set[int] = set()
        self._name_is_new = True
        self._earlier_door: int | None = None
        self._is_open = False
        self._done = threading.Event()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block, another process's end ends this one; this one's end, but by success, ends the others."""
        STOP.when_asked.append(self._pass_on)
        STOP.at_the_end.append(self._dismiss)
        if started_together():
            name = _name(*SESSIONS)
            self._name_is_new = name is not None
            # At last: it is the parent that has started all of them.
            self._join(name or _name(ELASTIC) or f"{socket.gethostname()}-{os.getppid()}")
        try:
            yield
            self._write(FINISHED)
        except Stopped:
            raise
        except BaseException as error:
            if isinstance(error, RuntimeError) and self._directory is not None:
                self._wait_for_a_cause()  # a collective fails when one of its processes has ended
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            status = 2 if isinstance(error, ValueError | OSError) else 1
            self._write({"error": f"failed: {first_line}", "status": status})
            self._dismiss()
            raise
        finally:
            self._done.set()

    def before_children(self) -> None:
        """Before this process starts the others: give them a name in common."""
        if self._directory is None:
            self._join(f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}")
        assert self._directory is not None
        os.environ[SESSION] = self._directory.name

    def watch_children(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """Look at these processes too, which may end before they have a file."""
        self._children = children

    def open(self) -> None:
        """Let the others in, those that are waiting and those that will be started; for the first process."""
        self._is_open = True
        if self._directory is not None:
            (self._directory / OPEN).touch()

    def wait_until_open(self) -> None:
        """Wait for the first process to let this one in."""
        assert self._directory is not None
        door = self._directory / OPEN
        while (made := _written(door)) is None or made == self._earlier_door:
            STOP.check()
            time.sleep(SECONDS_BETWEEN_LOOKS / 10)

    def forget_earlier(self) -> None:
        """Remove what earlier starts have left; for the process that has locked the run directory."""
        for directory in (self.root / DIRECTORY).glob("*"):
            if directory != self._directory:
                shutil.rmtree(directory, ignore_errors=True)

    def _join(self, session: str) -> None:
        """Hold the lock of this process's file, and look at the others' from now on."""
        self._directory = self.root / DIRECTORY / session
        self._directory.mkdir(parents=True, exist_ok=True)
        # Nobody sees the file before its lock is held.
        draft = self._directory / f"{self.rank}.draft"
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.replace(draft, self._directory / str(self.rank))
        door, first = self._directory / OPEN, self._directory / "0"
        if self._is_open:
            door.touch()
        elif self.rank == 0:  # a start may have the name of an earlier one
            door.unlink(missing_ok=True)
        elif not self._name_is_new:
            with suppress(FileNotFoundError):  # there is no door, or the first process is taking it away
                if _older(door) and not _locked(first):
                    self._earlier_door = _written(door)
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            with suppress(OSError):  # of a file system; the next look may do
                if (reason := self._look()) is not None:
                    STOP.ask(reason)
                    return

    def _look(self) -> Reason | None:
        """Why this process must end, if one of the others has."""
        assert self._directory is not None
        others = [int(path.name) for path in self._directory.iterdir() if path.name.isdecimal()]
        for other in others if self.rank == 0 else [0] * (0 in others):
            if other == self.rank:
                continue
            locked = _locked(self._directory / str(other))  # asked first: it writes, and then it ends
            words = self._words(other)
            if locked:
                self._seen.add(other)
            elif not self._name_is_new and other not in self._seen and _older(self._directory / str(other)):
                continue  # it is an earlier start's
            if words != FINISHED and (words or not locked):
                return self._reason(other, words, "ended without a word, as by SIGKILL or for lack of memory")
        for number, child in enumerate(self._children, start=1):
            if child.poll() and (words := self._words(number)) != FINISHED:
                status = child.returncode
                how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                return self._reason(number, words, how)
        return None

    def _words(self, other: int) -> dict[str, Any] | None:
        """What another process has written before its end."""
        assert self._directory is not None
        try:
            words: dict[str, Any] = json.loads((self._directory / str(other)).read_bytes())
        except (OSError, json.JSONDecodeError):  # nothing, or not all of it yet
            return None
        return words

    def _reason(self, other: int, words: dict[str, Any] | None, how: str) -> Reason:
        if words is None:
            return Reason(f"error: process {other} of this run {how}; stopped", 1)
        if "signal" in words:
            return by_signal(words["signal"])
        said = self.rank > 0  # by the first process
        return Reason("" if said else f"error: process {other} of this run {words['error']}; stopped", words["status"])

    def _wait_for_a_cause(self) -> None:
        for _ in range(round(FAREWELL / 0.1)):
            STOP.check()
            time.sleep(0.1)

    def _pass_on(self) -> None:
        """Let the others know: children at once, the rest at their next look."""
        reason = STOP.reason
        assert reason is not None
        self._write({"signal": reason.signum} if reason.signum else {"error": reason.sentence, "status": reason.status})
        for child in self._children:
            child.send_signal(signal.SIGTERM)

    def _write(self, last: dict[str, Any]) -> None:
        if self._file >= 0 and os.fstat(self._file).st_size == 0:  # the first word counts
            os.pwrite(self._file, json.dumps(last).encode(), 0)
            os.fsync(self._file)

    def _dismiss(self) -> None:
        """Leave no process behind that this one has started. They hold nothing that a kill could tear."""
        end = time.monotonic() + FAREWELL
        for child in self._children:
            child.send_signal(signal.SIGTERM)
        for child in self._children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


def started_together() -> bool:
    """Whether something else has started several processes, of which this is one: a launcher, torchrun, Slurm."""
    return rank() > 0 or os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) != "1"


def _name(*variables: Sequence[str]) -> str | None:
    """The name that this start has in all of its processes by the first of these that are set, if any are."""
    for names in variables:
        if os.environ.get(names[0]) not in (None, "", "none"):
            return "-".join(os.environ.get(name, "0") for name in names).replace("/", "-")
    return None


def _written(path: Path) -> int | None:
    """When a file was written last, in nanoseconds; none where there is no file."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None


def _older(path: Path) -> bool:
    """Whether a file was written last before this process began: no launcher is as slow as the imports are."""
    return path.stat().st_mtime < BEGAN


def _locked(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
