"""Llamas whose attention heads are padded with zeros to a width that vLLM's CPU kernels know, with the same logits.

Rotary embeddings turn dimension i of a head together with i + head_dim / 2, so that the two halves are padded each.
Their frequencies, which follow from the width, are held by the factors of LongRoPE; queries make up for the scale.
"""

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from montessori_pl.models.loading import ModelSource, base_location, holds_adapter, load_config, load_model

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedConfig

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The widths of attention heads that vLLM's CPU kernels know."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What comes in from the hidden states, and goes out to them, keeps its width: of an adapter's two matrices, one stays.
_HEADS_IN_ROWS = re.compile(r"\.[qkv]_proj\.(lora_B\.)?weight$")
_HEADS_IN_COLUMNS = re.compile(r"\.o_proj\.(lora_A\.)?weight$")
_PLAIN_LORA = re.compile(r"\.[qkvo]_proj\.lora_[AB]\.weight$")


@dataclasses.dataclass(frozen=True)
class Widening:
    """From which width the heads of a Llama are padded to which."""

    narrow: int
    """Dimensions of a head of the model."""
    wide: int
    """Dimensions of a head of its copy."""

    def model(self, source: ModelSource, directory: Path) -> None:
        """Write the model, without the adapter it may have."""
        from transformers import LlamaConfig

        model = load_model(ModelSource(base_location(source)))  # in float32: queries are scaled before they are rounded
        config = model.config
        assert isinstance(config, LlamaConfig)  # `needed_padding` pads nothing else
        config.head_dim, config.rope_parameters = self.wide, self._rotary(config)
        model.save_pretrained(str(directory), state_dict=self._padded(model.state_dict()))

    def adapter(self, weights: Path, directory: Path) -> None:
        """Write the LoRA adapter for the model's copy."""
        (directory / ADAPTER_CONFIG).write_bytes((weights / ADAPTER_CONFIG).read_bytes())
        save_file(self._padded(load_file(weights / ADAPTER_WEIGHTS)), directory / ADAPTER_WEIGHTS)

    def _rotary(self, config: "LlamaConfig") -> dict[str, object]:
        """Frequencies of a narrow head for the first dimensions of a wide one."""
        assert config.rope_parameters is not None
        theta = config.rope_parameters["rope_theta"]
        assert theta is not None
        # A factor divides the frequency theta^(-2i / wide), of which theta^(-2i / narrow) is to remain.
        factors = [theta ** (2 * i / self.narrow - 2 * i / self.wide) for i in range(self.narrow // 2)]
        factors += [1.0] * (self.wide // 2 - len(factors))
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "short_factor": factors,
            "long_factor": factors,
            "factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
        }

    def _padded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._padded_tensor(name, tensor) for name, tensor in tensors.items()}

    def _padded_tensor(self, name: str, tensor: Tensor) -> Tensor:
        if _HEADS_IN_COLUMNS.search(name):
            return self._padded_rows(tensor.T).T.contiguous()
        if not _HEADS_IN_ROWS.search(name):
            return tensor
        padded = self._padded_rows(tensor)
        return math.sqrt(self.wide / self.narrow) * padded if ".q_proj." in name else padded

    def _padded_rows(self, weight: Tensor) -> Tensor:
        """Zeros behind each half of each head; `weight` (heads * narrow, n) -> (heads * wide, n)."""
        halves = weight.reshape(-1, 2, self.narrow // 2, weight.shape[1])
        return torch.nn.functional.pad(halves, (0, 0, 0, (self.wide - self.narrow) // 2)).reshape(-1, weight.shape[1])


def needed_padding(source: ModelSource) -> Widening | None:
    """How a model must be padded for vLLM's CPU kernels; None where they have heads like its own.

    Raises:
        ValueError: they have not, and it is not certain that the padded model would be the same.
    """
    config = load_config(source).get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    narrow = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if narrow is None or narrow in CPU_HEAD_DIMS:
        return None
    wide = next((width for width in CPU_HEAD_DIMS if width > narrow), None)
    reason = "none is wider" if wide is None else _obstacle(source, config)
    if wide is None or reason is not None:
        raise ValueError(
            f"on a CPU, vLLM has attention heads of {', '.join(map(str, CPU_HEAD_DIMS))} dimensions; those of "
            f"{source.backbone!r} have {narrow} and cannot be padded: {reason}; take TransformersBackend, or a GPU"
        )
    return Widening(narrow, wide)


class PaddedCopies:
    """Padded copies of models and adapters in a temporary directory; each is written once."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._copies: dict[str, Path] = {}

    def runnable(self, source: ModelSource) -> ModelSource:
        """The model as vLLM's CPU kernels can run it: itself, or its copy.

        Raises:
            ValueError: it is neither one for the kernels nor one that can be padded.
        """
        widening = needed_padding(source)
        if widening is None:
            return source
        backbone = self._copy(base_location(source), lambda directory: widening.model(source, directory))
        weights = source.weights
        if weights is None or not holds_adapter(weights):
            return dataclasses.replace(source, backbone=str(backbone), weights=None)
        adapter = self._copy(str(weights.resolve()), lambda directory: widening.adapter(weights, directory))
        return dataclasses.replace(source, backbone=str(backbone), weights=adapter)

    def close(self) -> None:
        """Delete the copies; others may follow."""
        if self._directory is not None:
            self._directory.cleanup()
        self._directory, self._copies = None, {}

    def _copy(self, original: str, write: Callable[[Path], None]) -> Path:
        if original not in self._copies:
            self._directory = self._directory or tempfile.TemporaryDirectory(prefix="wide-heads-")
            directory = Path(tempfile.mkdtemp(dir=self._directory.name))
            write(directory)
            self._copies[original] = directory
        return self._copies[original]


def _obstacle(source: ModelSource, config: "PreTrainedConfig") -> str | None:
    """Why it is not certain that a padded model would be the same."""
    if config.model_type != "llama":
        return f"it is no llama but a {config.model_type}"
    if config.rope_parameters.keys() != {"rope_type", "rope_theta"} or config.rope_parameters["rope_type"] != "default":
        return f"its rotary embedding is not the default one, but {config.rope_parameters}"
    if config.attention_bias:
        return "its attention has biases"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    if source.weights is not None and holds_adapter(source.weights):
        return _obstacle_in_adapter(source.weights)
    return None


def _obstacle_in_adapter(weights: Path) -> str | None:
    """Why it is not certain that a padded adapter would be the same."""
    path = weights / ADAPTER_WEIGHTS
    if not path.exists():
        return f"its adapter has no {path}"
    with safe_open(path, framework="pt") as tensors:
        odd = [name for name in tensors.keys() if ".self_attn." in name and not _PLAIN_LORA.search(name)]  # noqa: SIM118
    return f"its adapter in {weights} is no plain LoRA, but holds {odd[0]}" if odd else None
