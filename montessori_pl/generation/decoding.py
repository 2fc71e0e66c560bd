"""The loop that decodes a batch, in the place of Transformers' own: prompts are computed once, and ended rows leave.

`generate` prepares a model's inputs and its cache, and hands them to the loop (its argument `custom_generate`). Samples
of one prompt then share what the model has computed of it: the cache is repeated, and their first token is drawn from
one row of logits. A row that has ended is taken out of the cache, so that the batch shrinks to those that still write.

Both need a cache whose rows can be selected, and a model that keeps nothing of them elsewhere: `selects_rows`.

Legend: P prompts, B rows (completions), T tokens, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.generation.base import Request, Sampling
from montessori_pl.generation.draws import SeededDraws

SELECTABLE_LAYERS = (
    *(DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, LinearAttentionLayer),
    *(LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer),
)
"""Layers of a cache that hold nothing of a row but tensors which `reorder_cache` selects; others may hold more."""


class Decoder:
    """Completes the requests of a batch: the `custom_generate` of one call of `generate`.

    Args:
        chat_template: of the model.
        requests: to be completed, B of them.
        sampling: how tokens are drawn.
        end_id: the token that ends a completion.
        prompt_of: for each request the row of its prompt in the inputs.
        selects_rows: whether the model's rows can be selected; else all rows stay until the last one has ended.
    """

    def __init__(
        self,
        chat_template: ChatTemplate,
        requests: Sequence[Request],
        sampling: Sampling,
        end_id: int,
        prompt_of: Sequence[int],
        selects_rows: bool,
    ) -> None:
        self.chat_template, self.requests, self.sampling, self.end_id = chat_template, requests, sampling, end_id
        self.prompt_of, self.selects_rows = list(prompt_of), selects_rows
        self.turns = [chat_template.open_turn(request.messages) if request.stop else None for request in requests]

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> list[list[int]]:
        """Decode.

        Args:
            model: a `GenerationMixin`, in which there may be a LoRA adapter.
            input_ids: the prompts, padded on the left, shape (P, T).
            logits_processor: not used, nor are the next two: what they would say is said by our own arguments.
            stopping_criteria: not used.
            generation_config: not used.
            **inputs: what `generate` has prepared for the model beside, with the empty cache.

        Returns:
            the tokens of each completion; behind its end may stand others.
        """
        draws = SeededDraws(self.sampling, [request.seed for request in self.requests])
        ended, rows = [False] * len(self.requests), list(range(len(self.requests)))
        completions: list[list[int]] = [[] for _ in self.requests]
        length = input_ids.shape[1]
        logits, inputs = _forward(model, input_ids, inputs, is_first_iteration=True)
        if self.prompt_of != rows:
            input_ids, logits = input_ids[self.prompt_of], logits[self.prompt_of]
            _select(inputs, self.prompt_of, input_ids.device)
        with model._optimize_model_for_decode():
            while True:
                tokens = draws.next_tokens(logits, input_ids[:, length:])
                for row, token in zip(rows, tokens.tolist(), strict=True):
                    completions[row].append(token)
                    ended[row] = ended[row] or self._ends(row, completions[row])
                if all(ended) or len(completions[rows[0]]) == self.sampling.max_tokens:
                    return completions
                input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
                going = [place for place, row in enumerate(rows) if not ended[row]]
                if self.selects_rows and len(going) < len(rows):
                    rows, input_ids = [rows[place] for place in going], input_ids[going]
                    draws.keep(going)
                    _select(inputs, going, input_ids.device)
                logits, inputs = _forward(model, input_ids, inputs, next_sequence_length=1)

    def _ends(self, row: int, completion: Sequence[int]) -> bool:
        """Whether its last token ends a completion; where exactly it does is found when it is decoded."""
        stop = self.requests[row].stop
        if completion[-1] == self.end_id or not stop:
            return completion[-1] == self.end_id
        # A token is a character at least, but for parts of one: the last tokens hold the text if they complete it.
        return stop in self.chat_template.decode(completion[-2 * len(stop) :], self.turns[row])[0]


def selects_rows(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether rows of a batch can be repeated and left out while this model goes on with it.

    One token is put through it, to see the cache: every layer must keep its state there, in a form that is known.
    """
    output = model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=True)
    cache = getattr(output, "past_key_values", getattr(output, "cache_params", None))
    return type(cache) is DynamicCache and all(
        type(layer) in SELECTABLE_LAYERS and _holds_state(layer) for layer in cache.layers
    )


def _holds_state(layer: Any) -> bool:
    linear = isinstance(layer, LinearAttentionCacheLayerMixin) and any(
        [*layer.is_conv_states_initialized.values(), *layer.is_recurrent_states_initialized.values()]
    )
    return linear or getattr(layer, "is_initialized", False)


def _forward(model: Any, input_ids: Tensor, inputs: dict[str, Any], **how: Any) -> tuple[Tensor, dict[str, Any]]:
    """The logits of the next token, (B, V) in float32, and what the model is given beside at the next call."""
    output = model(**model.prepare_inputs_for_generation(input_ids, **how, **inputs), return_dict=True)
    inputs = model._update_model_kwargs_for_generation(output, inputs)
    # A view would keep the logits of the whole prompt.
    return output.logits[:, -1].to(input_ids.device, torch.float32, copy=True), inputs


def _select(inputs: dict[str, Any], rows: Sequence[int], device: torch.device) -> None:
    """Put these rows in the place of all in what the model is given: masks and positions (..., B, T), and the cache."""
    index = torch.tensor(rows, device=device)
    for name, value in inputs.items():
        if isinstance(value, Cache):
            value.reorder_cache(index)  # type: ignore[arg-type]  # any integers, says the code
        elif isinstance(value, Tensor):
            inputs[name] = value.index_select(-2, index)
