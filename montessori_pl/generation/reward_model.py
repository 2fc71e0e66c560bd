"""Reward models: one number for a conversation, higher is better. They judge, beside the engines that write."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from montessori_pl.batches.collate import pad
from montessori_pl.batches.samplers import chunks
from montessori_pl.bounds import PositiveInt, Text, checked
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.models.backbones import (
    check_files,
    check_finite,
    check_vocabulary,
    check_weights,
    errors_in_a_sentence,
)
from montessori_pl.models.loading import BaseDtype, move_to, num_positions
from montessori_pl.worlds.names import locate_backbone

if TYPE_CHECKING:
    from torch import device
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@checked
@dataclasses.dataclass(frozen=True)
class RewardModelSource:
    """A reward model that can be loaded."""

    model: Text
    """Hub id or local directory of a checkpoint with one label and a chat template."""
    batch_size: PositiveInt = 8
    """Conversations that it reads at a time; one by one if it has no padding token."""
    precision: BaseDtype = "float32"
    """Of its weights."""
    trust_remote_code: bool = False
    """Whether code that lies beside the checkpoint is run (`auto_map` of its configuration)."""


class Reward(NamedTuple):
    """What a reward model says of a conversation."""

    value: float
    """Its one logit."""
    tokens_cut: int
    """Tokens behind its context, which it has not seen."""


class RewardModel:
    """A frozen sequence-classification checkpoint of one label.

    Conversations are rendered by its own chat template, in which text that looks like a special token stays text.

    Args:
        source: which model.
        device: where it runs.

    Raises:
        ValueError: there is no such model, it has no trained score or several labels, or no chat template.
    """

    def __init__(self, source: RewardModelSource, device: "device") -> None:
        network, tokenizer = load_reward_model(source.model, source.precision, source.trust_remote_code)
        self._network, self._chat = move_to(device, network), ChatTemplate(tokenizer)
        # Without a padding token the model cannot tell where a padded conversation ends.
        self._batch_size = source.batch_size if self._pad_id is not None else 1

    @property
    def _pad_id(self) -> int | None:
        pad_id: int | None = self._network.config.get_text_config().pad_token_id
        return pad_id

    def rewards(self, conversations: Sequence[Sequence[Message]]) -> list[Reward]:
        """A reward for each conversation, in order."""
        rendered = [self._chat.conversation_ids(messages) for messages in conversations]
        context = num_positions(self._network.config)
        order = sorted(range(len(rendered)), key=lambda index: len(rendered[index]))
        found: dict[int, float] = {}
        for rows in chunks(order, self._batch_size):
            found |= zip(rows, self._logits([rendered[row][:context] for row in rows]), strict=True)
        return [
            Reward(found[row], len(ids[context:]) if context is not None else 0) for row, ids in enumerate(rendered)
        ]

    def close(self) -> None:
        """Give the memory back."""
        del self._network

    def _logits(self, conversations: Sequence[list[int]]) -> list[float]:
        import torch

        inputs = {name: one.to(self._network.device) for name, one in pad(conversations, self._pad_id or 0).items()}
        with torch.no_grad():
            return [float(logit) for logit in self._network(**inputs).logits[:, 0]]


def check_reward_model(source: RewardModelSource) -> None:
    """Look at the files of a reward model, and at how it reads a conversation.

    Raises:
        ValueError: there is no such model, it has no trained score or several labels, or no chat template.
    """
    _, tokenizer = load_reward_model(source.model, source.precision, source.trust_remote_code, weights=False)
    ChatTemplate(tokenizer)


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
    import torch
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
