"""Generation by Transformers' own `generate`: no further engine, any device, every sample with a seed of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from montessori_pl.batches.collate import pad
from montessori_pl.batches.samplers import length_batches
from montessori_pl.bounds import PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling, decoded
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
        accelerator = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else None
        self.device = device_of(device) if device != "auto" else accelerator or torch.device("cpu")
        self._model: nn.Module | None = None
        self._chat: ChatTemplate | None = None

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
        self._model, self._chat = model, chat_template
        self.device = next(model.parameters()).device

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
        prompts = [chat_template.prompt_ids(request.messages) for request in requests]
        ends = [chat_template.open_turn(request.messages).end_id for request in requests]
        completions: dict[int, Completion] = {}
        for end_id in dict.fromkeys(ends):
            alike = [index for index, end in enumerate(ends) if end == end_id]
            lengths = [len(prompts[index]) + sampling.max_tokens for index in alike]
            for batch in length_batches(lengths, self.max_batch_tokens):
                asked = [alike[place] for place in batch]
                rows = self._sample([prompts[i] for i in asked], [requests[i] for i in asked], sampling, end_id)
                completions |= dict(zip(asked, rows, strict=True))
        return [completions[index] for index in range(len(requests))]

    def close(self) -> None:
        """Drop the model."""
        self._model = self._chat = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sample(
        self, prompts: Sequence[list[int]], requests: Sequence[Request], sampling: Sampling, end_id: int
    ) -> list[Completion]:
        model, chat_template = self._loaded()
        pad_id = chat_template.tokenizer.pad_token_id
        batch = {name: tensor.to(self.device) for name, tensor in pad(prompts, pad_id, side="left").items()}
        length = batch["input_ids"].shape[1]
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,  # the processors draw: see SeededSampling
            eos_token_id=end_id,
            pad_token_id=pad_id,
            use_cache=True,
        )
        with _without_defaults(model):
            output: Tensor = model.generate(  # type: ignore[operator]
                **batch,
                generation_config=config,
                logits_processor=_processors(sampling, [request.seed for request in requests], length),
                stopping_criteria=_criteria(chat_template, [request.stop for request in requests], length),
            )
        rows = output[:, length:].tolist()
        return [
            decoded(chat_template, row, len(prompt), request)
            for row, prompt, request in zip(rows, prompts, requests, strict=True)
        ]

    def _loaded(self) -> tuple["nn.Module", ChatTemplate]:
        assert self._model is not None, "load a model first"
        assert self._chat is not None, "load a model first"
        return self._model, self._chat


class PresencePenalty(LogitsProcessor):
    """Subtract a constant from the logits of the tokens that the completion already holds."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Penalize; `input_ids` (B, T), `scores` (B, V)."""
        present = torch.zeros_like(scores).scatter_(1, input_ids[:, self.prompt_length :], 1.0)
        return scores - self.penalty * present


class SeededSampling(LogitsProcessor):
    """Draw each row by its own generator: the largest logit plus Gumbel noise is a sample of the softmax.

    `generate` then takes the maximum. Its own sampling draws all rows from one global generator, so that a completion
    would depend on what stands beside it in the batch.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add the noise; `scores` (B, V)."""
        noise = torch.stack(
            [
                torch.empty(scores.shape[1], dtype=torch.float32, device=generator.device).exponential_(
                    generator=generator
                )
                for generator in self.generators
            ]
        )
        return scores - noise.log().to(scores)


class StopAtText(StoppingCriteria):
    """End each row when it has written its text; where exactly a completion ends is found when it is decoded.

    Args:
        chat_template: of the model.
        stops: the text of each row; empty for none.
        prompt_length: tokens of the prompts, with padding.
    """

    def __init__(self, chat_template: ChatTemplate, stops: Sequence[str], prompt_length: int) -> None:
        self.chat_template, self.stops, self.prompt_length = chat_template, stops, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Whether each row has ended; `input_ids` (B, T), returns (B,)."""
        # A token is a character at least, but for parts of one: the last tokens hold the text if they complete it.
        tails = [row[self.prompt_length :][-2 * len(stop) :] for row, stop in zip(input_ids, self.stops, strict=True)]
        ended = [
            bool(stop) and stop in self.chat_template.tokenizer.decode(tail.tolist())
            for tail, stop in zip(tails, self.stops, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


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


def _processors(sampling: Sampling, seeds: Sequence[int], prompt_length: int) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if sampling.presence_penalty:
        processors.append(PresencePenalty(sampling.presence_penalty, prompt_length))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(SeededSampling(seeds))
    return processors


def _criteria(chat_template: ChatTemplate, stops: Sequence[str], prompt_length: int) -> StoppingCriteriaList:
    return StoppingCriteriaList([StopAtText(chat_template, stops, prompt_length)] if any(stops) else [])
