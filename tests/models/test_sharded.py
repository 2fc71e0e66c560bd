"""A model whose weights are in parts of two processes has the gradients of one that is whole."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from two_ranks import on_two_ranks

from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.losses import output_head
from montessori_pl.models.batch_parts import recomputing
from montessori_pl.models.loading import LoraSettings, save_weights
from montessori_pl.models.sharded import layers_of, whole_weights
from montessori_pl.models.student import StudentModule
from montessori_pl.processes.sharding import part_of

RESPONSES = [["b"], ["a task", "the longest answer of them all, i should say. is it?"]]
"""Of each rank: a batch so small that all its logits are computed, and one whose logits are taken in several parts."""
LOGITS_AT_ONCE = 34 * 30
LORA = LoraSettings(r=2, alpha=4)


def batch(responses: list[str]) -> dict[str, Tensor]:
    template = ChatTemplate(tiny_tokenizer())
    rendered: list[Rendered] = [
        template.render([{"role": "user", "content": "write"}, {"role": "assistant", "content": one}])
        for one in responses
    ]
    return collate(rendered, 0)


def give_opinions(module: StudentModule) -> None:
    """To an adapter, which would have no effect; weights in parts get the numbers of whole ones."""
    for place, parameter in enumerate(module.optimized().values() if module.lora is not None else ()):
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place)) * 0.3
        parameter.data.copy_(part_of(drawn, parameter))


def loss(module: StudentModule, responses: list[str], again: bool) -> Tensor:
    module.network.train()
    with recomputing(module.network, again):
        value = -module.token_log_probabilities(batch(responses)).sum()
        value.backward()
    return value.detach()


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["all", "lora"])
def test_gradients_and_weights(
    tmp_path: Path, lora: LoraSettings | None, tied: bool, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process computes all logits of its batch, the other in parts: they gather in the same order all the same."""
    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", LOGITS_AT_ONCE)
    backbone = save_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    whole = StudentModule(backbone, lora)
    whole.configure_model()
    give_opinions(whole)
    losses = [float(loss(whole, responses, again)) for responses in RESPONSES]
    expected = {name: one.grad / 2 for name, one in whole.optimized().items() if one.grad is not None}
    saved = save_weights(whole.language_model, tmp_path / "whole")

    def work(rank: int) -> list[Any]:
        module = StudentModule(backbone, lora)
        module._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        module._trainer = SimpleNamespace(precision="32-true")  # type: ignore[assignment]
        module.configure_model()
        assert all(isinstance(one, DTensor) for one in module.network.parameters())
        give_opinions(module)
        found = loss(module, RESPONSES[rank], again)
        gradients = {name: one.grad for name, one in module.optimized().items()}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert isinstance(gradient, DTensor)
            torch.testing.assert_close(gradient.full_tensor(), expected[name], rtol=1e-4, atol=1e-5)
        weights = dict(whole_weights(module.network))
        if rank == 0:
            paths = save_weights(module.language_model, tmp_path / "parts", weights)
            assert [path.name for path in paths] == [path.name for path in saved]
            for path, other in zip(paths, saved, strict=True):
                assert path.read_bytes() == other.read_bytes()
        return [float(found)]

    assert [found for (found,) in on_two_ranks(tmp_path, work)] == pytest.approx(losses, rel=1e-5)


def test_a_model_that_does_not_name_its_layers() -> None:
    with pytest.raises(ValueError, match=r"^Linear does not name its layers .* set trainer.strategy to ddp$"):
        layers_of(nn.Linear(2, 2))
