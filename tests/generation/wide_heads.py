"""The classroom's models with wider attention heads, which answer the same: vLLM's CPU kernels know none below 32."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HEAD_DIM = 32
"""The narrowest heads that vLLM's CPU build runs."""


def widen_model(source: Path, target: Path) -> str:
    """Write a Llama whose heads are padded with zeros; its logits are those of the source.

    Rotary embeddings turn dimension i together with i + head_dim / 2, so that the two halves of a head are padded each.
    Their frequencies, which follow from the width, are held by the factors of LongRoPE; queries make up for the scale.
    """
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    narrow, theta = config["head_dim"], config["rope_parameters"]["rope_theta"]
    # A factor divides the frequency theta^(-2i / 32) of the wide head, of which theta^(-2i / narrow) is to remain.
    factors = [theta ** (2 * i / narrow - 2 * i / HEAD_DIM) for i in range(narrow // 2)]
    factors += [1.0] * (HEAD_DIM // 2 - len(factors))
    config |= {"head_dim": HEAD_DIM, "original_max_position_embeddings": config["max_position_embeddings"]}
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }
    (target / "config.json").write_text(json.dumps(config))
    _widen_tensors(source / "model.safetensors", target / "model.safetensors", narrow)
    return str(target)


def widen_adapter(source: Path, target: Path, narrow: int) -> Path:
    """Write the LoRA adapter of a model with heads of `narrow` for its widened copy."""
    shutil.copytree(source, target)
    _widen_tensors(source / "adapter_model.safetensors", target / "adapter_model.safetensors", narrow)
    return target


def _widen_tensors(source: Path, target: Path, narrow: int) -> None:
    tensors = load_file(source)
    for name, tensor in tensors.items():
        # What comes in from the hidden states keeps its width: of an adapter's two matrices, one is left as it is.
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")) and "lora_A" not in name:
            scale = math.sqrt(HEAD_DIM / narrow) if "q_proj" in name else 1.0
            tensors[name] = scale * _padded(tensor, narrow)
        elif "o_proj" in name and "lora_B" not in name:
            tensors[name] = _padded(tensor.T, narrow).T.contiguous()
    save_file(tensors, target, metadata={"format": "pt"})


def _padded(weight: Tensor, narrow: int) -> Tensor:
    """Zeros behind each half of each head; `weight` (heads * narrow, n) -> (heads * HEAD_DIM, n)."""
    halves = weight.view(-1, 2, narrow // 2, weight.shape[1])
    return torch.nn.functional.pad(halves, (0, 0, 0, (HEAD_DIM - narrow) // 2)).reshape(-1, weight.shape[1])
