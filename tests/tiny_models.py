"""Models for tests: a character tokenizer and a Llama of two layers, saved as a checkpoint that can be loaded."""

import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from montessori_pl.models.loading import LoraSettings, ModelSource, attach_lora, load_model, save_weights

SPECIAL = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}<end>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHARACTERS = string.ascii_lowercase + " .?"
LLAMA3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
"""Sizes of Llama 3 8B."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each lower-case letter, blank, period and question mark; `<end>` ends a response."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return with_turns(tokenizer)


def with_turns(tokenizer: Tokenizer, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """As a chat model's, with the special tokens of `TEMPLATE`."""
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=template,
    )


def save_tiny_model(directory: Path, seed: int = 0, **changes: Any) -> str:
    """Save a fresh model with its tokenizer; its weights are large enough to have opinions."""
    sizes: Mapping[str, Any] = {
        "vocab_size": len(SPECIAL) + len(CHARACTERS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def save_configuration(directory: Path, sizes: Mapping[str, int]) -> str:
    """Save a Llama of these sizes without weights, whose tokenizer has a token for each word."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    LlamaConfig(**sizes, eos_token_id=2, pad_token_id=0, bos_token_id=None).save_pretrained(directory)
    with_turns(tokenizer).save_pretrained(directory)
    return str(directory)


def save_tiny_reward_model(directory: Path, num_labels: int = 1, pad_token_id: int | None = 0) -> str:
    """Save a fresh reward model of one layer and 40 positions, which reads what the tiny model reads."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=pad_token_id,
        num_labels=num_labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForSequenceClassification(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def random_adapter(source: ModelSource, lora: LoraSettings, directory: Path) -> ModelSource:
    """The model with an adapter whose weights are large enough to have opinions."""
    model = attach_lora(load_model(source), lora)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    save_weights(model, directory)
    return dataclasses.replace(source, weights=directory)
