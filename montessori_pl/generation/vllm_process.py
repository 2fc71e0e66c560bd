"""A vLLM engine in a process of its own, which ends with ours and takes all its memory along.

Within our process, vLLM would leave memory behind and `torch.distributed` initialised, on which training would trip.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from montessori_pl.generation.vllm_worker import GRACE

WORKER = Path(__file__).with_name("vllm_worker.py")
LONGEST_WORDS = 500
"""Characters of a failed engine's last line that are repeated."""
DEFAULTS = {
    # Scheduled in one process, the same requests form the same batches each time; and the engine starts sooner.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of vLLM that are set where the user has not."""


class EngineError(ValueError):
    """Why an engine has ended, in a sentence for the user."""


class EngineProcess:
    """Takes the messages of `vllm_worker`, the first of which starts the engine, and answers each of them.

    Args:
        name: what sentences call the model.
        devices: the accelerators that the engine may see; none leaves that to the environment.
    """

    def __init__(self, name: str, devices: Sequence[str] | None = None) -> None:
        self.name = name
        environment = DEFAULTS | os.environ
        if "OMP_NUM_THREADS" in environment:
            # Where it binds threads to cores, vLLM on a CPU has one for each core, whatever this number says.
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        descriptor, path = tempfile.mkstemp(prefix="vllm-", suffix=".log")
        self.log = Path(path)
        """What vLLM has said; deleted when the engine is closed, kept when it fails."""
        with open(descriptor, "wb") as log:
            self._process = subprocess.Popen(
                # -P: what the worker imports is not looked for among its neighbours.
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for us: we close the engine
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand over the next message, without waiting for what comes of it.

        Raises:
            EngineError: the engine has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to a message.

        Raises:
            EngineError: the engine has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        failed = self._process.poll() is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=2 * GRACE)
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            self._kill()
        else:
            self.log.unlink(missing_ok=True)

    def _failure(self) -> EngineError:
        with suppress(subprocess.TimeoutExpired):  # it has closed its output, and cannot be used any more
            self._process.wait(timeout=GRACE)
        code = self._kill()
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return EngineError(
            f"the vLLM engine of {self.name} ended {how}; its last words were: {_last_words(self.log)} "
            f"(all of them: {self.log})"
        )

    def _kill(self) -> int:
        """End the process and those that it has started; returns the exit code of the first."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()


def _last_words(log: Path) -> str:
    """The last line that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if re.search(r"\w", line)]
    return said[-1][:LONGEST_WORDS] if said else "none"
