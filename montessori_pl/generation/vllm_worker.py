"""The process in which vLLM runs: requests arrive on its standard input, completions leave on its standard output.

Both are JSON lines. The first one that arrives has the arguments of `vllm.LLM` and is answered, when the engine stands,
by an empty object. Each of the others has `prompts` (token ids), `seeds` (one for each), `ends` (for each the tokens
that end it), `sampling` (what else `SamplingParams` takes) and `adapter` (name, number and path, or null), and is
answered by `completions` (token ids).

The process ends when its input does, be it that the parent closes it or that the parent is killed. What vLLM says goes
to standard error, and so does, as the last line, why the engine has failed.

It is started as a file and imports nothing of ours: vLLM is the first to import torch, and an engine starts sooner.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from vllm import LLM

GRACE = 5.0
"""Seconds that the process has, at the end of its input, to hand memory back in order."""


def main() -> None:
    """Answer until the input ends."""
    answers = _reserve_output()
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        _serve(lines, answers)
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        # Processes of the engine's own would outlive us; the usual end would let its destructors have the last word.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signal.SIGTERM)
        os._exit(1)


def complete(llm: "LLM", request: Mapping[str, Any]) -> list[list[int]]:
    """Sample from the engine.

    Args:
        llm: the engine.
        request: as it arrives.

    Returns:
        Token ids of the completions, in order.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    # Or the first tokens of a prompt would be computed in other pieces, depending on what was asked before.
    llm.reset_prefix_cache()
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in request["prompts"]],
        [
            SamplingParams(**request["sampling"], seed=seed, stop_token_ids=ends)
            for seed, ends in zip(request["seeds"], request["ends"], strict=True)
        ],
        lora_request=LoRARequest(*request["adapter"]) if request["adapter"] is not None else None,
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def _serve(lines: SimpleQueue[str | None], answers: TextIO) -> None:
    llm = None
    while (line := lines.get()) is not None:
        message = json.loads(line)
        if llm is None:
            from vllm import LLM

            llm = LLM(**message)
            answer: dict[str, Any] = {}
        else:
            answer = {"completions": complete(llm, message)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _reserve_output() -> TextIO:
    """Keep standard output for answers; whatever prints from now on prints to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _listen(lines: SimpleQueue[str | None]) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)
    time.sleep(GRACE)
    # We are in the middle of a request whose answer will not be read: end the engine's own processes, too.
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
