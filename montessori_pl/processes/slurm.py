"""Slurm: a job that was warned of its end goes back into the queue."""

import os
import signal
import subprocess
from contextlib import suppress

from montessori_pl.processes.stop import STOP, rank

SECONDS = 2.5
"""How long `scontrol` may take."""


def requeue_after_warning() -> None:
    """Put this job back into the queue if SIGUSR1 ends the process and it is the first one; to be called at its end.

    No other signal: SIGTERM is what `scancel` sends, and a job that Slurm preempts it puts back itself.
    """
    job = _job()
    if STOP.reason is None or STOP.reason.signum != signal.SIGUSR1 or rank() or job is None:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=SECONDS)
        failed = done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    said = f"error: scontrol requeue {job} failed ({failed}); submit the script again" if failed else ""
    with suppress(OSError):
        os.write(2, f"{said or f'Slurm starts job {job} again'}\n".encode())


def _job() -> str | None:
    """What `scontrol` calls this job; a task of an array has the array's number, or all of its tasks would be meant."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")
