"""The model as a function of its parameters, against the same model called the ordinary way."""

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import grad
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from montessori_pl.influence import Batch, ReferenceSet, ResponseLosses, functional, trainable_parameters
from montessori_pl.losses import output_head

VOCABULARY = 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
RESPONSE_STARTS = [3, 1, 5, 2]
LENGTHS = [9, 4, 12, 3]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(**options: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options)).eval()


def qwen2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1)).eval()


def gpt_neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).eval()


def with_lora(model: PreTrainedModel) -> nn.Module:
    """Adapters on all linear layers; a random B, because a zero one would leave A without gradient."""
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    for name, param in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(param, std=0.1)
    return adapted.eval()


def padded_batch(num_padding: int = 0) -> Batch:
    """Four examples of mixed lengths, padded on the right, `num_padding` further than needed."""
    generator = torch.Generator().manual_seed(1)
    width = max(LENGTHS) + num_padding
    input_ids, labels = torch.zeros(4, width, dtype=torch.long), torch.full((4, width), -100)
    attention_mask = torch.zeros_like(input_ids)
    for row, (start, length) in enumerate(zip(RESPONSE_STARTS, LENGTHS, strict=True)):
        input_ids[row, :length] = torch.randint(VOCABULARY, (length,), generator=generator)
        labels[row, start:length] = input_ids[row, start:length]
        attention_mask[row, :length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def naive_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Each example alone, without padding, token by token."""
    losses = []
    for ids, start, length in zip(batch["input_ids"], RESPONSE_STARTS, LENGTHS, strict=True):
        log_probabilities = model(input_ids=ids[None, :length]).logits[0].log_softmax(dim=-1)
        nats = [-log_probabilities[place - 1, ids[place]] for place in range(start, length)]
        losses.append(torch.stack(nats).mean())
    return torch.stack(losses)


@pytest.fixture(params=[None, 3 * VOCABULARY], ids=["all logits", "some at a time"])
def logits_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are, or those of three tokens."""
    if request.param is not None:
        for module in (functional, output_head):
            monkeypatch.setattr(module, "LOGITS_AT_ONCE", request.param)


@pytest.mark.usefixtures("logits_at_once")
@pytest.mark.parametrize("build", [llama, qwen2, gpt_neox])
@pytest.mark.parametrize("lora", [False, True])
def test_losses_and_gradients_equal_those_of_unpadded_examples(build: type, lora: bool) -> None:
    model = with_lora(build()) if lora else build()
    batch, params, losses = padded_batch(), trainable_parameters(model), ResponseLosses(model)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])  # so that no two examples can be mistaken for each other

    naive = naive_losses(model, batch)
    (naive * weights).sum().backward()
    gradients = grad(lambda moving: (losses(moving, batch) * weights).sum())(params)

    # The default attention, and a mask that cannot be dropped because it covers padding.
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(losses(params, batch), naive, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == params.keys()
    for name, param in model.named_parameters():
        if param.requires_grad:
            torch.testing.assert_close(gradients[name], param.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("logits_at_once")
def test_the_parameters_that_are_passed_are_the_ones_that_count() -> None:
    model = with_lora(llama())
    batch, losses = padded_batch(), ResponseLosses(model)
    moved = {name: param + 0.1 for name, param in trainable_parameters(model).items()}
    before = losses(trainable_parameters(model), batch)
    at_moved = losses(moved, batch)
    model.load_state_dict(moved, strict=False)

    assert not torch.allclose(at_moved, before)
    torch.testing.assert_close(at_moved, losses({}, batch), rtol=0, atol=0)


@pytest.mark.usefixtures("logits_at_once")
def test_a_tied_embedding_moves_at_both_ends() -> None:
    model = llama(tie_word_embeddings=True)
    batch, params, losses = padded_batch(), trainable_parameters(model), ResponseLosses(model)
    naive_losses(model, batch).sum().backward()
    gradients = grad(lambda moving: losses(moving, batch).sum())(params)

    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(gradients["model.embed_tokens.weight"], embedding.grad, rtol=1e-4, atol=1e-5)


def test_more_padding_changes_nothing() -> None:
    model = llama()
    params, losses = trainable_parameters(model), ResponseLosses(model)

    torch.testing.assert_close(losses(params, padded_batch(7)), losses(params, padded_batch()), rtol=1e-6, atol=1e-6)


def test_padding_elsewhere_than_on_the_right_is_refused() -> None:
    """Padding on the right is hidden by causality alone; a mask that covers anything else would be ignored."""
    model = llama()
    params, losses = trainable_parameters(model), ResponseLosses(model)
    batch = padded_batch()
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][2, 0] += 1
    mask = batch["attention_mask"].clone()
    mask[2, 0] = 0

    assert not torch.allclose(losses(params, other), losses(params, batch))
    for refused in ({**batch, "attention_mask": mask}, {**batch, "attention_mask": batch["attention_mask"].flip(1)}):
        with pytest.raises(ValueError, match="must be padded on the right"):
            losses(params, refused)
        with pytest.raises(ValueError, match="must be padded on the right"):
            ReferenceSet(losses, [refused])


@pytest.mark.usefixtures("logits_at_once")
def test_gradients_are_the_same_in_inference_mode() -> None:
    model = with_lora(llama())
    batch, losses = padded_batch(), ResponseLosses(model)
    expected = grad(lambda moving: losses(moving, batch).sum())(trainable_parameters(model))
    with torch.inference_mode():
        found = grad(lambda moving: losses(moving, batch).sum())(trainable_parameters(model))

    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("weights", "losses"), [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]
)
def test_losses_are_in_single_precision_or_better(weights: torch.dtype, losses: torch.dtype) -> None:
    model = llama().to(weights)

    assert ResponseLosses(model)(trainable_parameters(model), padded_batch()).dtype == losses


def test_trainable_parameters_are_the_adapters_alone() -> None:
    params = trainable_parameters(with_lora(llama()))

    assert len(params) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    assert all("lora_" in name and not param.requires_grad for name, param in params.items())


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM has no trainable parameters"):
        trainable_parameters(llama().requires_grad_(False))


def test_an_unknown_parameter_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no parameters named \['lm_haed.weight'\]"):
        ResponseLosses(llama())({"lm_haed.weight": torch.zeros(1)}, padded_batch())


def test_an_example_without_response_tokens_is_refused() -> None:
    """A label at the first token does not count: nothing comes before it that could predict it."""
    batch = dict(padded_batch())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    batch["labels"][:, 0] = 1
    batch["labels"][2, 4] = 1

    with pytest.raises(ValueError, match="3 of 4 examples have no response token"):
        ResponseLosses(llama())({}, batch)
