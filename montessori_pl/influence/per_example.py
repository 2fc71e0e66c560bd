"""The gradient of each example of a batch, by one backward pass where the model allows.

For a linear layer with inputs x (B, T, I) and output gradients g (B, T, O), example b's weight gradient is g_b^T x_b. A
forward hook keeps inputs and outputs, autograd gives the gradients of the outputs alone, and the sum over examples that
a weight's gradient would be is never formed. That covers LoRA, whose two factors are linear layers, and every other
linear layer. A model that trains anything else (embeddings, norms, weights that two layers share) falls back to one
backward pass for each example, and so does a batch whose examples a layer sees mixed (routed to experts) or not at all
(adapters on fused experts, which only lend their weights).

Shapes: B examples, T tokens, I and O a layer's input and output width.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from montessori_pl.influence.functional import Batch, LossFn, ResponseLosses, gradient, unpadded
from montessori_pl.influence.packing import packed
from montessori_pl.influence.references import without_autocast
from montessori_pl.influence.updates import Params

GradientsFn = Callable[[Params, Batch], Params]
"""Parameters and a batch -> the gradient of each example's loss: every tensor has a leading dimension B."""


def per_example_gradients(loss: ResponseLosses, params: Params, max_tokens: int = 8192) -> GradientsFn:
    """The fastest way that this model allows; `max_tokens` bounds the memory of one pass, padding included."""
    shares = Counter(id(param) for _, param in loss.model.named_parameters(remove_duplicate=False))
    owners = {
        f"{path}.{name}": module
        for path, module in loss.model.named_modules()
        if isinstance(module, nn.Linear)
        for name, param in module.named_parameters(recurse=False)
        if shares[id(param)] == 1
    }
    if params.keys() <= owners.keys():
        return LinearGradients(loss, {name: owners[name] for name in params}, max_tokens)
    return one_by_one(loss)


def one_by_one(loss: LossFn) -> GradientsFn:
    """The slow truth: differentiate the loss of each example by itself."""

    def gradients(params: Params, batch: Batch) -> Params:
        rows = []
        for one in unpadded(batch):
            with without_autocast(params):
                rows.append(gradient(loss, params, one))
        return {name: torch.stack([row[name] for row in rows]) for name in params}

    return gradients


class LinearGradients:
    """One forward and one backward pass for the gradients of examples of similar length.

    Args:
        loss: the loss of each example.
        owners: for the name of each parameter, the linear layer whose weight or bias it is.
        max_tokens: tokens of one pass, padding included: what bounds its memory.
    """

    def __init__(self, loss: ResponseLosses, owners: dict[str, nn.Linear], max_tokens: int = 8192) -> None:
        self.loss, self.owners, self.max_tokens = loss, owners, max_tokens

    def __call__(self, params: Params, batch: Batch) -> Params:
        """The gradients, by name, each (B, *shape of the parameter)."""
        gradients = {name: param.new_empty(len(batch["labels"]), *param.shape) for name, param in params.items()}
        for indices, similar in packed(list(unpadded(batch)), self.max_tokens):
            for name, rows in self._one_pass(params, similar).items():
                gradients[name][indices] = rows
        return gradients

    def _one_pass(self, params: Params, batch: Batch) -> Params:
        calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {module: [] for module in self.owners.values()}

        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            calls[module].append((inputs[0].detach(), output))

        handles = [module.register_forward_hook(keep) for module in calls]
        try:
            with without_autocast(params), torch.enable_grad():
                leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
                total = self.loss(leaves, batch).sum()
                # A layer that is never called may still lend its weights, as adapters on fused experts do.
                if not all(calls.values()) or any(
                    x.dim() != 3 or len(x) != len(batch["labels"]) for made in calls.values() for x, _ in made
                ):
                    return one_by_one(self.loss)(params, batch)
                outputs = [output for made in calls.values() for _, output in made]
                gradients = iter(torch.autograd.grad(total, outputs, materialize_grads=True))
        finally:
            for handle in handles:
                handle.remove()
        # A layer that the model calls several times adds up what each call contributes.
        flows = {module: [(x, next(gradients)) for x, _ in made] for module, made in calls.items()}
        with without_autocast(params):
            return {name: _sum(name, flows[module], params[name]) for name, module in self.owners.items()}


def _sum(name: str, flows: list[tuple[Tensor, Tensor]], param: Tensor) -> Tensor:
    if name.endswith(".bias"):
        return torch.stack([g.sum(dim=1) for _, g in flows]).sum(dim=0)
    return torch.stack([torch.einsum("bto,bti->boi", g, x.to(g.dtype)) for x, g in flows]).sum(dim=0).to(param.dtype)
