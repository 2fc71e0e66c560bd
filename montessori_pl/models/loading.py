"""Causal language models: finding, loading, adapting and saving them; the base stays as it is."""

import dataclasses
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from montessori_pl.bounds import Bounds, NonNegativeInt, NotEmpty, Text, Texts, checked
from montessori_pl.data.chat_template import ChatTemplate, LossOn
from montessori_pl.models.backbones import (
    ADAPTER_CONFIG,
    check_files,
    check_finite,
    check_vocabulary,
    check_weights,
    errors_in_a_sentence,
)
from montessori_pl.models.text import freeze_what_text_does_not_pass, modules_without_text
from montessori_pl.run_directory.atomic import directory_written_atomically
from montessori_pl.worlds.names import locate_backbone

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, device, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound="nn.Module")

ALL_LINEAR = "all-linear"
"""PEFT's word for all linear layers but the head."""
MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Types of models of which PEFT refuses to adapt some modules (`_check_lora_target_modules_mamba`)."""
BYPASSED_IN_MAMBA = ("conv1d", "dt_proj", "out_proj", "x_proj")
"""These modules, and more: kernels read their weights past them (`dt_proj` even without kernels), so that an adapter
would do nothing."""


@checked
@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (LoRA, arXiv 2106.09685) by PEFT."""

    r: Annotated[int, Bounds(ge=1, le=4096)] = 8
    """Rank of the update."""
    alpha: Annotated[float, Bounds(gt=0, le=10_000)] = 16
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Dropout in front of the adapter while training."""
    target_modules: Text | Texts = ALL_LINEAR
    """Which modules are adapted: PEFT's `all-linear`, a list of module names, or a regular expression."""
    layers: Annotated[list[NonNegativeInt], NotEmpty(distinct=True)] | None = None
    """Indices of the layers that are adapted; null adapts all of them."""

    def __post_init__(self) -> None:
        if self.layers is not None and isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            raise ValueError(
                f"layers {self.layers} cannot be chosen beside a regular expression for target_modules, found "
                f"{self.target_modules!r}; write the layers into it, or give {ALL_LINEAR} or a list of module names"
            )


