"""What a language model knows of a prompt: its hidden state where the answer would begin.

Legend: B batch, T tokens, H hidden size.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from montessori_pl.batches.collate import collate
from montessori_pl.batches.samplers import length_batches
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.models.loading import ModelSource, load_chat_template, load_model, move_to
from montessori_pl.routing.responses import Prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def encode_prompts(prompts: Sequence[Prompt], chat_template: ChatTemplate, max_length: int) -> list[Rendered]:
    """Prompts in tokens up to where the answer begins; of longer ones the last `max_length` tokens."""
    limit = max_length if chat_template.context is None else min(max_length, chat_template.context)
    ids = [chat_template.prompt_ids(prompt.messages())[-limit:] for prompt in prompts]
    return [Rendered(one, [False] * len(one)) for one in ids]


def last_hidden_states(model: "PreTrainedModel | PeftModel", batch: Mapping[str, Tensor]) -> Tensor:
    """The hidden state at each prompt's last token, shape (B, H); the language-model head is not computed.

    Args:
        model: a causal language model, with an adapter or without.
        batch: `input_ids` and `attention_mask`, each (B, T), padded on the right.
    """
    from peft import PeftModel
    from transformers import PreTrainedModel

    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(causal, PreTrainedModel)
    states: Tensor = causal.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    last = batch["attention_mask"].sum(dim=1) - 1
    return states[torch.arange(len(last), device=last.device), last]


class PromptEncoder:
    """A causal language model that reads prompts; it is loaded when the first one comes.

    Args:
        source: which model.
        max_length: longest prompt in tokens; of longer ones the end is read.
        batch_tokens: tokens of one batch, padding included.
    """

    def __init__(self, source: ModelSource, max_length: int, batch_tokens: int = 8192) -> None:
        self.source, self.max_length, self.batch_tokens = source, max_length, batch_tokens

    @cached_property
    def _model(self) -> "PreTrainedModel | PeftModel":
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return move_to(device, load_model(self.source))

    @cached_property
    def _chat(self) -> ChatTemplate:
        return load_chat_template(self.source)

    @torch.inference_mode()
    def features(self, prompts: Sequence[Prompt]) -> Tensor:
        """The last hidden state of each prompt, in float64 on the CPU, shape (number of prompts, H)."""
        rendered = encode_prompts(prompts, self._chat, self.max_length)
        found: dict[int, Tensor] = {}
        for rows in length_batches([len(one.input_ids) for one in rendered], self.batch_tokens):
            batch = collate([rendered[row] for row in rows], self._chat.tokenizer.pad_token_id)
            states = last_hidden_states(self._model, {name: one.to(self._model.device) for name, one in batch.items()})
            found |= zip(rows, states.double().cpu(), strict=True)
        return torch.stack([found[row] for row in range(len(prompts))])
