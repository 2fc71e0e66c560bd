"""Routers: for each prompt the teacher that should answer it, whether that was learned or is always the same one."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from montessori_pl.models.loading import ModelSource
from montessori_pl.routing.encoder import PromptEncoder
from montessori_pl.routing.head import Head
from montessori_pl.routing.limits import RouteLimits, choose
from montessori_pl.routing.responses import Array, Prompt
from montessori_pl.run_directory.atomic import write_atomically

ROUTER = "router.json"
HEAD = "head.safetensors"
ENCODER = "encoder"
"""Directory, within a router's own, of the encoder's weights where they were trained."""


class Router(ABC):
    """Says for each prompt how good each teacher is. Implement `coefficients` and `save`.

    Args:
        teachers: their names.
    """

    def __init__(self, teachers: Sequence[str]) -> None:
        self.teachers = list(teachers)

    @abstractmethod
    def coefficients(self, prompts: Sequence[Prompt]) -> Array:
        """How good each teacher is for each prompt, shape (N, K); only differences within a prompt mean something."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the router into a directory that exists, to be read by `load_router`."""

    def route(
        self,
        instructions: Sequence[str],
        systems: Sequence[str] | None = None,
        limits: RouteLimits | None = None,
    ) -> list[str]:
        """The teacher's name for each instruction.

        Args:
            instructions: what is asked.
            systems: the system message of each; none if there are none.
            limits: largest shares and a budget, over all these instructions together.

        Raises:
            ValueError: the limits cannot be kept.
        """
        systems = [""] * len(instructions) if systems is None else systems
        return self.route_prompts([Prompt(*texts) for texts in zip(instructions, systems, strict=True)], limits)

    def route_prompts(self, prompts: Sequence[Prompt], limits: RouteLimits | None = None) -> list[str]:
        """The teacher's name for each prompt, which may have several turns; see `route`."""
        chosen = choose(self.coefficients(prompts), self.teachers, limits)
        return [self.teachers[place] for place in chosen]


class ConstantRouter(Router):
    """The same coefficients for all prompts: the best teacher answers everything that limits leave to it.

    Args:
        teachers: their names.
        values: how good each is.
    """

    def __init__(self, teachers: Sequence[str], values: Sequence[float]) -> None:
        super().__init__(teachers)
        self.values = [float(value) for value in values]

    @property
    def best(self) -> str:
        """The teacher that gets all prompts where there are no limits."""
        return self.teachers[int(np.argmax(self.values))]

    def coefficients(self, prompts: Sequence[Prompt]) -> Array:
        """The values again and again."""
        return np.tile(np.asarray(self.values), (len(prompts), 1))

    def save(self, directory: Path) -> None:
        """The names and the values."""
        _write(directory, {"kind": "constant", "teachers": self.teachers, "values": self.values})


class LearnedRouter(Router):
    """Coefficients from what an encoder knows of the prompt.

    Args:
        teachers: their names, in the order of the head's outputs.
        encoder: reads prompts.
        head: makes coefficients of what it has read.
    """

    def __init__(self, teachers: Sequence[str], encoder: PromptEncoder, head: Head) -> None:
        super().__init__(teachers)
        self.encoder, self.head = encoder, head

    def coefficients(self, prompts: Sequence[Prompt]) -> Array:
        """The head's outputs."""
        if not prompts:
            return np.empty((0, len(self.teachers)))
        found: Array = self.head(self.encoder.features(prompts)).numpy()
        return found

    def save(self, directory: Path) -> None:
        """The head and where the encoder comes from; weights that were trained lie in `encoder/` already."""
        save_file({"weight": self.head.weight.contiguous(), "bias": self.head.bias}, directory / HEAD)
        source = self.encoder.source
        encoder = {
            "backbone": source.backbone,
            "trained": source.weights is not None,
            "chat_template": source.chat_template,
            "chat_template_kwargs": source.chat_template_kwargs,
            "base_dtype": source.base_dtype,
            "trust_remote_code": source.trust_remote_code,
            "max_length": self.encoder.max_length,
        }
        _write(directory, {"kind": "learned", "teachers": self.teachers, "encoder": encoder})


def load_router(directory: Path) -> Router:
    """The router that `save` wrote into this directory.

    Raises:
        ValueError: there is none.
    """
    if not (directory / ROUTER).is_file():
        raise ValueError(f"{directory} holds no router ({ROUTER} is missing)")
    content = json.loads((directory / ROUTER).read_text(encoding="utf-8"))
    if content["kind"] == "constant":
        return ConstantRouter(content["teachers"], content["values"])
    encoder = content["encoder"]
    source = ModelSource(
        encoder["backbone"],
        weights=directory / ENCODER if encoder["trained"] else None,
        chat_template=encoder["chat_template"],
        base_dtype=encoder["base_dtype"],
        chat_template_kwargs=encoder["chat_template_kwargs"],
        trust_remote_code=encoder["trust_remote_code"],
    )
    head = Head(**load_file(directory / HEAD))
    return LearnedRouter(content["teachers"], PromptEncoder(source, encoder["max_length"]), head)


def _write(directory: Path, content: dict[str, Any]) -> None:
    write_atomically(directory / ROUTER, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
