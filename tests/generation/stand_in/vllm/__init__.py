"""Stands in for vLLM in the worker's process: answers in letters what it was told, and fails on demand."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz .?"
FIRST, END = 5, 2
"""Token ids of `tiny_models`: that of the first letter, and that of the end."""


class SamplingParams:
    """Keeps what it is given."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


@dataclass
class Output:
    """The one part of an output that is looked at."""

    token_ids: tuple[int, ...]


@dataclass
class RequestOutput:
    """An output for each sample."""

    outputs: list[Output] = field(default_factory=list)


class LLM:
    """Answers `d<adapter>s<seed>v<device>`, with letters for the numbers, and is cut at `max_tokens`."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        if "unbearable" in arguments:
            raise ValueError("two lines\n  of complaint")
        head_dim = json.loads((Path(arguments["model"]) / "config.json").read_text())["head_dim"]
        if head_dim != 32:
            raise ValueError(f"no kernel for heads of {head_dim}")
        self.fresh = False

    def reset_prefix_cache(self) -> None:
        """Must come before each call."""
        self.fresh = True

    def generate(
        self, prompts: list[Any], sampling_params: list[Any], lora_request: Any, use_tqdm: bool
    ) -> list[RequestOutput]:
        assert self.fresh
        assert not use_tqdm
        assert lora_request is None or self.arguments["enable_lora"]
        self.fresh = False
        print("what an engine prints is no answer")
        return [self._answer(*one, lora_request) for one in zip(prompts, sampling_params, strict=True)]

    def _answer(self, prompt: Any, sampling: SamplingParams, lora: Any) -> RequestOutput:
        asked = "".join(LETTERS[token - FIRST] for token in prompt["prompt_token_ids"] if token >= FIRST)
        if asked == "sleep":
            time.sleep(600)
        if asked == "crash":
            print("the last straw", file=sys.stderr, flush=True)
            os.abort()
        settings, device = sampling.settings, os.environ.get("CUDA_VISIBLE_DEVICES", "")
        assert (settings["stop_token_ids"], settings["ignore_eos"]) == ([END], True)
        numbers = (lora.lora_int_id if lora else 0, settings["seed"], sum(map(int, device.split(","))) if device else 0)
        text = "".join(letter + LETTERS[number] for letter, number in zip("dsv", numbers, strict=True))
        ids = [*(FIRST + LETTERS.index(letter) for letter in text), END]
        return RequestOutput([Output(tuple(ids[: settings["max_tokens"]]))])
