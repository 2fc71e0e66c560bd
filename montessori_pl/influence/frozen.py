"""What the trained parameters do not touch: layers below the first of them, and weights in half precision.

Where adapters sit only on the upper layers, the hidden states below are the same for every probe: they are computed
once and the model runs on from them, which is exact. Frozen weights in bfloat16 or float16 are raised to float32 while
a layer computes, so that loss differences keep their digits at the memory of half precision.

Shapes: B examples, T tokens, H width.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from montessori_pl.influence.functional import Batch, LossFn


class FrozenLayers:
    """The layers of a model below the first one that holds a trained parameter.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters.
        trained: names of its trained parameters.
    """

    def __init__(self, model: nn.Module, trained: Iterable[str]) -> None:
        self.model = model
        self.layers = _layers_below(model, list(trained))

    @torch.no_grad()
    def hidden_states(self, loss: LossFn, batch: Batch) -> Tensor:
        """What enters the first layer that is trained, shape (B, T, H); `loss` runs the model."""
        last = self.layers[-1]
        kept: list[Tensor] = []
        handle = last.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            loss({}, batch)
        finally:
            handle.remove()
        return kept[0]

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Inside, the frozen layers hand on what they are given: the model expects `hidden_states` as its input."""
        for layer in self.layers:
            layer.forward = lambda hidden, *args, **kwargs: hidden
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def agrees(self, loss: LossFn, batch: Batch) -> bool:
        """Whether going on from the hidden states gives the losses of the whole model.

        It does where embeddings enter the layers as they are; a model that scales them on the way does not qualify.
        """
        whole, hidden = loss({}, batch), self.hidden_states(loss, batch)
        onward = {"inputs_embeds": hidden, "labels": batch["labels"]}
        with self.skipped():
            arrived = self.hidden_states(loss, onward)
            return torch.equal(arrived, hidden) and torch.allclose(whole, loss({}, onward), rtol=1e-5, atol=1e-6)


def _layers_below(model: nn.Module, trained: list[str]) -> list[nn.Module]:
    """The layers below the first trained parameter; none if something below the layers is trained too."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not path.endswith("layers"):
            continue
        inside = [re.match(rf"{re.escape(path)}\.(\d+)\.", name) for name in trained]
        # The head stands above the layers; everything else outside them (embeddings) may stand below.
        outside = [name for name, match in zip(trained, inside, strict=True) if not match and "lm_head" not in name]
        if outside:
            return []
        first = min((int(match[1]) for match in inside if match), default=0)
        return list(module)[:first]
    return []


class _Raise(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, weights in half precision are raised to float32 whenever a layer uses them, one layer at a time.

    A pass with gradients holds on to what it has raised until it goes back; only passes without are lean.
    """
    raised = [
        (module, name)
        for module in list(model.modules())
        for name, weight in list(module.named_parameters(recurse=False))
        if weight.is_floating_point() and torch.finfo(weight.dtype).bits < 32
    ]
    for module, name in raised:
        parametrize.register_parametrization(module, name, _Raise(), unsafe=True)
    try:
        yield
    finally:
        for module, name in raised:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