BaseDtype = Literal["float32", "bfloat16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""How attention is computed (`attn_implementation` of Transformers)."""
ON_GPU_ONLY = ("flash_attention_2", "flash_attention_3")


@checked
@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded: a backbone, and what a stage has trained on top of it."""

    backbone: Text
    """Hub id, local directory, GGUF file, or a name of the embedded classroom such as `classroom/teacher`."""
    weights: Path | None = None
    """Directory of a LoRA adapter, or of a whole fine-tuned model; none for the backbone as it is."""
    chat_template: Text = "auto"
    """Chat layout: `auto`, the name of a shipped one or of one of several of the tokenizer's, or the path of a file."""
    base_dtype: BaseDtype = "float32"
    """BaseDtype of the frozen weights; adapters are in float32 whatever it is."""
    chat_template_kwargs: dict[str, Any] | None = None
    """What the chat template is told apart from the messages."""
    loss_on: LossOn = "all"
    """Of which answers of a conversation the loss is taken: of all, or of the last one alone."""
    trust_remote_code: bool = False
    """Whether code that lies beside the backbone (`auto_map`) is run."""
    attn_implementation: Attention | None = None
    """How attention is computed; null leaves it to Transformers, which takes `sdpa` where the model has it."""


def load_tokenizer(backbone: str, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The backbone's tokenizer, with a padding token.

    Raises:
        ValueError: there is no such tokenizer, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    location = locate_backbone(backbone)
    check_files(backbone, location)
    with errors_in_a_sentence(backbone, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {backbone!r} has no end-of-sequence token, so that no answer could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Nothing here is cut there: the model's positions count. Files have anything in this place, also 0 and texts.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def load_chat_template(source: ModelSource) -> ChatTemplate:
    """How this model writes conversations, and how long they may be.

    Raises:
        ValueError: there is no such model or tokenizer, no such layout, it cannot write a question and its answer,
            or the tokenizer does not fit the model.
    """
    tokenizer = load_tokenizer(source.backbone, source.trust_remote_code)
    config = load_config(source)
    context = num_positions(config)
    chat_template = ChatTemplate(tokenizer, source.chat_template, context, source.chat_template_kwargs, source.loss_on)
    written = [*chat_template.prompt_ids([{"role": "user", "content": "?"}]), chat_template.end_id]
    if context is not None and len(written) >= context:
        raise ValueError(
            f"the backbone {source.backbone!r} has {context} positions (max_position_embeddings), and a question of "
            f"one character takes {len(written)} tokens with the chat template and its end: no answer has room"
        )
    written += [tokenizer.eos_token_id, tokenizer.pad_token_id]
    check_vocabulary(source.backbone, tokenizer, getattr(config.get_text_config(), "vocab_size", None), written)
    return chat_template


def num_positions(config: "PreTrainedConfig") -> int | None:
    """How many tokens a model can read; none where its configuration sets no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def load_config(source: ModelSource) -> "PreTrainedConfig":
    """The backbone's configuration.

    Raises:
        ValueError: there is no such model.
    """
    from transformers import AutoConfig

    location = locate_backbone(source.backbone)
    with errors_in_a_sentence(source.backbone, "model"):
        return AutoConfig.from_pretrained(location, trust_remote_code=source.trust_remote_code)


def load_model(
    source: ModelSource, trainable_adapter: bool = False, weights: bool = True
) -> "PreTrainedModel | PeftModel":
    """A causal language model in evaluation mode, in float32 or on a frozen base in half precision.

    Float32 weights are the master weights of mixed-precision training; the trainer's precision casts while computing.
    PEFT keeps adapters in float32 on any base.

    Args:
        source: which model.
        trainable_adapter: whether the weights of a LoRA adapter are trained further.
        weights: whether they are read; otherwise only their files are looked at, and the model lies on the device
            `meta`, which takes no memory.

    Raises:
        ValueError: there is no such model, or weights are missing in it, of another shape, or no numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    location = base_location(source)
    with errors_in_a_sentence(source.backbone, "model"):
        loaded = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=getattr(torch, source.base_dtype),
            trust_remote_code=source.trust_remote_code,
            **({"attn_implementation": source.attn_implementation} if source.attn_implementation else {}),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report has them
            device_map=None if weights else "meta",
        )
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    check_weights(source.backbone, report)
    # Caching keys and values is for generation, which asks for it; training and probing must not.
    model.config.use_cache = False
    found: PreTrainedModel | PeftModel = model
    if source.weights is not None and holds_adapter(source.weights):
        found = _with_adapter(model, source, trainable_adapter, weights)
    if weights:
        check_finite(source.backbone if source.weights is None else f"{source.backbone} with {source.weights}", found)
    return found.eval()


def check_loadable(source: ModelSource) -> None:
    """Look at whether a model could be loaded to write with, by its files and packages alone.

    Raises:
        ValueError: it could not.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    quantization = getattr(load_config(source), "quantization_config", None)
    if quantization is None:
        load_model(source, weights=False)
        return
    with errors_in_a_sentence(source.backbone, "quantized model"):
        AutoHfQuantizer.from_config(quantization, pre_quantized=True).validate_environment(device_map=None)


def _with_adapter(model: "PreTrainedModel", source: ModelSource, trainable: bool, weights: bool) -> "PeftModel":
    """The model with the adapter that was trained on it.

    Raises:
        ValueError: there is no such adapter, or it leaves a module that it names without weights.
    """
    from peft import PeftModel

    with errors_in_a_sentence(source.backbone, f"adapter {source.weights}"), warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")  # they would be as good as no adapter
        return PeftModel.from_pretrained(
            model, str(source.weights), is_trainable=trainable, low_cpu_mem_usage=not weights
        )


def device_of(name: str) -> "device":
    """The device of this name, such as `cpu` or `cuda:1`; whether it is there is not looked at.

    Raises:
        ValueError: no device has such a name.
    """
    import torch

    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device names no device of PyTorch, found {name!r}; write cpu, cuda or cuda:1") from error


def best_device() -> "device":
    """The accelerator, where there is one."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def move_to(device: "str | device", model: M) -> M:
    """Move a model; the signature of `PreTrainedModel.to` itself has lost its `self` under a decorator."""
    return model.to(device)


def base_location(source: ModelSource) -> str:
    """Where the whole weights lie: those of the fine-tuned model, or those of the backbone under an adapter."""
    whole = source.weights is not None and not holds_adapter(source.weights)
    return str(source.weights) if whole else locate_backbone(source.backbone)


def holds_adapter(weights: Path) -> bool:
    """Whether a directory of trained weights holds a LoRA adapter rather than a whole model."""
    return (weights / ADAPTER_CONFIG).exists()


def attach_lora(model: "PreTrainedModel", lora: LoraSettings) -> "PeftModel":
    """Freeze the model and put a fresh adapter on it, which changes nothing until it is trained.

    Modules that text does not pass (`modules_without_text`) get none.

    Raises:
        ValueError: the settings do not fit the model.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's, a linear layer with its weight the other way round

    # PEFT takes layers only beside a list of names.
    by_layer = lora.layers is not None and lora.target_modules == ALL_LINEAR
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
        lora_dropout=lora.dropout,
        target_modules=_linear_modules(model) if by_layer else lora.target_modules,
        exclude_modules=_not_adapted(model, lora),
        layers_to_transform=lora.layers,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        adapted = get_peft_model(model, config)
        _check_all_adapted(lora, cast("list[str]", adapted.base_model.targeted_module_names))
    except ValueError as error:
        raise ValueError(f"lora does not fit {type(model).__name__}: {error}") from error
    return adapted


def _check_all_adapted(lora: LoraSettings, modules: Sequence[str]) -> None:
    """Refuse names and layers of which PEFT found some, and left out the others in silence.

    Raises:
        ValueError: there is no such module or layer.
    """
    names = [] if isinstance(lora.target_modules, str) else lora.target_modules
    unknown = [name for name in names if not any(f".{module}".endswith(f".{name}") for module in modules)]
    unknown += [f"layer {one}" for one in lora.layers or [] if not any(f".{one}." in module for module in modules)]
    if unknown:
        adapted = sorted({module.rpartition(".")[2] for module in modules})
        raise ValueError(
            f"it has no module to adapt for {', '.join(unknown)}; the adapter would be on {len(modules)} others "
            f"({', '.join(adapted)}; the last is {modules[-1]})"
        )


def make_trainable(model: "PreTrainedModel | PeftModel", lora: LoraSettings | None) -> "PreTrainedModel | PeftModel":
    """The model with those parameters trainable that a training changes: an adapter's, or all that text passes.

    Args:
        model: an adapter that it has already stays the one that is trained.
        lora: the adapter; none trains all weights.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return model
    if lora is not None:
        return attach_lora(model, lora)
    freeze_what_text_does_not_pass(model)
    return model


def _linear_modules(model: "PreTrainedModel") -> list[str]:
    """Last parts of the names of all linear layers but the head."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [
        name for name, module in model.named_modules() if isinstance(module, Linear | Conv1D) and module is not head
    ]
    return sorted({name.rpartition(".")[2] for name in linear})


def _not_adapted(model: "PreTrainedModel", lora: LoraSettings) -> str | None:
    """A regular expression for the names of modules that get no adapter; none where all of them may."""
    towers = [rf"{re.escape(name)}(\..*)?" for name in modules_without_text(model)]
    # Who names a module of Mamba by hand is told by PEFT that it cannot be adapted.
    is_mamba = lora.target_modules == ALL_LINEAR and model.config.model_type in MAMBA_TYPES
    bypassed = [rf"(.*\.)?{name}" for name in BYPASSED_IN_MAMBA] if is_mamba else []
    return "|".join([*towers, *bypassed]) or None


def save_weights(
    model: "PreTrainedModel | PeftModel", directory: Path, weights: "dict[str, Tensor] | None" = None
) -> list[Path]:
    """Save the trained adapter, or the whole model where there is none; returns the files.

    Args:
        model: where the weights are, unless the model holds only a part of them.
        directory: is written as a whole.
        weights: the whole of them, by name.
    """
    from peft import LoraConfig, PeftModel

    with directory_written_atomically(directory) as draft:
        if isinstance(model, PeftModel):
            config = model.peft_config["default"]
            assert isinstance(config, LoraConfig)
            if isinstance(config.target_modules, set):  # PEFT writes a set in an order that changes from run to run
                config.target_modules = sorted(config.target_modules)
            model.save_pretrained(str(draft), selected_adapters=["default"], state_dict=weights)
        else:
            model.save_pretrained(str(draft), state_dict=weights)
        (draft / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    return sorted(path for path in directory.rglob("*") if path.is_file())
