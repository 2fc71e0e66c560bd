"""AlignTeacher: DPO of the teacher on preference pairs, with the teacher before alignment as the reference policy."""

from collections.abc import Sequence
from typing import Any, Literal

from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.data.chat_template import ChatFormat
from montessori_pl.data.records import Message
from montessori_pl.estimates.context import PlanContext
from montessori_pl.estimates.estimate import Plan
from montessori_pl.estimates.requests import Respondent
from montessori_pl.models.loading import load_chat
from montessori_pl.models.teacher import TeacherDPOModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext
from montessori_pl.stages.training.alignment_evaluator import Observer, whole_response
from montessori_pl.stages.training.alignment_monitor import (
    LOOKS,
    TEACHERS,
    DoseControl,
    DoseWatch,
    num_held_out,
    prompts_in_order,
)
from montessori_pl.stages.training.fit import fit
from montessori_pl.stages.training.preferences import pair_data, plan_alignment, read_pairs
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer


class AlignTeacher(Stage):
    """Train the teacher to prefer what helped the student, as long as its writing stays within limits.

    Args:
        pairs: the stage whose preference pairs are learned.
        training: how.
        teacher: the stage whose teacher is trained further, and is the reference policy; `latest`, or `base`.
        watch: when the teacher is looked at while it is trained, what is too much, and which look becomes the teacher;
            null trains on all pairs to the end, without a look.
        keep_teachers: whether the adapter of every look stays, in `looks/step_000010` and so on. One of them can be
            used wherever an adapter's path can, for example `ModelSource(backbone, weights=Path(...))`.
        over: what the pairs' completions are: each holds an `instruction`, or each is a `response`. The watch looks at
            the instructions in what the teacher writes, or at its responses as they are.
        synthesizer: finds the instructions in what the watched teacher writes.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.TEACHER
    artifacts = (CHECKPOINT, f"{WEIGHTS}/*", LOOKS, f"{TEACHERS}/*/*")
    uses = ("teacher",)
    trains = ("teacher",)
    unpinned = ("training.checkpoint_every_n_steps",)
    distributed = True

    def __init__(
        self,
        pairs: str,
        training: TrainingSettings,
        teacher: str = LATEST,
        watch: DoseWatch | None = DoseWatch(),
        keep_teachers: bool = False,
        over: Literal["instruction", "response"] = "instruction",
        synthesizer: Synthesizer | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if keep_teachers and watch is None:
            raise ValueError("keep_teachers keeps the teachers of the looks, and without `watch` there is no look")
        if over == "response" and synthesizer is not None:
            raise ValueError("synthesizer finds instructions, and the pairs are over responses: leave it out")
        self.pairs, self.training, self.teacher, self.over = pairs, training, teacher, over
        self.watch, self.keep_teachers = watch, keep_teachers
        self.synthesizer = synthesizer or SelfInstruct()

    def reads(self) -> list[Input]:
        """The pairs and the teacher to start from."""
        return [Input("pairs", self.pairs, Kind.PAIRS), Input("teacher", self.teacher, Kind.TEACHER)]

    def plan(self, context: PlanContext) -> Plan:
        """The training, and the looks that it takes if it goes to its end."""
        given, chat = context.given("pairs"), load_chat(context.teacher().source)
        held_out = num_held_out(given.count, self.watch.held_out) if self.watch is not None else 0
        work = plan_alignment(context, chat, self.training, given.count - held_out)
        if self.watch is None or not self.watch.num_samples:
            return Plan(work=[work])
        asked, texts = [pair.messages() for pair in given.some()], [pair.chosen for pair in given.some()]
        sampled = self.watch.num_looks(work.steps) * self.watch.num_samples
        limit = self.watch.sampling.max_tokens
        return Plan(work=[work, Respondent(chat=chat).work("looks", sampled, sampled, asked, texts, limit)])

    def run(self, context: StageContext) -> dict[str, Any]:
        """Align, or go on aligning."""
        teacher = context.teacher()
        teacher.source = context.source(teacher, "teacher")
        chat = load_chat(teacher.source)
        fitting, too_long = read_pairs(context, chat, self.training.max_length)
        asked = {(pair.system, pair.prompt): pair.messages() for pair, _ in fitting}
        order = prompts_in_order(list(asked), context.seed)
        watched = set(order[: num_held_out(len(order), self.watch.held_out)]) if self.watch else set[tuple[str, str]]()
        learned = [encoded for pair, encoded in fitting if (pair.system, pair.prompt) not in watched]
        held_out = [encoded for pair, encoded in fitting if (pair.system, pair.prompt) in watched]
        dose = self._dose_control(context, teacher, chat, held_out, [asked[prompt] for prompt in order])
        data = pair_data(learned, chat, self.training, context)
        counts = {"pairs": len(learned), "left_out_as_too_long": too_long}
        if dose is None:
            return {**counts, **fit(context, teacher, data, self.training)}
        metrics = fit(context, teacher, data, self.training, [dose], dose.leave_weights)
        return {**counts, "held_out_pairs": len(held_out), **metrics, **dose.metrics()}

    def _dose_control(
        self,
        context: StageContext,
        teacher: TeacherDPOModule,
        chat: ChatFormat,
        held_out: Sequence[EncodedPair],
        prompts: Sequence[list[Message]],
    ) -> DoseControl | None:
        if self.watch is None:
            return None
        observer = Observer(
            teacher=teacher,
            chat=chat,
            held_out=held_out,
            prompts=prompts,
            num_samples=self.watch.num_samples,
            sampling=self.watch.sampling,
            read=self.synthesizer.instruction if self.over == "instruction" else whole_response,
            seed=context.seed,
            batch_size=self.training.batch_size,
        )
        return DoseControl(self.watch, observer, context.directory, self.keep_teachers)
