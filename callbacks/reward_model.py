"""The opinion of a reward model as a signal."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from montessori_pl.bounds import PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Rejection, Score
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.generation.reward_model import RewardModel, RewardModelSource, check_reward_model
from montessori_pl.models.loading import BaseDtype, device_of
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import one_pass
from montessori_pl.signals.scalar import Columns, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData


class RewardModelSignal(ScalarSignal):
    """The one logit of a sequence-classification checkpoint, higher is better; the student is not loaded.

    The whole conversation is rendered by the reward model's own chat template, in which text that looks like a special
    token stays text. It is the example as a record, also where it is too long for the student. The
    model is frozen, and leaves memory when all is scored.

    Args:
        model: hub id or local directory of a checkpoint with one label and a chat template.
        batch_size: conversations that it reads at a time; one by one if it has no padding token.
        precision: of its weights.
        device: where it runs, for example `cuda:1`; null runs it where the trainer puts the student.
        trust_remote_code: whether code that lies beside the checkpoint is run (`auto_map` of its configuration).
    """

    quantity = "reward"
    unit = "logit"
    fingerprint_excludes = ("batch_size", "device")
    needs_student = False

    def __init__(
        self,
        model: Text,
        batch_size: PositiveInt = 8,
        precision: BaseDtype = "float32",
        device: Text | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.source = RewardModelSource(model, batch_size, precision, trust_remote_code)
        self.device = device_of(device) if device is not None else None

    def check_environment(self) -> None:
        """The files of the reward model, and how it reads a conversation."""
        check_reward_model(self.source)

    def estimate(self, count: int, upper_bound: int, data: ScoringData, chat_template: ChatTemplate) -> StageEstimate:
        """A pass of the reward model over each example; its tokens are counted as the student's."""
        return StageEstimate(work=[one_pass("rewards", count, upper_bound, data)])

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Load the reward model.

        Raises:
            ValueError: there is no such model, it has no trained score or several labels, or no chat template.
        """
        self._reward_model = RewardModel(self.source, self.device or student.device)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the reward model."""
        del self._reward_model

    def report(self) -> dict[str, Any]:
        """What is measured, and by which model."""
        return {**super().report(), "model": self.source.model}

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """Beside the quantiles the number of conversations that were too long for the reward model."""
        cut = sum(score.details["tokens_cut"] > 0 for score in scores)
        return {**super().summary(scores, unscored), "cut_to_context": cut}

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The reward, and how many tokens behind the reward model's context it has not seen."""
        rewards = self._reward_model.rewards([example.messages() for example in examples])
        return {
            self.quantity: [one.value for one in rewards],
            "tokens_cut": [float(one.tokens_cut) for one in rewards],
        }
