"""How much alignment a teacher can take: looks at it while it is trained, and the way back when it was too much.

A little DPO makes a teacher write what helps the student; more of the same makes it write less and less, until its
data teach nothing. Where the one turns into the other depends on the teacher, the pairs and the learning rate, so it is
watched: every few steps the teacher is looked at, and the last look within the limits is the teacher that stays.

Looks are rows of `looks.jsonl`, each with its adapter in a directory of its own; all decisions are made of the rows
alone, so that a resumed training decides as one that was never interrupted.
"""

import json
import math
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from montessori_pl.data.records import read_lines
from montessori_pl.generation.base import Sampling
from montessori_pl.models.loading import save_weights
from montessori_pl.run_directory.atomic import directory_written_atomically, write_atomically
from montessori_pl.stages.base import WEIGHTS
from montessori_pl.stages.training.alignment_evaluator import Look, Observer
from montessori_pl.synthesis.collapse import CollapseLimits

LOOKS = "looks.jsonl"
"""File, within the stage's directory, of what every look has seen."""
TEACHERS = "looks"
"""Directory, within the stage's own, of every look's adapter."""


@dataclass(frozen=True, kw_only=True)
class DoseWatch:
    """When the teacher is looked at while it is trained, what is too much, and which look stays."""

    held_out: float = 0.1
    """Share of the prompts whose pairs are watched and not trained on; 0 watches no pairs."""
    every_n_steps: int = 10
    """Optimizer steps between two looks; there is also one before the first step, and one at the end."""
    num_samples: int = 128
    """Completions that each look samples from the teacher, one for each of so many prompts of the pairs, held-out
    prompts first; prompts repeat where there are fewer. 0 takes no sample."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.9, presence_penalty=1.0)
    """How they are drawn; the default is that of Synthesize's instructions."""
    limits: CollapseLimits = CollapseLimits()
    """How far the writing may move from that of the look before the first step."""
    max_margin: float | None = None
    """Largest mean margin of the held-out pairs within the limits: log-ratio of the chosen minus that of the rejected
    completion, in nats; null does not look."""
    choose: Literal["latest", "lowest_loss"] = "latest"
    """Which look within the limits becomes the teacher: the latest, or the one with the lowest loss on the held-out
    pairs. The look before the first step is taken only if there is no other."""
    patience: int = 2
    """Stop after so many looks in a row beyond the limits."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share of the prompts, from 0 to less than 1, found {self.held_out}")
        if self.every_n_steps < 1 or self.patience < 1 or self.num_samples < 0:
            raise ValueError(
                "every_n_steps and patience must be at least 1 and num_samples not negative, "
                f"found {self.every_n_steps}, {self.patience} and {self.num_samples}"
            )
        if self.max_margin is not None and self.max_margin <= 0:
            raise ValueError(f"max_margin is in nats and must be positive, found {self.max_margin}")
        if not self.held_out and (self.max_margin is not None or self.choose == "lowest_loss"):
            raise ValueError("max_margin and choose lowest_loss look at held-out pairs, and held_out is 0")
        if not self.held_out and not self.num_samples:
            raise ValueError("held_out and num_samples are both 0, which watches nothing; write watch: null instead")

    def beyond(self, first: Mapping[str, Any], look: Mapping[str, Any]) -> list[str]:
        """The limits that this look has crossed, a clause each.

        Args:
            first: the look before the first step.
            look: a later one.
        """
        clauses = self.limits.crossed(before=first, after=look)
        if self.max_margin is not None and look.get("margin", 0.0) > self.max_margin:
            clauses.append(f"margin of the held-out pairs {look['margin']:.2f} nats, limit {self.max_margin:.2f}")
        if lost := [name for name, value in numbers(look).items() if not math.isfinite(value)]:
            clauses.append(f"no finite number for {', '.join(lost)}")
        return clauses

    def stops(self, looks: Sequence[Look]) -> bool:
        """Whether the last looks were beyond the limits, as many as there is patience."""
        last = looks[1:][-self.patience :]
        return len(last) == self.patience and all(look["beyond"] for look in last)

    def num_looks(self, num_steps: int) -> int:
        """Looks at a training of so many steps that goes to its end."""
        return 2 + max(0, num_steps - 1) // self.every_n_steps

    def choice(self, looks: Sequence[Look]) -> Look:
        """The look that becomes the teacher."""
        within = [look for look in looks[1:] if not look["beyond"]] or [looks[0]]
        if self.choose == "lowest_loss" and "loss" in looks[0]:
            return min(within, key=lambda look: float(look["loss"]))
        return within[-1]


def prompts_in_order(prompts: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """The different prompts with their system messages, shuffled by the seed, in whatever order they come."""
    order = sorted(set(prompts))
    random.Random(f"{seed}/held out").shuffle(order)
    return order


def num_held_out(num_prompts: int, share: float) -> int:
    """How many prompts are held out: at least one where any shall be, and never all."""
    return min(max(1, round(share * num_prompts)), num_prompts - 1) if share > 0 and num_prompts else 0


def numbers(look: Look | Mapping[str, Any]) -> dict[str, float]:
    """What can be plotted of a look."""
    return {name: value for name, value in look.items() if isinstance(value, int | float) and name != "step"}


class DoseControl(Callback):
    """Looks at the teacher while it is trained, stops the training, and leaves the chosen look's adapter behind.

    All processes look, and the first one's numbers count for all, so that all decide the same.

    Args:
        watch: when, and what is too much.
        observer: takes the looks.
        directory: the stage's.
        keep_teachers: whether the adapters of all looks stay.
    """

    def __init__(self, watch: DoseWatch, observer: Observer, directory: Path, keep_teachers: bool) -> None:
        self.watch, self.observer, self.directory, self.keep_teachers = watch, observer, directory, keep_teachers
        self.looks: list[Look] = []
        self.stopped_at_step: int | None = None
        self._restored = False
        self._step_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the first step, or find what earlier sessions have seen; they may have decided to stop."""
        self._restore(trainer)
        if not self.looks:
            self._look(trainer)
        if self.watch.stops(self.looks):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the step count, to see whether this batch makes a step or only accumulates gradients."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look if a step was made and it is time, but after the last step of all: see `leave_weights`.

        Lightning calls this before the checkpoint's own hook: a checkpoint's step has been looked at.
        """
        step = trainer.global_step
        ends = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if step > self._step_before and step % self.watch.every_n_steps == 0 and not ends:
            self._look(trainer)
            if self.watch.stops(self.looks):
                trainer.should_stop = True

    def leave_weights(self, trainer: Trainer) -> None:
        """Take the last look, when training has ended and callbacks such as weight averaging are done; then choose.

        A training that is resumed at its very end comes here at once, without any of the hooks.
        """
        self._restore(trainer)
        if not self.looks or self.looks[-1]["step"] < trainer.global_step:
            self.observer.teacher.to(trainer.strategy.root_device)  # from where Lightning has moved it by now
            self._look(trainer)
            self.observer.teacher.cpu()
        if self.watch.stops(self.looks) and trainer.global_step < trainer.estimated_stepping_batches:
            self.stopped_at_step = trainer.global_step
        if trainer.is_global_zero:
            self._install()

    def metrics(self) -> dict[str, Any]:
        """What the stage's metrics say of the looks: numbers, and a sentence if limits were crossed."""
        chosen = self.watch.choice(self.looks)
        return {
            "watch": {
                "looks": len(self.looks),
                "chosen_step": chosen["step"],
                "stopped_at_step": self.stopped_at_step,
                "first": numbers(self.looks[0]),
                "chosen": numbers(chosen),
            },
            "warnings": [self._sentence(look, chosen["step"]) for look in self.looks if look["beyond"]][-1:],
        }

    def _sentence(self, look: Look, chosen_step: int) -> str:
        stopped = "alignment was stopped and " if self.stopped_at_step is not None else ""
        kept = f"the teacher of step {chosen_step}" if chosen_step else "the teacher as it was before alignment"
        return (
            f"at step {look['step']} the teacher's writing had moved beyond the limits ({'; '.join(look['beyond'])}); "
            f"{stopped}{kept} is kept"
        )

    def _restore(self, trainer: Trainer) -> None:
        """Find the looks of earlier sessions; those behind the checkpoint will be taken again."""
        if self._restored:
            return
        path = self.directory / LOOKS
        looks = list(read_lines(path)) if trainer.is_global_zero and path.exists() else []
        self.looks = trainer.strategy.broadcast([look for look in looks if look["step"] <= trainer.global_step])
        self._restored = True

    def _look(self, trainer: Trainer) -> None:
        step, teacher = trainer.global_step, self.observer.teacher
        look: Look = trainer.strategy.broadcast({"step": step, **self.observer.look()})
        look["beyond"] = self.watch.beyond(self.looks[0], look) if self.looks else []
        self.looks.append(look)
        for logger in trainer.loggers:
            named = {f"{teacher.log_prefix}watch/{name}": value for name, value in numbers(look).items()}
            logger.log_metrics(named, step=step)
        if trainer.is_global_zero:  # the adapter first: a row says that it is there
            save_weights(teacher.network, self._adapter(step))
            lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in self.looks)
            write_atomically(self.directory / LOOKS, "".join(lines))

    def _adapter(self, step: int) -> Path:
        return self.directory / TEACHERS / f"step_{step:06d}"

    def _install(self) -> None:
        """Put the chosen adapter into its place; where the adapters are gone, an earlier session has done it."""
        teachers, leavings = self.directory / TEACHERS, self.directory / f"{TEACHERS}.draft"
        if teachers.exists():
            with directory_written_atomically(self.directory / WEIGHTS) as draft:
                shutil.copytree(self._adapter(self.watch.choice(self.looks)["step"]), draft, dirs_exist_ok=True)
            if self.keep_teachers:
                return
            shutil.rmtree(leavings, ignore_errors=True)
            os.replace(teachers, leavings)  # all or none: half of them would be taken for all
        shutil.rmtree(leavings, ignore_errors=True)
