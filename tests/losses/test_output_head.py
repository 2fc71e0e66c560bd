"""Log-probabilities from hidden states at labelled positions, beside those from all logits of the same model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import CONFIGS, VOCABULARY, tiny_architecture
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, PreTrainedModel

from montessori_pl.losses import OutputHead, output_head, token_log_probabilities
from montessori_pl.models.loading import LoraSettings, make_trainable

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # PEFT, of experts
SMALL: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 24, "num_key_value_heads": 1, "initializer_range": 0.3, "pad_token_id": 0},
}


@pytest.fixture(autouse=True)
def few_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three positions at a time, so that there are several chunks and a rest."""
    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", 3 * VOCABULARY)


def batch() -> dict[str, Tensor]:
    """Two examples of different lengths, with two turns of the first labelled."""
    ids = torch.randint(3, VOCABULARY - 2, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = torch.full_like(ids, -100)
    labels[0, 2:4], labels[0, 6:9], labels[1, 3:6] = ids[0, 2:4], ids[0, 6:9], ids[1, 3:6]
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def both_ways(model: nn.Module) -> tuple[OutputHead, Callable[[], Tensor], Callable[[], Tensor]]:
    """The head of a model, and the log-probabilities by it and from all logits."""
    given = batch()
    labels = given.pop("labels")
    head = OutputHead(model)
    return (
        head,
        lambda: head.log_probabilities(labels, **given),
        lambda: token_log_probabilities(model(**given).logits, labels),
    )


def gradients(model: nn.Module, log_probabilities: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every token has another weight, as in DPO."""
    weights = torch.linspace(-1, 2, log_probabilities.numel()).view_as(log_probabilities)
    model.zero_grad()
    (log_probabilities * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model: nn.Module) -> OutputHead:
    head, ours, theirs = both_ways(model)
    assert head.can_be_split(**{name: values for name, values in batch().items() if name != "labels"})
    expected = theirs()
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours(), expected, rtol=1e-4, atol=1e-5)
    wanted = gradients(model, theirs())
    found = gradients(model, ours())
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(ours(), expected.detach(), rtol=1e-4, atol=1e-5)
    return head


@pytest.mark.parametrize("name", CONFIGS)
def test_all_weights_and_adapter(name: str) -> None:
    """Every architecture is taken apart, with its head trained and with its head frozen."""
    model = tiny_architecture(name)
    assert not check(model).is_frozen
    assert check(make_trainable(model, LoraSettings(r=2, alpha=4))).is_frozen


@pytest.mark.parametrize(
    "config",
    [CohereConfig(**SMALL, logit_scale=0.3), GraniteConfig(**SMALL, logits_scaling=3.0)],
    ids=["Cohere", "Granite"],
)
def test_scaled_logits(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    assert isinstance(model, PreTrainedModel)
    check(make_trainable(model.eval(), LoraSettings(r=2, alpha=4)))


def test_adapter_on_the_head() -> None:
    """The adapter is above the body, and is trained."""
    model = make_trainable(
        tiny_architecture("Mistral"), LoraSettings(r=2, alpha=4, target_modules=["lm_head", "q_proj"])
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    assert not check(model).is_frozen


def test_the_head_sees_labelled_positions_only() -> None:
    """A bounded number at a time, and the model is called as before afterwards."""
    model = make_trainable(tiny_architecture("Llama"), LoraSettings(r=2, alpha=4))
    head, ours, theirs = both_ways(model)
    ours()
    seen: list[int] = []
    handle = head.top.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    ours()
    handle.remove()
    assert seen == [3, 3, 2]
    assert "forward" not in head.top.model.__dict__
    assert torch.equal(theirs(), theirs())


def test_few_logits_are_computed_by_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit, so that nothing changes where the vocabulary is small."""
    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", 2 * 9 * VOCABULARY)
    head, ours, theirs = both_ways(tiny_architecture("Llama"))
    assert torch.equal(ours(), theirs())
    assert head._body is None, "not even looked at"


class Bigrams(nn.Module):
    """A causal model that has no parts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return type("Output", (), {"logits": self.table(input_ids)})


def test_a_model_without_parts_gives_all_its_logits() -> None:
    head, ours, theirs = both_ways(Bigrams())
    head.vocabulary = VOCABULARY
    assert torch.equal(ours(), theirs())
    assert not head.can_be_split()


def test_a_body_that_is_not_all_below_the_head_is_found_out() -> None:
    """What the model does to its logits outside of its `forward` would be lost."""
    model = tiny_architecture("Llama")
    model.register_forward_hook(
        lambda module, inputs, output: setattr(output, "logits", output.logits[:, :, :] * 2) or output
    )
    _, ours, theirs = both_ways(model)
    torch.testing.assert_close(ours(), theirs())


def test_modes_of_modules_stay_as_they_are() -> None:
    model = tiny_architecture("Llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    _, ours, _ = both_ways(model)
    ours()
    assert [module.training for module in model.modules()] == modes
