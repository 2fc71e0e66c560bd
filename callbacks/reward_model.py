"""The opinion of a reward model as a signal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from montessori_pl.batches.collate import pad
from montessori_pl.batches.samplers import chunks
from montessori_pl.bounds import PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Rejection, Score
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.models.backbones import (
    check_files,
    check_finite,
    check_vocabulary,
    check_weights,
    errors_in_a_sentence,
)
from montessori_pl.models.loading import BaseDtype, device_of, move_to, num_positions
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import one_pass
from montessori_pl.signals.scalar import Columns, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.worlds.names import locate_backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        self.model, self.batch_size, self.precision = model, batch_size, precision
        self.device = device_of(device) if device is not None else None
        self.trust_remote_code = trust_remote_code

    def check_environment(self) -> None:
        """The files of the reward model, and how it reads a conversation."""
        _, tokenizer = load_reward_model(self.model, self.precision, self.trust_remote_code, weights=False)
        ChatTemplate(tokenizer)

    def estimate(self, count: int, most: int, data: ScoringData, chat_template: ChatTemplate) -> StageEstimate:
        """A pass of the reward model over each example; its tokens are counted as the student's."""
        return StageEstimate(work=[one_pass("rewards", count, most, data)])

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Load the reward model.

        Raises:
            ValueError: there is no such model, it has no trained score or several labels, or no chat template.
        """
        self._network, tokenizer = load_reward_model(self.model, self.precision, self.trust_remote_code)
        self._chat = ChatTemplate(tokenizer)
        move_to(self.device or student.device, self._network)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the reward model."""
        del self._network, self._chat

    def report(self) -> dict[str, Any]:
        """What is measured, and by which model."""
        return {**super().report(), "model": self.model}

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """Beside the quantiles the number of conversations that were too long for the reward model."""
        cut = sum(score.details["tokens_cut"] > 0 for score in scores)
        return {**super().summary(scores, unscored), "cut_to_context": cut}

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The reward, and how many tokens behind the reward model's context it has not seen."""
        rendered = [self._chat.conversation_ids(example.messages()) for example in examples]
        config, context = self._network.config.get_text_config(), num_positions(self._network.config)
        # Without a padding token the model cannot tell where a padded conversation ends.
        batch_size = self.batch_size if config.pad_token_id is not None else 1
        order = sorted(range(len(rendered)), key=lambda index: len(rendered[index]))
        rewards: dict[int, float] = {}
        for rows in chunks(order, batch_size):
            rewards |= zip(rows, self._rewards([rendered[row][:context] for row in rows]), strict=True)
        return {
            self.quantity: [rewards[row] for row in range(len(rendered))],
            "tokens_cut": [float(len(ids[context:]) if context is not None else 0) for ids in rendered],
        }

    @torch.no_grad()
    def _rewards(self, conversations: Sequence[list[int]]) -> list[float]:
        pad_id = self._network.config.get_text_config().pad_token_id
        inputs = {name: tensor.to(self._network.device) for name, tensor in pad(conversations, pad_id or 0).items()}
        logits: Tensor = self._network(**inputs).logits
        return [float(logit) for logit in logits[:, 0]]


def load_reward_model(
    name: str, precision: BaseDtype, trust_remote_code: bool = False, weights: bool = True
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A frozen sequence-classification model of one label, in evaluation mode, and its tokenizer.

    Args:
        name: hub id or local directory.
        precision: of the weights.
        trust_remote_code: whether code that lies beside the checkpoint is run.
        weights: whether they are read; otherwise only their files are looked at.

    Raises:
        ValueError: there is no such model, it has no trained score or several labels, or no chat template.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    location = locate_backbone(name)
    check_files(name, location)
    with errors_in_a_sentence(name, "reward model"):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
        network, report = AutoModelForSequenceClassification.from_pretrained(
            location,
            dtype=getattr(torch, precision),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report has them
            device_map=None if weights else "meta",
        )
    if network.config.num_labels != 1:
        raise ValueError(
            f"the reward model {name!r} has {network.config.num_labels} labels, so that it gives no single reward; "
            "give a checkpoint with one label"
        )
    # A language model without the head would get a random one, with no more than a warning.
    check_weights(name, report, "reward model")
    if weights:
        check_finite(name, network)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of the reward model {name!r} brings no chat template, so that it is not known how it reads "
            "a conversation; give a checkpoint with one"
        )
    written = [number for number in (tokenizer.eos_token_id, tokenizer.pad_token_id) if number is not None]
    check_vocabulary(name, tokenizer, getattr(network.config.get_text_config(), "vocab_size", None), written)
    return network.eval().requires_grad_(False), tokenizer
