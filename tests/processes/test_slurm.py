"""A job that was warned of its end goes back into the queue, once, if it was asked to."""

import os
import signal
from pathlib import Path

import pytest
from small_programs import Ended, Program

LINES = """
with STOP.handled(resumes=True):
    STOP.at_the_end.append(requeue_after_warning)
    ready()
    {}
    time.sleep(60)
"""


def run(directory: Path, signum: signal.Signals, does: str = "echo", busy: str = "", **environment: str) -> Ended:
    """A program that is sent a signal where `scontrol` writes down how it was called, and then does something."""
    directory.mkdir(exist_ok=True)
    (directory / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {directory}/calls\n{does}\n')
    (directory / "scontrol").chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return Program(LINES.format(busy), environment={"PATH": path, **environment}).ready().end(signum)


def calls(directory: Path) -> str:
    """How `scontrol` was called."""
    path = directory / "calls"
    return path.read_text() if path.exists() else ""


def test_a_warning_puts_the_job_back_once(tmp_path: Path) -> None:
    ended = run(tmp_path, signal.SIGUSR1, SLURM_JOB_ID="7")
    assert ended.status == 138
    assert calls(tmp_path) == "requeue 7\n"
    assert ended.err == "stopped by SIGUSR1; the same command goes on from here\nSlurm starts job 7 again\n"


def test_also_if_the_main_thread_does_not_come_back(tmp_path: Path) -> None:
    busy = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    assert run(tmp_path, signal.SIGUSR1, busy=busy, SLURM_JOB_ID="7").status == 138
    assert calls(tmp_path) == "requeue 7\n"


def test_of_an_array_only_this_task(tmp_path: Path) -> None:
    run(tmp_path, signal.SIGUSR1, SLURM_JOB_ID="9", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert calls(tmp_path) == "requeue 7_2\n"


@pytest.mark.parametrize(
    ("signum", "environment"),
    [
        pytest.param(signal.SIGTERM, {"SLURM_JOB_ID": "7"}, id="scancel"),
        pytest.param(signal.SIGUSR1, {}, id="no job"),
        pytest.param(signal.SIGUSR1, {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}, id="another process"),
    ],
)
def test_not_otherwise(signum: signal.Signals, environment: dict[str, str], tmp_path: Path) -> None:
    assert run(tmp_path, signum, **environment).status == 128 + signum
    assert calls(tmp_path) == ""


@pytest.mark.parametrize("does", ["echo not allowed >&2; exit 1", "exec sleep 60"])
def test_scontrol_fails(does: str, tmp_path: Path) -> None:
    ended = run(tmp_path, signal.SIGUSR1, does=does, SLURM_JOB_ID="7")
    assert ended.status == 138
    assert "error: scontrol requeue 7 failed (" in ended.err
    assert ended.err.endswith("; submit the script again\n")
