"""The alignment monitor: evaluates the teacher while it is trained, stops in time, and keeps the right checkpoint.

A little DPO makes a teacher write what helps the student. More of it makes the teacher write less and less variously,
until its data teach nothing. Where the one turns into the other depends on the teacher, the pairs and the learning
rate. So the teacher is evaluated every few steps, and the last checkpoint within the limits becomes the teacher.

Evaluations are rows of `alignment_evaluations.jsonl`, each with its adapter in a directory of its own. All decisions
depend on the rows alone, so that a resumed training decides as one that was never interrupted.
"""

import math
import random
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer

from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.bounds import Bounds, PositiveFloat, PositiveInt, checked
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message, PromptFormat, read_lines
from montessori_pl.generation.base import Sampling
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.models.loading import save_weights
from montessori_pl.models.policy import PolicyModule
from montessori_pl.run_directory.atomic import directory_written_atomically, write_json_lines
from montessori_pl.run_directory.durable import replace
from montessori_pl.stages.base import WEIGHTS, StageContext, StageError
from montessori_pl.stages.training.alignment_evaluator import AlignmentEvaluator, Evaluation, whole_response
from montessori_pl.stages.training.divergence import refuse_diverged_weights
from montessori_pl.synthesis.base import Synthesizer
from montessori_pl.synthesis.collapse import CollapseLimits

P = TypeVar("P", bound=tuple[Any, ...])

EVALUATIONS = "alignment_evaluations.jsonl"
"""File, within the stage's directory, with a row for each evaluation."""
ADAPTERS = "adapters"
"""Directory, within the stage's own, of the adapter of each evaluation."""


