"""One backward pass for the gradients of a whole batch, against one backward pass for each example."""

from typing import Any

import pytest
import torch
from influence_models import ARCHITECTURES, assert_close, collate, make_examples, make_model, on_layers
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from montessori_pl.influence import ResponseLosses, one_by_one, per_example_gradients, trainable_parameters
from montessori_pl.influence.per_example import LinearGradients

EXAMPLES = make_examples(6, seed=1)
LORA: dict[str, dict[str, Any]] = {
    "all layers": {},
    "last layer": on_layers("1"),
    "some modules": {"target_modules": "(.*layers.0.*(q_proj|query_key_value))|(.*layers.1.*(down_proj|4h_to_h))"},
    "with biases": {"bias": "all"},
    "with adapter biases": {"lora_bias": True},
}


def both(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The fast way and the slow truth."""
    loss, params = ResponseLosses(model), trainable_parameters(model)
    fast = per_example_gradients(loss, params)
    assert isinstance(fast, LinearGradients)
    batch = collate(EXAMPLES)
    return fast(params, batch), one_by_one(loss)(params, batch)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapter", LORA)
def test_one_pass_equals_one_by_one(architecture: str, adapter: str) -> None:
    settings = LORA[adapter]
    if adapter == "with biases" and architecture == "gpt_neox":
        settings = {"bias": "lora_only"}  # `all` trains the norms' biases too
    model = make_model(architecture, "lora", torch.float64, lora=settings)
    found, expected = both(model)

    assert_close(found, expected, 1e-12)
    assert all(len(gradient) == len(EXAMPLES) for gradient in found.values())
    assert all(gradient.abs().max() > 1e-6 for gradient in found.values())
    if adapter == "with biases" and architecture != "llama":
        assert any(name.endswith("bias") for name in found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_layers_and_the_head(architecture: str) -> None:
    """Full training of the linear layers; the head is called at response positions alone."""
    model = make_model(architecture, "all", torch.float64).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.requires_grad_(True)
    found, expected = both(model)

    assert_close(found, expected, 1e-12)
    assert any("lm_head" in name or "embed_out" in name for name in found)


class Twice(nn.Module):
    """A language model that runs one and the same layer several times; with `mixes`, without telling examples apart."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mixes = nn.Embedding(50, 8).requires_grad_(False), mixes
        self.again, self.head, self.idle = nn.Linear(8, 8), nn.Linear(8, 50), nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutput:
        hidden = self.embed(input_ids)
        shape = hidden.shape
        for _ in range(2):
            hidden = hidden.flatten(0, 1) if self.mixes else hidden
            hidden = torch.tanh(self.again(hidden)).view(shape)
        self.idle(hidden)
        return CausalLMOutput(logits=self.head(hidden.cumsum(dim=1)))


@pytest.mark.parametrize("mixes", [False, True])
def test_a_layer_that_is_called_twice(mixes: bool) -> None:
    """Contributions add up, and the result of one that is thrown away contributes nothing. Flattened examples cannot be
    told apart, as where tokens are routed to experts: they are differentiated one by one."""
    found, expected = both(Twice(mixes).double())

    assert_close(found, expected, 1e-12)
    assert found["again.weight"].abs().max() > 1e-3
    assert not found["idle.weight"].any()


def test_weights_that_two_layers_share() -> None:
    """A hook on the first of them would miss what the second contributes."""
    model = Twice().double()
    model.idle.weight = model.again.weight
    model.forward = lambda input_ids, use_cache=False: CausalLMOutput(  # type: ignore[method-assign]
        logits=model.head(model.idle(torch.tanh(model.again(model.embed(input_ids)))))
    )
    loss, params = ResponseLosses(model), trainable_parameters(model)
    batch = collate(EXAMPLES)
    found = per_example_gradients(loss, params)(params, batch)

    assert_close(found, one_by_one(loss)(params, batch), 1e-12)
    for row, one in enumerate(EXAMPLES):
        model.zero_grad()
        loss(dict(model.named_parameters()), collate([one])).sum().backward()
        torch.testing.assert_close(found["again.weight"][row], model.again.weight.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        make_model("llama", "all", torch.float64),
        make_model("llama", "lora", torch.float64, lora={"modules_to_save": ["embed_tokens"]}),
        make_model("llama", "lora", torch.float64, lora={"modules_to_save": ["norm"]}),
        make_model("llama", "lora", torch.float64, lora={"use_dora": True}),
    ],
    ids=["everything", "embedding", "norm", "dora"],
)
def test_other_trained_parameters_are_differentiated_one_by_one(model: nn.Module) -> None:
    loss, params = ResponseLosses(model), trainable_parameters(model)
    gradients = per_example_gradients(loss, params)
    assert not isinstance(gradients, LinearGradients)
    found = gradients(params, collate(EXAMPLES))
    for row, one in enumerate(EXAMPLES):
        model.zero_grad()
        loss(dict(model.named_parameters()), collate([one])).sum().backward()
        expected = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
        assert_close({name: gradient[row] for name, gradient in found.items()}, expected, 1e-12)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    """No hooks, no gradients, no graph; neither after an exception."""
    model = make_model("llama", "lora", torch.float64)
    loss, params = ResponseLosses(model), trainable_parameters(model)
    gradients = per_example_gradients(loss, params)
    batch = dict(collate(EXAMPLES))
    if fails:
        batch["labels"] = torch.full_like(batch["labels"], -100)
        with pytest.raises(ValueError, match="no response token"):
            gradients(params, batch)
    else:
        assert not any(gradient.requires_grad for gradient in gradients(params, batch).values())

    assert hooks(model) == 0
    assert all(param.grad is None for param in model.parameters())
    assert not any(param.requires_grad for param in params.values())


def test_it_works_without_gradients_and_under_autocast() -> None:
    model = make_model("llama", "lora", torch.float32)
    loss, params = ResponseLosses(model), trainable_parameters(model)
    gradients, batch = per_example_gradients(loss, params), collate(EXAMPLES)
    expected = gradients(params, batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = gradients(params, batch)

    assert all(torch.equal(found[name], expected[name]) for name in expected)
