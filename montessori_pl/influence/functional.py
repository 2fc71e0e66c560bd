"""A causal language model as a pure function of its trainable parameters.

Knows `torch.func` and that a model answers token ids with `.logits`; nothing about optimizers, tokenizers or files.

Nothing is computed that the losses do not need: logits only at positions that predict a response token, some at a time
where they are large, and no attention mask, because in a causal model no token sees the padding on its right.

Shapes: B examples, T tokens, V vocabulary, N response tokens of the whole batch, C columns that predict one, H width.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from montessori_pl.influence.updates import Params
from montessori_pl.losses import IGNORED, LOGITS_AT_ONCE, OutputHead, nats

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, each (B, T), padded on the right; a label of -100 is not trained on."""

LossFn = Callable[[Params, Batch], Tensor]
"""Parameters and a batch -> the loss of each example, shape (B,)."""


def trainable_parameters(model: nn.Module) -> Params:
    """The parameters that require a gradient, by name; detached, sharing the model's memory.

    Raises:
        ValueError: there are none.
    """
    params = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    if not params:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters, so that no step can move it; "
            "attach an adapter, or let the gradients of its own parameters be computed"
        )
    return params


def gradient(loss: LossFn, params: Params, batch: Batch) -> Params:
    """The gradient of the sum of a batch's losses, by name; zero where a parameter takes no part in them.

    By autograd and not by `torch.func.grad`, which keeps the backward pass as well, to be differentiated again: of a
    model of 135 million parameters more than the forward pass does.

    Args:
        loss: the loss of each example.
        params: where it is differentiated; not changed.
        batch: the examples.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: _ordinary(param.detach()).requires_grad_() for name, param in params.items()}
        losses = loss(leaves, {name: _ordinary(tensor) for name, tensor in batch.items()})
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that autograd may save if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def unpadded(batch: Batch) -> Iterator[Batch]:
    """Each example of a batch by itself, without padding, shapes (1, its length)."""
    _check_padding(batch["attention_mask"])
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        yield {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}


class ResponseLosses:
    """The mean next-token loss over each example's response, as a function of the parameters.

    Called with some or all of the model's parameters (the model's own stand in for the others) and a batch, it returns
    nats per response token of each example, shape (B,), in float32 or better. A batch may bring `inputs_embeds`
    (B, T, H) in place of `input_ids`.

    The model runs in the mode it is in; put it into evaluation mode first, because dropout would be part of every
    difference, and because gradient checkpointing is refused: the backward pass would compute the layers again from
    the model's own parameters and not from those that are passed.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # A tied weight has several names, and each of them works.
        self._known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._head = OutputHead(model)
        self._selects = "logits_to_keep" in inspect.signature(self._head.top.forward).parameters
        self._nats = _Nats(self._of_response, model)

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """The losses.

        Raises:
            ValueError: a parameter that the model does not have, an example without response tokens, padding elsewhere
                than on the right, or a model that is training with gradient checkpointing.
        """
        if self.model.training and any(getattr(one, "gradient_checkpointing", False) for one in self.model.modules()):
            raise ValueError(
                f"{type(self.model).__name__} is in training mode with gradient checkpointing, which would compute "
                "its layers again from other parameters than those of the probe; call its eval() first"
            )
        # `functional_call` ignores names that it does not know: the step would silently move nothing.
        if unknown := sorted(params.keys() - self._known):
            raise ValueError(
                f"{type(self.model).__name__} has no parameters named {unknown}; it has {len(self._known)} others"
            )
        if "attention_mask" in batch:
            _check_padding(batch["attention_mask"])
        targets = batch["labels"][:, 1:]
        answered = targets != IGNORED
        counts = answered.sum(dim=1)
        if not counts.all():
            raise ValueError(f"{int((counts == 0).sum())} of {len(counts)} examples have no response token")
        moving = {f"model.{name}": param for name, param in params.items()}
        found: Tensor = functional_call(self._nats, moving, (batch, answered))
        # Unlike an indexed addition, writing to distinct places is deterministic on every device.
        spread = torch.zeros(answered.shape, dtype=found.dtype, device=found.device).index_put((answered,), found)
        return spread.sum(dim=1) / counts

    def _of_response(self, batch: Batch, answered: Tensor) -> Tensor:
        """The nats of all response tokens (N,) under the parameters that the model holds by now."""
        targets = batch["labels"][:, 1:]
        columns = answered.any(dim=0).nonzero().squeeze(1)  # (C,)
        name = "inputs_embeds" if "inputs_embeds" in batch else "input_ids"
        head, inputs = self._head, {name: batch[name]}
        large = len(targets) * len(columns) * head.vocabulary > LOGITS_AT_ONCE
        # Of a head that is trained, the gradients need all logits.
        if large and head.can_be_split(**inputs) and (head.is_frozen or not torch.is_grad_enabled()):
            return head.nats(head.hidden_states(**inputs)[:, :-1][answered], targets[answered])
        selected = {"logits_to_keep": columns} if self._selects else {}
        logits: Tensor = self.model(**inputs, **selected, use_cache=False).logits
        logits = (logits if self._selects else logits[:, columns])[answered[:, columns]]  # (N, V)
        rows = max(1, LOGITS_AT_ONCE // logits.shape[1])
        parts = zip(logits.split(rows), targets[answered].split(rows), strict=True)
        return torch.cat([nats(some, wanted) for some, wanted in parts])


class _Nats(nn.Module):
    """A function of a model as a module, for `functional_call` takes parameters for one call of a module."""

    def __init__(self, function: Callable[[Batch, Tensor], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, batch: Batch, answered: Tensor) -> Tensor:
        return self.function(batch, answered)


def _check_padding(attention_mask: Tensor) -> None:
    """The mask (B, T) is never passed on, so that it must say nothing that causality does not."""
    if (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("examples must be padded on the right, but an attention mask hides tokens before others")
