"""Generation by Transformers' `generate`: no further engine, any device, every sample with a seed of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from montessori_pl.batches.collate import pad
from montessori_pl.batches.samplers import length_batches
from montessori_pl.bounds import PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling, decoded
from montessori_pl.generation.decoding import Decoder, selects_rows
from montessori_pl.models.loading import (
    ModelSource,
    check_loadable,
    device_of,
    load_chat_template,
    load_model,
    move_to,
)

if TYPE_CHECKING:
    from torch import nn


_DEFAULTS = "generation_config"
"""The attribute in which Transformers' models keep what their `generation_config.json` says."""


class TransformersBackend(GenerationBackend):
    """Samples with `generate` on one device.

    Samples of one prompt share what is computed of it, and completions that have ended leave the batch, with all models
    whose cache allows it. What each request gets is drawn by its seed alone.

    The stage's sampling alone decides what is drawn: the model's own `generation_config.json`, with its penalties,
    suppressed tokens and lengths, has no influence.

    Args:
        max_batch_tokens: tokens of one batch, prompts with padding and completions together.
        device: `auto` takes the first accelerator, or the CPU.
    """

    fingerprint_excludes = ("max_batch_tokens", "device")
    continues_turns = True
    one_per_run = False

    def __init__(self, max_batch_tokens: PositiveInt = 16384, device: Text = "auto") -> None:
        self.max_batch_tokens = max_batch_tokens
        self._device = device_of(device) if device != "auto" else None
        self._model: nn.Module | None = None
        self._chat: ChatTemplate | None = None
        self._selects_rows: bool | None = None  # not known until the model is asked

    @property
    def device(self) -> torch.device:
        """Where the model is, or will be: it may be loaded in another process than that of the settings."""
        if self._device is None:
            self._device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return self._device

    def check(self, source: ModelSource) -> None:
        """Look at the tokenizer, the configuration and the adapter's directory."""
        load_chat_template(source)
        if source.weights is not None and not source.weights.is_dir():
            raise ValueError(f"no adapter or trained model in {source.weights}: there is no such directory")

    def check_environment(self, source: ModelSource) -> None:
        """Look at the files of the weights, and at the packages that read them."""
        check_loadable(source)

    def load(self, source: ModelSource) -> None:
        """Load the model with its adapter, unmerged."""
        self.close()  # or both models would be in memory while this one is loaded
        self._chat = load_chat_template(source)
        self._model = move_to(self.device, load_model(source))

    def serve(self, model: "nn.Module", chat_template: ChatTemplate) -> None:
        """Sample from a model that the caller has loaded, as it is and where it is, for example while it is trained.

        The model must be in evaluation mode while it generates: in training mode it drops out, and with gradient
        checkpointing it keeps no cache. `close` leaves it alone.
        """
        self._model, self._chat, self._selects_rows = model, chat_template, None
        self._device = next(model.parameters()).device

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether prompt and completion stay within the model's positions."""
        _, chat_template = self._loaded()
        limit = chat_template.context
        return limit is None or len(chat_template.prompt_ids(messages)) + sampling.max_tokens <= limit

    # Not `inference_mode`: what a model keeps of it, as some rotary embeddings do, could never be trained with again.
    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Sample in batches of similar length, each of requests that end by the same token."""
        _, chat_template = self._loaded()
        prompts = [tuple(chat_template.prompt_ids(request.messages)) for request in requests]
        ends = [chat_template.open_turn(request.messages).end_id for request in requests]
        order = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        completions: dict[int, Completion] = {}
        for end_id in dict.fromkeys(ends):
            alike = [index for index, end in enumerate(ends) if end == end_id]
            alike.sort(key=lambda index: order[prompts[index]])  # samples of one prompt stand together
            lengths = [len(prompts[index]) + sampling.max_tokens for index in alike]
            for batch in length_batches(lengths, self.max_batch_tokens):
                asked = [alike[place] for place in batch]
                rows = self._sample([prompts[i] for i in asked], [requests[i] for i in asked], sampling, end_id)
                completions |= dict(zip(asked, rows, strict=True))
        return [completions[index] for index in range(len(requests))]

    def close(self) -> None:
        """Drop the model."""
        self._model = self._chat = self._selects_rows = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sample(
        self, prompts: Sequence[tuple[int, ...]], requests: Sequence[Request], sampling: Sampling, end_id: int
    ) -> list[Completion]:
        model, chat_template = self._loaded()
        if self._selects_rows is None:
            self._selects_rows = selects_rows(model, self.device)
        computed = list(dict.fromkeys(prompts)) if self._selects_rows else prompts
        places = {prompt: place for place, prompt in enumerate(computed)}
        prompt_of = [places[prompt] for prompt in prompts] if self._selects_rows else range(len(prompts))
        pad_id = chat_template.tokenizer.pad_token_id
        batch = {name: tensor.to(self.device) for name, tensor in pad(computed, pad_id, side="left").items()}
        # How tokens are drawn, and what ends a completion, is the decoder's; this is what the preparations need.
        config = GenerationConfig(max_new_tokens=sampling.max_tokens, pad_token_id=pad_id, use_cache=True)
        decoder = Decoder(chat_template, requests, sampling, end_id, prompt_of, self._selects_rows)
        with _without_defaults(model):
            rows = model.generate(**batch, generation_config=config, custom_generate=decoder)  # type: ignore[operator]
        return [
            decoded(chat_template, row, len(prompt), request)
            for row, prompt, request in zip(rows, prompts, requests, strict=True)
        ]

    def _loaded(self) -> tuple["nn.Module", ChatTemplate]:
        assert self._model is not None, "load a model first"
        assert self._chat is not None, "load a model first"
        return self._model, self._chat


@contextmanager
def _without_defaults(model: "nn.Module") -> Iterator[None]:
    """Inside, the model has no generation defaults: `generate` fills what its configuration leaves open from them.

    They are put back, because a whole model is saved together with them.
    """
    # The model under an adapter has the attribute; the wrapper passes on what it finds there.
    owners = [module for module in model.modules() if isinstance(vars(module).get(_DEFAULTS), GenerationConfig)]
    kept = [vars(module)[_DEFAULTS] for module in owners]
    for module in owners:
        setattr(module, _DEFAULTS, GenerationConfig())
    try:
        yield
    finally:
        for module, defaults in zip(owners, kept, strict=True):
            setattr(module, _DEFAULTS, defaults)
