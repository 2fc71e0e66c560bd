"""Bounds for what others have written and we run: the chat templates of models."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS_TO_THE_NEXT = 0.05
"""Between one interrupt and the next, where the first has fallen into a finalizer."""


class TooSlowError(Exception):
    """Something did not end in the time that it was given."""


@contextmanager
def seconds_at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block when the process has computed for so long: on a busy machine, waiting does not count.

    Only the main thread can be interrupted; other ones take their time.

    Raises:
        TooSlowError: the time is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                return  # Python would print an error there, and go on; the next time will come
            frame = frame.f_back
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        raise TooSlowError(f"no end after {seconds:g} seconds")

    handler = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, SECONDS_TO_THE_NEXT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


@contextmanager
def memory_at_most(size: int) -> Iterator[None]:
    """Let the block take so many more bytes of memory and no more; Python then raises a `MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + size
    if resource.RLIM_INFINITY != soft <= limit:  # it is bounded by less
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
