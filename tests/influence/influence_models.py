"""Models and examples that the tests of influence share: small, in float64 where truth is wanted."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from montessori_pl.influence import AdamMoments, AdamW, Batch, Params, ReferenceSet, ResponseLosses

VOCABULARY = 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 1}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
}
LONGEST = 16


@dataclass(frozen=True)
class Tokens:
    """An example before padding."""

    ids: list[int]
    num_prompt: int


def make_examples(num_examples: int, seed: int) -> list[Tokens]:
    """Examples of mixed lengths, of few tokens, so that a step on one has a clear effect on the others."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(num_examples):
        length = 5 + (5 * index) % 9
        ids = torch.randint(8, (length,), generator=generator).tolist()
        examples.append(Tokens(ids, num_prompt=1 + index % 4))
    return examples


def collate(examples: Sequence[Tokens], width: int | None = None) -> Batch:
    """Pad on the right, to the longest example or to `width`."""
    width = width or max(len(example.ids) for example in examples)
    shape = (len(examples), width)
    input_ids, attention_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.ids)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, example.num_prompt : len(ids)] = ids[example.num_prompt :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def make_model(architecture: str, trained: str, dtype: torch.dtype, lora: Any = None, **sizes: Any) -> nn.Module:
    """A model in evaluation mode; `trained` is `all` or `lora`, and `lora` changes the adapter's settings."""
    torch.manual_seed(0)
    kind, config, changes = ARCHITECTURES[architecture]
    model: nn.Module = kind(config(**{**SIZES, **changes, **sizes}))
    if trained == "lora":
        settings = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", **(lora or {})}
        model = get_peft_model(model, LoraConfig(**settings))
        for name, param in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(param, std=0.1)
    return (with_true_norms(model) if dtype == torch.float64 else model).to(dtype).eval()


def on_layers(layers: str) -> dict[str, Any]:
    """Settings of an adapter on the linear layers of these blocks alone."""
    return {"target_modules": rf".*layers\.[{layers}]\..*(_proj|query_key_value|dense\w*|fc\d)"}


def with_true_norms(model: nn.Module) -> nn.Module:
    """The same model with norms that stay in float64; Transformers' norms compute in float32 whatever they are in."""
    for name, module in list(model.named_modules()):
        if "RMSNorm" in type(module).__name__ and not isinstance(module, nn.RMSNorm):
            norm = nn.RMSNorm(module.weight.shape, module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def double(model: nn.Module) -> nn.Module:
    """A copy of a model in true float64, with exactly the same weights."""
    return with_true_norms(copy.deepcopy(model)).double()


def warm_moments(params: Params, scale: float = 0.05) -> AdamMoments:
    """Moments as after some training, different for each parameter."""
    generator = torch.Generator().manual_seed(7)
    exp_avg = {n: scale * torch.randn(p.shape, generator=generator).to(p) for n, p in params.items()}
    return AdamMoments(20, exp_avg, {n: (m**2 + scale**2) / 10 for n, m in exp_avg.items()})


def warm_adamw(params: Params, lr: float) -> AdamW:
    return AdamW(lr=lr, weight_decay=0.1, moments=warm_moments(params))


def reference_set(model: nn.Module, examples: Sequence[Tokens], **settings: Any) -> ReferenceSet:
    return ReferenceSet(ResponseLosses(model), [collate(examples)], **settings)


def slow_losses(model: nn.Module, examples: Sequence[Tokens]) -> Tensor:
    """Mean loss of each example, alone, without padding, token by token."""
    losses = []
    for example in examples:
        log_probabilities = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(dim=-1)
        nats = [
            -log_probabilities[place - 1, example.ids[place]] for place in range(example.num_prompt, len(example.ids))
        ]
        losses.append(torch.stack(nats).mean())
    return torch.stack(losses)


def assert_close(found: Params, expected: Params, relative: float) -> None:
    """The same names, and values within `relative` of the largest of their tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-3)
        torch.testing.assert_close(found[name], value, rtol=0, atol=relative * scale, msg=lambda m, n=name: f"{n}: {m}")
