"""Programs of a few lines that handle signals as the whole one does, and start in a moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BEGIN = """
import atexit, hashlib, os, subprocess, sys, threading, time
from pathlib import Path
from montessori_pl.processes import peers, stop
from montessori_pl.processes.peers import Peers
from montessori_pl.processes.slurm import requeue_after_warning
from montessori_pl.processes.stop import STOP, Reason, Stopped

stop.PATIENCE, stop.LIMIT = 0.6, 1.2
peers.SECONDS_BETWEEN_LOOKS = 0.05

def ready():
    print("ready", flush=True)

"""


@dataclass
class Ended:
    """What became of a program."""

    status: int
    out: str
    err: str
    seconds: float
    """Since the last signal."""


class Program:
    """A program that runs; what follows `ready` is its end.

    Args:
        lines: of the program, behind `BEGIN`.
        arguments: its command line.
        environment: environment variables that are set.
        ignored: signals that it finds ignored.
    """

    def __init__(
        self,
        lines: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ignored: Sequence[signal.Signals] = (),
    ) -> None:
        def ignore() -> None:
            # Where tests run in the background, under nohup perhaps, these are ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            for signum in ignored:
                signal.signal(signum, signal.SIG_IGN)

        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + lines, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=ignore,
        )

    def ready(self) -> "Program":
        """Wait until it says so."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def end(self, *signals: signal.Signals, between: float = 0.0) -> Ended:
        """Send the signals, and wait for its end."""
        for number, signum in enumerate(signals):
            time.sleep(between if number else 0.0)
            self.process.send_signal(signum)
        start = time.monotonic()
        out, err = self.process.communicate(timeout=60)
        return Ended(self.process.returncode, out, err, time.monotonic() - start)
