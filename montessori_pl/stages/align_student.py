"""AlignStudent: DPO of the student on pairs of its own responses, with the student before as the reference policy."""

from typing import Any

from montessori_pl.bounds import Text
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.losses import PairLoss
from montessori_pl.models.dpo import Beta, DPOModule, SFTWeight, Smoothing, check_loss
from montessori_pl.models.loading import holds_adapter, load_chat_template
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext
from montessori_pl.stages.training.fit import HOW_TRAINED, fit
from montessori_pl.stages.training.preferences import estimate_alignment, pair_data, read_pairs
from montessori_pl.stages.training.reference import REFERENCE, ReferencePolicy


class AlignStudent(Stage):
    """Train the student to prefer the better of its responses.

    What the student was trained with before is trained further: its adapter, or all of its weights. The base student
    gets the adapter of the student section.

    Args:
        pairs: the stage whose preference pairs are learned.
        training: how.
        student: the stage whose student is trained further, and is the reference policy; `latest`, or `base`.
        beta: strength of the pull towards the reference policy.
        loss_type: `sigmoid` is DPO's; `sigmoid` with label smoothing (cDPO), `robust` and `ipo` trust the pairs less
            (see `losses.dpo_loss`). `sft` learns the chosen responses and nothing else, with `sft_weight`.
        label_smoothing: for `sigmoid` and `robust`, the share of pairs believed to be the wrong way round.
        sft_weight: weight of the negative log-likelihood of the chosen responses, per token, which is the weight of
            TRL's loss type `sft`; without it DPO may make both responses of a pair unlikely.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.STUDENT
    artifacts = (CHECKPOINT, f"{WEIGHTS}/*", REFERENCE)
    uses = ("student", "trainer")
    fingerprint_excludes = HOW_TRAINED
    distributed = True

    def __init__(
        self,
        pairs: Text,
        training: TrainingSettings,
        student: Text = LATEST,
        beta: Beta = 0.1,
        loss_type: PairLoss = "sigmoid",
        label_smoothing: Smoothing = 0.0,
        sft_weight: SFTWeight = 0.0,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        check_loss(loss_type, label_smoothing, sft_weight)
        self.pairs, self.training, self.student = pairs, training, student
        self.beta, self.loss_type, self.label_smoothing, self.sft_weight = beta, loss_type, label_smoothing, sft_weight

    def reads(self) -> list[Input]:
        """The pairs and the student to start from."""
        return [Input("pairs", self.pairs, Kind.PAIRS), Input("student", self.student, Kind.STUDENT)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The training on all pairs."""
        chat_template = context.student_template()
        return StageEstimate(
            work=[estimate_alignment(context, chat_template, self.training, context.expected_input("pairs").count)]
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Align, or go on aligning."""
        student = self._student(context)
        chat_template = load_chat_template(student.source)
        fitting, too_long = read_pairs(context, chat_template, self.training.max_length)
        pairs = [encoded for _, encoded in fitting]
        data = pair_data(pairs, chat_template, self.training, context)
        reference = ReferencePolicy(pairs, data, context.directory)
        metrics = fit(context, student, data, self.training, [reference])
        return {"pairs": len(fitting), "left_out_as_too_long": too_long, **metrics}

    def _student(self, context: StageContext) -> DPOModule:
        """The student before, as a policy."""
        before = context.student()
        source = context.source(before, "student")
        policy = DPOModule(
            backbone=before.backbone,
            lora=before.lora,
            beta=self.beta,
            loss_type=self.loss_type,
            label_smoothing=self.label_smoothing,
            sft_weight=self.sft_weight,
            chat_template=before.chat_template,
            chat_template_kwargs=before.chat_template_kwargs,
            base_dtype=source.base_dtype,
            trust_remote_code=source.trust_remote_code,
            attn_implementation=source.attn_implementation,
        )
        policy.source = source
        if source.weights is not None and not holds_adapter(source.weights):
            policy.train_all_weights()
        return policy