@checked
@dataclass(frozen=True, kw_only=True)
class AlignmentMonitor:
    """When the teacher is evaluated while it is trained, how far it may move, and which checkpoint is kept."""

    held_out: Annotated[float, Bounds(ge=0, lt=1)] = 0.1
    """Part of the prompts whose pairs are evaluated and not trained on; 0 holds out no pairs."""
    every_n_steps: PositiveInt = 10
    """Optimizer steps between two evaluations; there is also one before the first step, and one at the end."""
    num_samples: Annotated[int, Bounds(ge=0, le=1_000_000)] = 128
    """Completions that each evaluation samples from the teacher, one for each of so many prompts of the pairs, held-out
    prompts first; prompts repeat where there are fewer. 0 takes no sample."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.9, presence_penalty=1.0)
    """How they are drawn; the default is that of Synthesize's instructions."""
    sampled_by: Literal["policy", "engine"] = "policy"
    """Who draws them: the teacher where it is trained, by Transformers; or the recipe's engine, which loads the adapter
    of each evaluation and ends afterwards. It must find room beside the training, such as by `gpu_memory_utilization`
    of VLLMBackend; its first process alone has one."""
    limits: CollapseLimits = CollapseLimits()
    """How far the writing may move from that before the first step."""
    max_margin: PositiveFloat | None = None
    """Largest mean margin of the held-out pairs within the limits: log-ratio of the chosen minus that of the rejected
    completion, in nats; null sets no limit."""
    choose: Literal["latest", "lowest_loss"] = "latest"
    """Which checkpoint within the limits becomes the teacher: the latest, or the one with the lowest loss on the
    held-out pairs. The one before the first step is taken only if there is no other."""
    patience: PositiveInt = 2
    """Stop after so many evaluations in a row beyond the limits."""

    def __post_init__(self) -> None:
        if not self.held_out and (self.max_margin is not None or self.choose == "lowest_loss"):
            raise ValueError("max_margin and choose lowest_loss need held-out pairs, and held_out is 0")
        if not self.held_out and not self.num_samples:
            raise ValueError("held_out and num_samples are both 0, which monitors nothing; write monitor: null instead")

    def beyond(self, first: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
        """The limits that this evaluation has crossed, a clause each.

        Args:
            first: the evaluation before the first step.
            evaluation: a later one.
        """
        clauses = self.limits.crossed(before=first, after=evaluation)
        if self.max_margin is not None and evaluation.get("margin", 0.0) > self.max_margin:
            clauses.append(f"margin of the held-out pairs {evaluation['margin']:.2f} nats, limit {self.max_margin:.2f}")
        if lost := _lost(evaluation):
            clauses.append(f"no finite number for {', '.join(lost)}")
        return clauses

    def stops(self, evaluations: Sequence[Evaluation]) -> bool:
        """Whether the last evaluations were beyond the limits, as many as there is patience."""
        last = evaluations[1:][-self.patience :]
        return len(last) == self.patience and all(evaluation["beyond"] for evaluation in last)

    def num_evaluations(self, num_steps: int) -> int:
        """Evaluations at a training of so many steps that goes to its end."""
        return 2 + max(0, num_steps - 1) // self.every_n_steps

    def choice(self, evaluations: Sequence[Evaluation]) -> Evaluation:
        """The evaluation whose checkpoint becomes the teacher; one of the base, to compare with, is not meant."""
        start = 1 if evaluations[0].get("of_base") else 0
        within = [one for one in evaluations[start + 1 :] if not one["beyond"]] or [evaluations[start]]
        if self.choose == "lowest_loss" and "loss" in evaluations[0]:
            return min(within, key=lambda evaluation: float(evaluation["loss"]))
        return within[-1]


def evaluator_of(
    monitor: AlignmentMonitor,
    context: StageContext,
    teacher: PolicyModule,
    chat_template: ChatTemplate,
    batch_size: int,
    prompts: Sequence[list[Message]],
    synthesizer: Synthesizer | None,
    held_out: Sequence[EncodedPair] = (),
) -> AlignmentEvaluator:
    """What evaluates a teacher in a stage.

    Args:
        monitor: how.
        context: the stage's.
        teacher: that is trained.
        chat_template: how it writes conversations.
        batch_size: pairs or completions that are scored together.
        prompts: the conversations that it goes on with.
        synthesizer: finds the instructions in what it writes; none takes whole completions for responses.
        held_out: pairs that it is not trained on.
    """
    engine = context.backend()
    if monitor.sampled_by == "policy":  # another kind could not sample from a teacher that is being trained
        engine = engine if isinstance(engine, TransformersBackend) else TransformersBackend()
    elif not engine.loads_weights:
        raise StageError(
            f"{context.key}: monitor.sampled_by is engine, and {type(engine).__name__} cannot load what is trained; "
            "write policy instead"
        )
    return AlignmentEvaluator(
        teacher=teacher,
        chat_template=chat_template,
        held_out=held_out,
        prompts=prompts,
        num_samples=monitor.num_samples,
        sampling=monitor.sampling,
        read=synthesizer.read if synthesizer is not None else whole_response,
        seed=context.seed,
        batch_size=batch_size,
        stop=synthesizer.stop if synthesizer is not None else "",
        engine=engine,
        in_place=monitor.sampled_by == "policy",
    )


def check_synthesizer(context: StageContext, asked: Set[tuple[PromptFormat, str]], synthesizer: Synthesizer) -> None:
    """Instructions are found only by the synthesizer that has asked for them; a wrong one would find none.

    Args:
        context: the stage's.
        asked: the formats of the prompts, each with how the answer began.
        synthesizer: of the stage.

    Raises:
        StageError: it asks in another way.
    """
    if not asked <= {(synthesizer.prompt_format, synthesizer.prefill)}:
        raise StageError(
            f"{context.key}: the completions were asked for in another way than the synthesizer of this stage asks, so "
            "that the monitor would find no instruction; give it the synthesizer of the stage that wrote them"
        )


def prompts_in_order(prompts: Sequence[P], seed: int) -> list[P]:
    """The different prompts, each a tuple of what stands in it, shuffled by the seed, in whatever order they come."""
    order = sorted(set(prompts))
    random.Random(f"{seed}/held out").shuffle(order)
    return order


def num_held_out(num_prompts: int, share: float) -> int:
    """How many prompts are held out: at least one if any are wanted, and never all."""
    return min(max(1, round(share * num_prompts)), num_prompts - 1) if share > 0 and num_prompts else 0


def numbers(evaluation: Evaluation | Mapping[str, Any]) -> dict[str, float]:
    """What can be plotted of an evaluation."""
    return {name: value for name, value in evaluation.items() if isinstance(value, int | float) and name != "step"}


def _lost(evaluation: Mapping[str, Any]) -> list[str]:
    """The numbers of an evaluation that are none: what overflowed."""
    return [name for name, value in numbers(evaluation).items() if not math.isfinite(value)]


class AlignmentMonitorCallback(Callback):
    """Evaluates the teacher while it is trained, stops the training, and leaves the chosen adapter behind.

    All processes evaluate, and the first one's numbers count for all, so that all decide the same.

    Args:
        monitor: when, and what is too much.
        evaluator: evaluates the teacher.
        directory: the stage's.
        save_all_checkpoints: whether the adapters of all evaluations stay.
    """

    def __init__(
        self, monitor: AlignmentMonitor, evaluator: AlignmentEvaluator, directory: Path, save_all_checkpoints: bool
    ) -> None:
        self.monitor, self.evaluator, self.directory, self.save_all_checkpoints = (
            monitor,
            evaluator,
            directory,
            save_all_checkpoints,
        )
        self.evaluations: list[Evaluation] = []
        self.stopped_at_step: int | None = None
        self._restored = False
        self._step_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation before the first step, or find what earlier sessions have seen; they may have decided to stop."""
        self._restore(trainer)
        if not self.evaluations:
            self._evaluate(trainer)
        if self.monitor.stops(self.evaluations):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the step count, to see whether this batch makes a step or only accumulates gradients."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Evaluation if a step was made and it is time, but after the last step of all: see `leave_weights`.

        Lightning calls this before the checkpoint's own hook: a checkpoint's step has been looked at.
        """
        step = trainer.global_step
        ends = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if step > self._step_before and step % self.monitor.every_n_steps == 0 and not ends:
            self._evaluate(trainer)
            if self.monitor.stops(self.evaluations):
                trainer.should_stop = True

    def leave_weights(self, trainer: Trainer) -> None:
        """Evaluate once more, when training has ended and callbacks such as weight averaging are done; then choose.

        A training that is resumed at its very end comes here at once, without any of the hooks.
        """
        self._restore(trainer)
        if not self.evaluations or self.evaluations[-1]["step"] < trainer.global_step:
            self.evaluator.teacher.to(trainer.strategy.root_device)  # from where Lightning has moved it by now
            self._evaluate(trainer)
            self.evaluator.teacher.cpu()
        if self.monitor.stops(self.evaluations) and trainer.global_step < trainer.estimated_stepping_batches:
            self.stopped_at_step = trainer.global_step
        if trainer.is_global_zero:
            self._install()

    def metrics(self) -> dict[str, Any]:
        """What the stage's metrics say of the evaluations: numbers, and a sentence if limits were crossed."""
        chosen = self.monitor.choice(self.evaluations)
        return {
            "monitor": {
                "evaluations": len(self.evaluations),
                "selected_step": chosen["step"],
                "stopped_at_step": self.stopped_at_step,
                "first": numbers(self.evaluations[0]),
                "chosen": numbers(chosen),
            },
            "warnings": [
                self._sentence(evaluation, chosen["step"]) for evaluation in self.evaluations if evaluation["beyond"]
            ][-1:],
        }

    def _sentence(self, evaluation: Evaluation, selected_step: int) -> str:
        stopped = "alignment was stopped and " if self.stopped_at_step is not None else ""
        kept = f"the teacher of step {selected_step}" if selected_step else "the teacher as it was before alignment"
        if not selected_step and self.evaluations[0].get("of_base"):
            beyond = ", which is beyond them itself," if self.evaluations[1]["beyond"] else ""
            kept = f"the teacher of the round before{beyond}"
        return (
            f"at step {evaluation['step']} the teacher's writing had moved beyond the limits "
            f"({'; '.join(evaluation['beyond'])}); {stopped}{kept} is kept"
        )

    def _restore(self, trainer: Trainer) -> None:
        """Find the evaluations of earlier sessions; those behind the checkpoint will be taken again."""
        if self._restored:
            return
        path = self.directory / EVALUATIONS
        evaluations = list(read_lines(path)) if trainer.is_global_zero and path.exists() else []
        self.evaluations = trainer.strategy.broadcast(
            [evaluation for evaluation in evaluations if evaluation["step"] <= trainer.global_step]
        )
        self._restored = True

    def _evaluate(self, trainer: Trainer) -> None:
        step, teacher = trainer.global_step, self.evaluator.teacher
        refuse_diverged_weights(trainer, teacher)
        if teacher.reference_is_base and teacher.source.weights is not None and not self.evaluations:
            # Limits hold over all rounds: what is compared with is the base, and not the teacher of the round before.
            with teacher.reference_policy():
                found = {"step": step, "of_base": True, **self.evaluator.evaluate(), "beyond": []}
            self.evaluations.append(trainer.strategy.broadcast(found))
        adapter = self._adapter(step)
        if trainer.is_global_zero:  # before the row, which says that it is there
            save_weights(teacher.language_model, adapter)
        evaluation: Evaluation = trainer.strategy.broadcast({"step": step, **self.evaluator.evaluate(adapter)})
        evaluation["beyond"] = self.monitor.beyond(self.evaluations[0], evaluation) if self.evaluations else []
        for name in _lost(evaluation):  # as if it had not been measured: JSON has no place for NaN
            del evaluation[name]
        self.evaluations.append(evaluation)
        for logger in trainer.loggers:
            named = {f"{teacher.log_prefix}monitor/{name}": value for name, value in numbers(evaluation).items()}
            logger.log_metrics(named, step=step)
        if trainer.is_global_zero:
            write_json_lines(self.directory / EVALUATIONS, self.evaluations)

    def _adapter(self, step: int) -> Path:
        return self.directory / ADAPTERS / f"step_{step:06d}"

    def _install(self) -> None:
        """Put the chosen adapter into its place; where the adapters are gone, an earlier session has done it."""
        teachers, leavings = self.directory / ADAPTERS, self.directory / f"{ADAPTERS}.draft"
        if teachers.exists():
            with directory_written_atomically(self.directory / WEIGHTS) as draft:
                shutil.copytree(self._adapter(self.monitor.choice(self.evaluations)["step"]), draft, dirs_exist_ok=True)
            if self.save_all_checkpoints:
                return
            shutil.rmtree(leavings, ignore_errors=True)
            replace(teachers, leavings)  # all or none: half of them would be taken for all
        shutil.rmtree(leavings, ignore_errors=True)
