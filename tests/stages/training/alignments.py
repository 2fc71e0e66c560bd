"""A monitored alignment that takes seconds, for tests of the monitor and of its evaluations."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Example, read_lines
from montessori_pl.generation import Sampling
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.training.alignment_evaluator import Evaluation
from montessori_pl.stages.training.alignment_monitor import AlignmentMonitor
from montessori_pl.synthesis.base import Synthesizer
from montessori_pl.synthesis.collapse import CollapseLimits
from montessori_pl.synthesis.filters import Rejected

SEED = 3
NO_LIMITS = CollapseLimits(**{field.name: None for field in dataclasses.fields(CollapseLimits)})
SHORT = Sampling(temperature=1.0, top_p=0.9, max_tokens=12)
PROMPTS = ["write", "ask", "invent a task.", "a question?", "say", "think of it"]
"""Two pairs each: six batches of two pairs, without those that are held out."""
WATCH = AlignmentMonitor(held_out=0.2, every_n_steps=1, num_samples=8, sampling=SHORT, limits=NO_LIMITS)
GENTLE = TrainingSettings(lr=1e-3, epochs=2, batch_size=2, checkpoint_every_n_steps=2)
Align = Callable[..., dict[str, Any]]
"""One session of the stage in a directory, as the runner begins it; returns its metrics."""


class Whatever(Synthesizer):
    """Takes every completion with an `a` in it for an instruction."""

    def prompt(
        self,
        rng: random.Random,
        seed_tasks: Sequence[Example],
        written: Sequence[Example],
        num_shots: int | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        raise AssertionError("nobody writes prompts here")

    def instruction(self, completion: str) -> str:
        if "a" not in completion:
            raise Rejected("no a", completion)
        return completion.strip()


def evaluations_of(directory: Path) -> list[Evaluation]:
    return list(read_lines(directory / "alignment_evaluations.jsonl"))
