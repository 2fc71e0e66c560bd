"""How large a model is, by its configuration alone: parameters, those that are trained, keys and values of a token."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch

from montessori_pl.influence.memory import LayerSizes
from montessori_pl.models.loading import LoraSettings, ModelSource, load_config, make_trainable

FLOAT32 = 4
"""Bytes."""


@dataclass(frozen=True)
class ModelSize:
    """Counts of one model."""

    backbone: str
    """As the recipe calls it."""
    parameters: int
    """All of the base."""
    multiplied: int
    """Those that a token is multiplied with: not what is only looked up, and of experts those that it is sent to."""
    trained: int
    """Those of the adapter, or all that are trained."""
    itemsize: int
    """Bytes of a number of the base."""
    cache: int
    """Numbers that are kept of each token while text is generated: keys and values."""
    vocabulary: int
    """Logits of a position."""
    layers: LayerSizes | None
    """What layers keep for a backward pass; none where the configuration does not tell."""
    adapter: bool
    """Whether an adapter is trained, and the base is frozen."""

    @property
    def weights(self) -> int:
        """Bytes of the base, and of the adapter on it."""
        return self.parameters * self.itemsize + (self.trained * FLOAT32 if self.adapter else 0)


def model_size(source: ModelSource, lora: LoraSettings | None) -> ModelSize:
    """The size of a model; no weights are read, nor need they be there.

    Raises:
        ValueError: there is no such model, or the adapter does not fit it.
    """
    config = load_config(source)
    key = repr((config.to_json_string(), lora))
    if key not in _KNOWN:
        _KNOWN[key] = _count(source, config, lora)
    itemsize = 2 if source.base_dtype == "bfloat16" else FLOAT32
    return dataclasses.replace(_KNOWN[key], backbone=source.backbone, itemsize=itemsize)


def named(parameters: int) -> str:
    """A number of parameters, in millions or billions."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


_KNOWN: dict[str, ModelSize] = {}
"""What was counted in this process, by configuration and adapter; to make a model without weights takes seconds."""


def _count(source: ModelSource, config: Any, lora: LoraSettings | None) -> ModelSize:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    except (ImportError, AttributeError, TypeError, KeyError, RuntimeError) as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise ValueError(f"no model can be made of the configuration of {source.backbone!r}: {first_line}") from error
    parameters = sum(one.numel() for one in model.parameters())
    multiplied, text = _multiplied(model, config), config.get_text_config()
    with torch.device("meta"):
        network = make_trainable(model, lora)
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "hidden_size", 0) or 0
    kept_heads = getattr(text, "num_key_value_heads", None) or heads
    of_head = getattr(text, "head_dim", None) or width // heads
    return ModelSize(
        backbone=source.backbone,
        parameters=parameters,
        multiplied=multiplied,
        trained=sum(one.numel() for one in network.parameters() if one.requires_grad),
        itemsize=FLOAT32,
        cache=2 * (getattr(text, "num_hidden_layers", 0) or 0) * kept_heads * of_head,
        vocabulary=getattr(text, "vocab_size", 0) or 0,
        layers=LayerSizes.of(config),
        adapter=lora is not None,
    )


def _multiplied(model: Any, config: Any) -> int:
    """Of a tied embedding one copy counts: that of the head."""
    text = config.get_text_config()
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    used = getattr(text, "num_experts_per_tok", None) or experts
    count: float = 0
    for name, one in model.named_parameters():
        count += one.numel() * (used / experts if re.search(r"\bexperts\b", name) else 1)
    head, looked_up = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not looked_up.weight:
        count -= looked_up.weight.numel()
    return round(count)
