"""ReinforceTeacher: a policy gradient step of the teacher on scored completions of its own, one round of GRPO."""

from functools import partial
from typing import Annotated, Any

from montessori_pl.advantages import Scale, group_advantages
from montessori_pl.batches.collate import collate_completions, num_labels
from montessori_pl.batches.encoding import EncodedCompletion, encode_completions
from montessori_pl.bounds import Bounds, NonNegativeFloat, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, teacher_messages
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.estimates.training import estimate_training
from montessori_pl.models.grpo import GRPOModule
from montessori_pl.models.loading import load_chat_template
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.generating.generators import generator_name
from montessori_pl.stages.selection.scores import ScoreStages, read_scores, score_inputs, score_weights
from montessori_pl.stages.training.alignment_monitor import (
    ADAPTERS,
    EVALUATIONS,
    AlignmentMonitor,
    AlignmentMonitorCallback,
    check_synthesizer,
    evaluator_of,
    prompts_in_order,
)
from montessori_pl.stages.training.fit import HOW_TRAINED, TrainingData, fit
from montessori_pl.stages.training.reference import SAMPLED, SamplingPolicy
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer

Clip = Annotated[float, Bounds(gt=0, lt=1)]


class ReinforceTeacher(Stage):
    """Make those completions likelier that scored better than the others of their prompt, and the others less likely.

    One round of GRPO (arXiv 2402.03300) with the scores as rewards. Rounds follow each other in the recipe: the teacher
    writes a little, that is scored, and this stage takes a few steps. Rewards are so measured again and again, on
    whatever student the recipe names. `beta`, `loss_type` and `sft_weight` of the teacher section are for pairs; this
    stage has settings of its own.

    A token's ratio is that of its probabilities under the whole distribution, whatever `top_p` or penalty it was drawn
    with. Those when it was sampled are computed without dropout: with dropout in the adapter, ratios are not 1 at the
    first step. What another teacher wrote, such as the one that a guard fell back to, is left out.

    Args:
        examples: the stage whose examples were scored, written by `teacher`.
        scores: the stage that scored them; or several, whose scores are then divided by their standard deviation and
            averaged, all alike or by the weight of each (`{influence: 1.0, judged: 0.5}`).
        training: how; `epochs` is how often each round's completions are learned (TRL: `num_iterations`).
        teacher: the stage whose teacher has written them and is trained further; `latest`, or `base`.
        clip: how far below 1 a token's probability by that when it was sampled counts (TRL: `epsilon`).
        clip_high: the same above 1 (TRL: `epsilon_high`); null takes `clip`.
        kl_weight: weight of the divergence from the teacher's base, in nats per token (TRL: `beta`).
        scale: `group` divides a prompt's advantages by the standard deviation of its scores; with `none` a prompt whose
            completions hardly differ says little. Advantages of all prompts have a mean square near 1 either way.
        monitor: when the teacher is evaluated, and how far its writing may move from its base in all rounds together;
            the last evaluation within the limits is kept, which may be that before the first step. Null does not look.
        synthesizer: finds the instructions in what the monitored teacher writes.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.TEACHER
    artifacts = (CHECKPOINT, f"{WEIGHTS}/*", SAMPLED, EVALUATIONS, f"{ADAPTERS}/*/*")
    uses = ("teacher", "trainer")
    trains = ("teacher",)
    fingerprint_excludes = HOW_TRAINED
    distributed = True
    own_objective = True

    def __init__(
        self,
        examples: Text,
        scores: ScoreStages,
        training: TrainingSettings,
        teacher: Text = LATEST,
        clip: Clip = 0.2,
        clip_high: Clip | None = None,
        kl_weight: NonNegativeFloat = 0.04,
        scale: Scale = "group",
        monitor: AlignmentMonitor | None = AlignmentMonitor(held_out=0.0),
        synthesizer: Synthesizer | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if monitor is not None and monitor.held_out:
            raise ValueError(
                f"monitor.held_out is {monitor.held_out:g}, and there are no pairs here that could be held out: "
                "set it to 0"
            )
        self.examples, self.scores, self.training, self.teacher = examples, score_weights(scores), training, teacher
        self.clip, self.clip_high, self.kl_weight, self.scale = clip, clip_high, kl_weight, scale
        self.monitor, self.synthesizer = monitor, synthesizer or SelfInstruct()

    def reads(self) -> list[Input]:
        """The examples, their scores, and the teacher to start from."""
        return [
            Input("examples", self.examples, Kind.EXAMPLES),
            *score_inputs(self.scores),
            Input("teacher", self.teacher, Kind.TEACHER),
        ]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The training, and the evaluations of the monitor if it goes to its end."""
        given, chat_template = context.expected_input("examples"), context.teacher_template()
        some = [example for example in given.some() if example.prompt_id]
        encoded = encode_completions(some, {one.id: 0.0 for one in some}, chat_template, self.training.max_length)
        lengths = [len(one.rendered.input_ids) for one in encoded]
        work = estimate_training(self.training, given.count, lengths, context.processes)
        if self.monitor is None or not self.monitor.num_samples:
            return StageEstimate(work=[work])
        asked, texts = [_asked(example) for example in some], [example.completion for example in some]
        of_base = "teacher" in context.inputs  # in a later round the base is evaluated, too
        sampled = (self.monitor.num_evaluations(work.steps) + of_base) * self.monitor.num_samples
        limit = self.monitor.sampling.max_tokens
        requests = RequestEstimator.of_template(chat_template)
        return StageEstimate(work=[work, requests.work("evaluations", sampled, sampled, asked, texts, limit)])

    def run(self, context: StageContext) -> dict[str, Any]:
        """Train, or go on training."""
        before = context.teacher()
        before.source = context.source(before, "teacher")
        clip = self.clip, self.clip if self.clip_high is None else self.clip_high
        teacher = GRPOModule(before, clip, self.kl_weight)
        chat_template = load_chat_template(teacher.source)
        written = context.examples("examples")
        examples = self._own(context, written, generator_name(teacher.source))
        advantages = group_advantages(examples, read_scores(context, self.scores), self.scale)
        learned = encode_completions(examples, advantages, chat_template, self.training.max_length)
        if not learned:
            raise StageError(
                f"{context.key} has nothing to learn: of {len(examples)} examples, {len(advantages)} have a score "
                "beside another one of their prompt, and none of these fits within max_length "
                f"{self.training.max_length} tokens; ask several samples of each prompt"
            )
        if not any(one.advantage for one in learned):
            raise StageError(
                f"{context.key} has nothing to learn: no prompt has completions that are scored differently; look at "
                f"the scores of {', '.join(self.scores)}"
            )
        data = _data(learned, chat_template, self.training, context)
        callbacks: list[Any] = [SamplingPolicy(learned, data, context.directory)]
        counts = {
            "completions": len(learned),
            "left_out_as_too_long": len(advantages) - len(learned),
            "left_out_as_written_by_others": len(written) - len(examples),
        }
        monitored = self._monitor_callback(context, teacher, chat_template, examples)
        if monitored is None:
            return {**counts, **fit(context, teacher, data, self.training, callbacks)}
        metrics = fit(context, teacher, data, self.training, [*callbacks, monitored], monitored.leave_weights)
        seen = monitored.metrics()
        return {**counts, **metrics, **seen, "warnings": [*metrics.get("warnings", []), *seen["warnings"]]}

    def _own(self, context: StageContext, examples: list[Example], teacher: str) -> list[Example]:
        """The instructions that this teacher has written; on another one's its probabilities say nothing."""
        if any(one.prompt_id and one.prompt == one.instruction for one in examples):
            raise StageError(
                f"{context.key}: the completions of {self.examples!r} are responses, and what is learned here is to "
                "write instructions; name the Synthesize stage whose instructions were scored"
            )
        own = [one for one in examples if one.teacher == teacher]
        if not own:
            found = ", ".join(sorted({one.teacher or "nobody" for one in examples})[:3])
            raise StageError(
                f"{context.key} trains {teacher!r}, and {self.examples!r} was written by {found}; let the teacher that "
                "has written the examples be the one that is trained"
            )
        return own

    def _monitor_callback(
        self, context: StageContext, teacher: GRPOModule, chat_template: ChatTemplate, examples: list[Example]
    ) -> AlignmentMonitorCallback | None:
        if self.monitor is None:
            return None
        asked = {(one.prompt, one.prompt_format, one.prefill): _asked(one) for one in examples if one.prompt_id}
        check_synthesizer(context, {(way, prefill) for _, way, prefill in asked}, self.synthesizer)
        prompts = [asked[prompt] for prompt in prompts_in_order(list(asked), context.seed)]
        evaluator = evaluator_of(
            self.monitor, context, teacher, chat_template, self.training.batch_size, prompts, self.synthesizer
        )
        return AlignmentMonitorCallback(self.monitor, evaluator, context.directory, save_all_checkpoints=False)


def _asked(example: Example) -> list[Message]:
    return teacher_messages(example.prompt, example.prompt_format, example.prefill)


def _data(
    completions: list[EncodedCompletion], chat_template: ChatTemplate, training: TrainingSettings, context: StageContext
) -> TrainingData:
    """The completions in batches."""
    return TrainingData(
        completions,
        [len(one.rendered.input_ids) for one in completions],
        training.batch_size,
        context.seed,
        partial(collate_completions, pad_id=chat_template.tokenizer.pad_token_id),
        {"tokens": [num_labels(one.rendered) for one in completions]},
    )
