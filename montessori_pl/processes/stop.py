"""A signal ends the process in order, in seconds, and with the exit status of that signal, whatever it is doing.

| the main thread | what becomes of it |
|---|---|
| runs Python, sleeps, or waits for a file or a socket | `Stopped` is raised there; the step at hand is dropped |
| trains (`STOP.postponed`) | it ends its step, saves and raises `Stopped` itself; after `PATIENCE` seconds as above |
| is in native code, or has swallowed `Stopped` | after `LIMIT` seconds the process ends without it |

The last of these is no more than `kill -9` does, which every file of a run survives: it is replaced as a whole, or has
a journal that says where its last good byte is. So nothing is lost that was finished.

Python runs a signal's handler in the main thread alone, once it is back from native code. A thread therefore has the
clock. It learns of a signal by the pipe into which the C part of the handler writes (`signal.set_wakeup_fd`).
"""

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What ends a process in order."""
PATIENCE = 5.0
"""Seconds that a training has to end its step and to save."""
LIMIT = 9.0
"""Seconds after which the process ends without its main thread."""
LAST_STEPS = 5.0
"""Seconds more at most for what is done at the end: ending other processes, and putting a job back into the queue."""
SAME_SIGNAL = 1.0
"""Seconds in which another signal counts as the same: a terminal, a launcher and the first process may all send it."""
GOES_ON = "; the same command goes on from here"
_MASK = threading.local()
"""Which signals waited in a thread before it forked."""
_WAKE = 0
"""What is written into the pipe where there is no signal."""


@dataclass(frozen=True)
class Reason:
    """Why the process ends."""

    sentence: str
    """For the user, without the stage, which is added; empty where another process says it."""
    status: int
    """The exit status."""
    signum: int | None = None
    """The signal, if it is one, whichever process of the run has got it."""


class Stopped(BaseException):
    """The process is to end, for `STOP.reason`.

    No `Exception`: what handles errors must not handle it. No `KeyboardInterrupt` either, at which Lightning leaves by
    itself, with another status.
    """


class Stop:
    """The end of this process, of which there is one: `STOP`."""

    def __init__(self) -> None:
        self.place = ""
        """The stage that is running, as the sentence says it."""
        self.resumes = False
        """Whether the same command goes on from here."""
        self.when_asked: list[Callable[[], None]] = []
        """Called once, as soon as the process is to end, by a thread."""
        self.at_the_end: list[Callable[[], None]] = []
        """Called once, when nothing else is left to do; all together take no longer than `LAST_STEPS`."""
        self._handlers: dict[int, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self.reason: Reason | None = None
        self._since = 0.0
        self._heard: float | None = None
        self._postponed = self._raised = self._lost = self._said = self._ending = False
        self._own_signals = 0
        self._telling = threading.Lock()

    @contextmanager
    def handled(self, resumes: bool) -> Iterator[None]:
        """Within the block, signals end the process; it does not come back from the block then.

        Args:
            resumes: whether the same command goes on where this one has ended.
        """
        self.resumes = resumes
        self.install()
        try:
            yield
        except BaseException:
            if self.reason is None:
                raise
            # Else it is what came of the signal: `Stopped`, or the error of a collective whose partner has ended.
        finally:
            self._raised = True  # from here on nothing is raised any more
            if self.reason is not None:
                self._end()
            self.uninstall()

    def install(self) -> None:
        """Handle signals from now on, but those that are ignored: `nohup` and `&` in a script want it so."""
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        self._forget()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        for signum in SIGNALS:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                self._handlers[signum] = signal.signal(signum, self._handle)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._lose
        threading.Thread(target=self._watch, args=(self._reading,), name="signals", daemon=True).start()

    def uninstall(self) -> None:
        """Leave signals to whoever had them."""
        if self._handlers:
            signal.set_wakeup_fd(-1)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
        if self._writing >= 0:
            os.close(self._writing)  # which ends the thread
            self._writing = -1
            sys.unraisablehook = self._hook
        self.place, self.when_asked, self.at_the_end = "", [], []

    _reading = _writing = -1

    def before_fork(self) -> None:
        """Let signals wait: the child would tell of its own by the parent's pipe until it has left it."""
        _MASK.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def after_fork(self) -> None:
        """In the parent."""
        signal.pthread_sigmask(signal.SIG_SETMASK, _MASK.before)

    def leave_parent(self) -> None:
        """In the child, which handles signals as if there were no parent."""
        if self._writing >= 0:
            os.close(self._reading)
            self.uninstall()
            self._forget()
        self.after_fork()

    def ask(self, reason: Reason) -> None:
        """End the process, where it is `handled`; any thread may ask, and the first reason counts."""
        if self.reason is None and self._writing >= 0:
            self._since = time.monotonic()
            self.reason = reason
            self._wake()

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """The block looks at `reason` itself, and calls `check` where it can best be left."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False
        self.check()

    def check(self) -> None:
        """Leave, if the process is to end.

        Raises:
            Stopped: it is.
        """
        if self.reason is not None:
            self._raised = True
            raise Stopped

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """In the main thread."""
        self.ask(by_signal(signum))
        if not self._raised and not (self._postponed and time.monotonic() < self._since + PATIENCE):
            self.check()

    def _lose(self, unraisable: Any) -> None:
        """`Stopped` was raised in a finalizer, which Python lets nothing leave: raise it once more."""
        if isinstance(unraisable.exc_value, Stopped):
            self._raised, self._lost = False, True
        else:
            self._hook(unraisable)

    def _wake(self) -> None:
        with suppress(OSError):  # it is full, and the thread wakes anyway
            os.write(self._writing, bytes([_WAKE]))

    def _watch(self, reading: int) -> None:
        """The thread that has the clock."""
        interrupted = 0
        while True:
            waits = 0.1 if self.reason is not None else None
            signals = b""
            if select.select([reading], [], [], waits)[0] and not (signals := os.read(reading, 64)):
                os.close(reading)
                return
            for signum in signals:
                self._arrived(signum)
            if self.reason is None:
                continue
            elapsed = time.monotonic() - self._since
            if interrupted == 0:
                self._interrupt()  # also where another thread has received the signal
                interrupted = 1
                self._tell()
            if self._lost:
                self._lost = False
                self._interrupt()
            if interrupted == 1 and elapsed > PATIENCE:
                self._interrupt()  # which was postponed
                interrupted = 2
            if elapsed > LIMIT + (LAST_STEPS if self._ending else 0):
                self._force()

    def _arrived(self, signum: int) -> None:
        if self._own_signals and signum == next(iter(self._handlers)):
            self._own_signals -= 1
        elif signum in SIGNALS:
            # By the thread's own clock: if it comes late to the first signal, that is no second one.
            now = time.monotonic()
            if self._heard is None:
                self._heard = now
            elif now > self._heard + SAME_SIGNAL:
                self._force()  # who asks twice does not want to wait
            self.ask(by_signal(signum))

    def _interrupt(self) -> None:
        """Let the main thread run a handler; a call that waits returns for it."""
        ident = threading.main_thread().ident
        if self._handlers and ident is not None:
            self._own_signals += 1
            signal.pthread_kill(ident, next(iter(self._handlers)))

    def _tell(self) -> None:
        """By the thread, or by the main thread if it is faster."""
        with self._telling:
            _call(self.when_asked)
            self.when_asked = []

    def _end(self) -> None:
        """The end in order, by the main thread; not the interpreter's own, which waits for threads and may hang."""
        self._tell()
        self._say()
        atexit._run_exitfuncs()
        self._ending = True
        _call(self.at_the_end)
        self._leave()

    def _force(self) -> None:
        """The end without the main thread."""
        if not self._ending:
            self._ending = True
            self._say()
            _call(self.at_the_end)
        self._leave()

    def _say(self) -> None:
        """Not by `sys.stderr`, whose lock the main thread may hold."""
        assert self.reason is not None
        if self.reason.sentence and not self._said:
            self._said = True
            where = f" in {self.place}" if self.place else ""
            said = f"{self.reason.sentence}{where}{GOES_ON if self.resumes else ''}\n"
            with suppress(OSError):  # of a terminal that has gone
                os.write(2, said.encode())

    def _leave(self) -> None:
        assert self.reason is not None
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(1.0)
        os._exit(self.reason.status)


def by_signal(signum: int) -> Reason:
    """The end by a signal, as a shell tells it; the first process speaks for all."""
    name = signal.Signals(signum).name
    return Reason("" if rank() else f"stopped by {name}", 128 + signum, signum)


def rank() -> int:
    """The number of this process among those of the run, 0 for the first: as Lightning finds it, without Lightning."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(name):
            return int(os.environ[name])
    return 0


def _call(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        with suppress(Exception):  # the end comes all the same
            function()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


STOP = Stop()
os.register_at_fork(before=STOP.before_fork, after_in_parent=STOP.after_fork, after_in_child=STOP.leave_parent)
