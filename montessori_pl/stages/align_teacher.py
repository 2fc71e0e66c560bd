"""AlignTeacher: DPO of the teacher on preference pairs, with the teacher before alignment as the reference policy."""

from collections.abc import Sequence
from typing import Any, Literal

from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.bounds import Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message, PreferencePair, Turn
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import load_chat_template
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext
from montessori_pl.stages.training.alignment_monitor import (
    ADAPTERS,
    EVALUATIONS,
    AlignmentMonitor,
    AlignmentMonitorCallback,
    check_synthesizer,
    evaluator_of,
    num_held_out,
    prompts_in_order,
)
from montessori_pl.stages.training.fit import HOW_TRAINED, fit
from montessori_pl.stages.training.preferences import estimate_alignment, pair_data, read_pairs
from montessori_pl.stages.training.reference import REFERENCE, ReferencePolicy
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer


class AlignTeacher(Stage):
    """Train the teacher to prefer what helped the student, as long as its writing stays within limits.

    Args:
        pairs: the stage whose preference pairs are learned.
        training: how.
        teacher: the stage whose teacher is trained further, and is the reference policy; `latest`, or `base`.
        monitor: when the teacher is evaluated while it is trained, how far its writing may move, and which evaluated
            checkpoint becomes the teacher; null trains on all pairs to the end without evaluating.
        save_all_checkpoints: keep the adapter of every evaluation, in `adapters/step_000010` and so on. You can use one
            of them wherever an adapter's path can stand, for example `ModelSource(backbone, weights=Path(...))`.
        over: what the pairs' completions are: each holds an `instruction`, or each is a `response`. The monitor reads
            the instructions in what the teacher writes, or its responses as they are.
        synthesizer: finds the instructions in what the monitored teacher writes.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.TEACHER
    artifacts = (CHECKPOINT, f"{WEIGHTS}/*", REFERENCE, EVALUATIONS, f"{ADAPTERS}/*/*")
    uses = ("teacher", "trainer")
    trains = ("teacher",)
    fingerprint_excludes = HOW_TRAINED
    distributed = True

    def __init__(
        self,
        pairs: Text,
        training: TrainingSettings,
        teacher: Text = LATEST,
        monitor: AlignmentMonitor | None = AlignmentMonitor(),
        save_all_checkpoints: bool = False,
        over: Literal["instruction", "response"] = "instruction",
        synthesizer: Synthesizer | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if save_all_checkpoints and monitor is None:
            raise ValueError("save_all_checkpoints keeps the adapter of each evaluation, and monitor: null makes none")
        if over == "response" and synthesizer is not None:
            raise ValueError("synthesizer finds instructions, and the pairs are over responses: leave it out")
        self.pairs, self.training, self.teacher, self.over = pairs, training, teacher, over
        self.monitor, self.save_all_checkpoints = monitor, save_all_checkpoints
        self.synthesizer = synthesizer or SelfInstruct()

    def reads(self) -> list[Input]:
        """The pairs and the teacher to start from."""
        return [Input("pairs", self.pairs, Kind.PAIRS), Input("teacher", self.teacher, Kind.TEACHER)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The training, and the evaluations of the monitor if it goes to its end."""
        given, chat_template = context.expected_input("pairs"), context.teacher_template()
        held_out = num_held_out(given.count, self.monitor.held_out) if self.monitor is not None else 0
        work = estimate_alignment(context, chat_template, self.training, given.count - held_out)
        if self.monitor is None or not self.monitor.num_samples:
            return StageEstimate(work=[work])
        asked, texts = [pair.messages() for pair in given.some()], [pair.chosen for pair in given.some()]
        sampled = self.monitor.num_evaluations(work.steps) * self.monitor.num_samples
        limit = self.monitor.sampling.max_tokens
        return StageEstimate(
            work=[
                work,
                RequestEstimator.of_template(chat_template).work("evaluations", sampled, sampled, asked, texts, limit),
            ]
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Align, or go on aligning."""
        teacher = context.teacher()
        teacher.source = context.source(teacher, "teacher")
        chat_template = load_chat_template(teacher.source)
        pairs, too_long = read_pairs(context, chat_template, self.training.max_length)
        if self.monitor is not None and self.over == "instruction":
            check_synthesizer(context, {(pair.prompt_format, pair.prefill) for pair, _ in pairs}, self.synthesizer)
        prompts = _prompts(pairs, context.seed)
        monitored = self._held_out([pair for pair, _ in pairs], list(prompts), context.seed)
        learned = [encoded for pair, encoded in pairs if pair.id not in monitored]
        held_out = [encoded for pair, encoded in pairs if pair.id in monitored]
        callback = self._monitor_callback(context, teacher, chat_template, held_out, list(prompts.values()))
        data = pair_data(learned, chat_template, self.training, context)
        counts = {"pairs": len(learned), "left_out_as_too_long": too_long}
        reference = ReferencePolicy(learned, data, context.directory)
        if callback is None:
            return {**counts, **fit(context, teacher, data, self.training, [reference])}
        metrics = fit(context, teacher, data, self.training, [reference, callback], callback.leave_weights)
        seen = callback.metrics()
        warnings = [*metrics.get("warnings", []), *seen["warnings"], *self._none_held_out(held_out)]
        return {**counts, "held_out_pairs": len(held_out), **metrics, **seen, "warnings": warnings}

    def _held_out(self, pairs: Sequence[PreferencePair], prompts: Sequence["_Prompt"], seed: int) -> set[str]:
        """The ids of the pairs that are held out from training for the monitor, prompt by prompt; none without one.

        Where all prompts have the same text, as Magpie's have, the samples of one of them stand for it.
        """
        if self.monitor is None:
            return set()
        if len(prompts) > 1:
            wanted = set(prompts[: num_held_out(len(prompts), self.monitor.held_out)])
            return {pair.id for pair in pairs if _prompt(pair) in wanted}
        ids = [id_ for (id_,) in prompts_in_order([(pair.prompt_id,) for pair in pairs], seed)]
        chosen = set(ids[: num_held_out(len(ids), self.monitor.held_out)])
        return {pair.id for pair in pairs if pair.prompt_id in chosen}

    def _none_held_out(self, held_out: Sequence[EncodedPair]) -> list[str]:
        """What there is to say where the monitor wants pairs that it cannot have."""
        if held_out or self.monitor is None or not self.monitor.held_out:
            return []
        return ["all pairs are of one prompt, so that none is held out: `max_margin` and `lowest_loss` saw nothing"]

    def _monitor_callback(
        self,
        context: StageContext,
        teacher: TeacherDPOModule,
        chat_template: ChatTemplate,
        held_out: Sequence[EncodedPair],
        prompts: Sequence[list[Message]],
    ) -> AlignmentMonitorCallback | None:
        if self.monitor is None:
            return None
        synthesizer = self.synthesizer if self.over == "instruction" else None
        evaluator = evaluator_of(
            self.monitor, context, teacher, chat_template, self.training.batch_size, prompts, synthesizer, held_out
        )
        return AlignmentMonitorCallback(self.monitor, evaluator, context.directory, self.save_all_checkpoints)


_Prompt = tuple[str, str, tuple[Turn, ...]]
"""A system message, or an empty text, a prompt, and the turns before it."""


def _prompt(pair: PreferencePair) -> _Prompt:
    return pair.system, pair.prompt, pair.history


def _prompts(pairs: Sequence[tuple[PreferencePair, EncodedPair]], seed: int) -> dict[_Prompt, list[Message]]:
    """All prompts as conversations, in an order that depends on the seed."""
    asked = {_prompt(pair): pair.messages() for pair, _ in pairs}
    return {prompt: asked[prompt] for prompt in prompts_in_order(list(asked), seed)}
