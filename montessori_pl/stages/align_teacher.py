"""AlignTeacher: DPO of the teacher on preference pairs, with the teacher before alignment as the reference policy."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from montessori_pl.chat import ChatFormat
from montessori_pl.data import EncodedPair, collate_pairs, encode_pairs
from montessori_pl.generation.foresight import Respondent
from montessori_pl.models import load_chat
from montessori_pl.optimization import TrainingSettings
from montessori_pl.planning import Plan
from montessori_pl.records import PreferencePair, read_records
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.dose import LOOKS, TEACHERS, DoseControl, DoseWatch, num_held_out, prompts_in_order
from montessori_pl.stages.looks import Observer
from montessori_pl.stages.plan import PlanContext, training
from montessori_pl.stages.training import TrainingData, fit
from montessori_pl.stages.writing import turn
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer
from montessori_pl.teacher import TeacherDPOModule


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
        synthesizer: Synthesizer | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if keep_teachers and watch is None:
            raise ValueError("keep_teachers keeps the teachers of the looks, and without `watch` there is no look")
        self.pairs, self.training, self.teacher = pairs, training, teacher
        self.watch, self.keep_teachers = watch, keep_teachers
        self.synthesizer = synthesizer or SelfInstruct()

    def reads(self) -> list[Input]:
        """The pairs and the teacher to start from."""
        return [Input("pairs", self.pairs, Kind.PAIRS), Input("teacher", self.teacher, Kind.TEACHER)]

    def plan(self, context: PlanContext) -> Plan:
        """Both sides of all pairs that are learned, and the looks; the reference policy's passes are not counted."""
        given, some = context.given("pairs"), context.given("pairs").some()
        chat = load_chat(context.teacher().source)
        encoded = encode_pairs(some, chat, self.training.max_length)
        lengths = [len(pair.chosen.input_ids) + len(pair.rejected.input_ids) for pair in encoded]
        held_out = num_held_out(given.count, self.watch.held_out) if self.watch is not None else 0
        work = training(self.training, given.count - held_out, lengths, context.processes)
        if self.watch is None or not self.watch.num_samples:
            return Plan(work=[work])
        looks = self.watch.num_looks(work.steps)
        sampled = looks * self.watch.num_samples
        prompts, texts = [turn(pair.prompt) for pair in some], [pair.chosen for pair in some]
        limit = self.watch.sampling.max_tokens
        return Plan(work=[work, Respondent(chat=chat).work("looks", sampled, sampled, prompts, texts, limit)])

    def run(self, context: StageContext) -> dict[str, Any]:
        """Align, or go on aligning."""
        directory = context.inputs["pairs"]
        assert directory is not None
        teacher = context.teacher()
        teacher.source = context.source(teacher, "teacher")
        chat = load_chat(teacher.source)
        pairs = read_records(directory / "pairs.jsonl", PreferencePair)
        max_length = self.training.max_length
        fitting = [(pair.prompt, encoded) for pair in pairs for encoded in encode_pairs([pair], chat, max_length)]
        if not fitting:
            raise StageError(
                f"{context.key} has nothing to learn: of {len(pairs)} pairs in {directory}, none fits within "
                f"max_length {max_length} tokens"
            )
        prompts = prompts_in_order([prompt for prompt, _ in fitting], context.seed)
        watched = set(prompts[: num_held_out(len(prompts), self.watch.held_out)]) if self.watch else set[str]()
        learned = [encoded for prompt, encoded in fitting if prompt not in watched]
        held_out = [encoded for prompt, encoded in fitting if prompt in watched]
        dose = self._dose_control(context, teacher, chat, held_out, prompts)
        data = TrainingData(
            learned,
            [max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) for pair in learned],
            self.training.batch_size,
            context.seed,
            partial(collate_pairs, pad_id=chat.tokenizer.pad_token_id),
        )
        counts = {"pairs": len(learned), "left_out_as_too_long": len(pairs) - len(fitting)}
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
        prompts: Sequence[str],
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
            synthesizer=self.synthesizer,
            seed=context.seed,
            batch_size=self.training.batch_size,
        )
        return DoseControl(self.watch, observer, context.directory, self.keep_teachers)
