"""Tiny random models of every architecture in docs/how_to/supported_models.md, with the tiny tokenizer's ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import CHARACTERS, SPECIAL, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

VOCABULARY = len(SPECIAL) + len(CHARACTERS)
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {**TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
USUAL: dict[str, Any] = {
    **SIZES,
    "intermediate_size": 24,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GPT2_SIZES: dict[str, Any] = {**TOKENS, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}


def _gemma3() -> Gemma3Config:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Gemma3Config(
        text_config=Gemma3TextConfig(**USUAL, head_dim=8, sliding_window=8).to_dict(),
        vision_config=vision.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY - 1,
        boi_token_index=VOCABULARY - 2,
        eoi_token_index=VOCABULARY - 3,
    )


EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Llama": lambda: LlamaConfig(**USUAL),
    "Mistral": lambda: MistralConfig(**USUAL),
    "Qwen2": lambda: Qwen2Config(**USUAL),
    "Qwen3": lambda: Qwen3Config(**USUAL, head_dim=8),
    "Qwen3-MoE": lambda: Qwen3MoeConfig(**USUAL, **EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=8),
    "Mixtral": lambda: MixtralConfig(**USUAL, **EXPERTS, num_local_experts=4),
    "Gemma 2": lambda: Gemma2Config(**USUAL, head_dim=8, sliding_window=8),
    "Gemma 3 (text)": lambda: Gemma3TextConfig(**USUAL, head_dim=8, sliding_window=8),
    "Gemma 3 (multimodal)": _gemma3,
    "GPT-2": lambda: GPT2Config(**GPT2_SIZES, n_embd=16, n_positions=64),
    "GPT-NeoX": lambda: GPTNeoXConfig(**SIZES, intermediate_size=24, max_position_embeddings=64, initializer_range=0.3),
    "Phi-3": lambda: Phi3Config(**USUAL),
    "OLMo-2": lambda: Olmo2Config(**USUAL),
    "OPT": lambda: OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64, init_std=0.3),
    "Mamba": lambda: MambaConfig(**TOKENS, hidden_size=16, state_size=4, num_hidden_layers=2, initializer_range=0.3),
    "Bloom": lambda: BloomConfig(**GPT2_SIZES, hidden_size=16),
}


def tiny_architecture(name: str) -> PreTrainedModel:
    """A model in evaluation mode, without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    model.config.use_cache = False
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def save_tiny_architecture(name: str, directory: Path) -> str:
    """Save such a model with the tiny tokenizer."""
    tiny_architecture(name).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)
