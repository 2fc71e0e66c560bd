"""A causal language model as a pure function of its trainable parameters.

Knows `torch.func` and that a model answers token ids with `.logits`; nothing about optimizers, tokenizers or files.

Shapes: B examples, T tokens, V vocabulary, N response tokens of the whole batch.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from montessori_pl.influence.updates import Params

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, each (B, T), padded on the right; a label of -100 is not trained on."""

LossFn = Callable[[Params, Batch], Tensor]
"""Parameters and a batch -> the loss of each example, shape (B,)."""

IGNORED = -100


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


def response_losses(model: nn.Module) -> LossFn:
    """The mean next-token loss over each example's response, as a function of the parameters.

    The model runs in the mode it is in; put it into evaluation mode first, because dropout would be part of every
    difference and gradient checkpointing does not go with `torch.func.grad`.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters.

    Returns:
        A function of some or all of the model's parameters (the model's own stand in for the others) and a batch;
        it returns nats per response token of each example, shape (B,), in float32 or better, and raises a
        `ValueError` for a parameter that the model does not have and for an example without response tokens.
    """
    # A tied weight has several names, and each of them works.
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def losses(params: Params, batch: Batch) -> Tensor:
        # `functional_call` ignores names that it does not know: the step would silently move nothing.
        if unknown := sorted(params.keys() - known):
            raise ValueError(f"{type(model).__name__} has no parameters named {unknown}; it has {len(known)} others")
        targets = batch["labels"][:, 1:]
        answered = targets != IGNORED
        counts = answered.sum(dim=1)
        if not counts.all():
            raise ValueError(f"{int((counts == 0).sum())} of {len(counts)} examples have no response token")
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        logits = functional_call(model, params, kwargs=inputs).logits[:, :-1][answered]  # (N, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = cross_entropy(logits, targets[answered], reduction="none")
        # Unlike an indexed addition, writing to distinct places is deterministic on every device.
        spread = torch.zeros(answered.shape, dtype=nats.dtype, device=nats.device).index_put((answered,), nats)
        return spread.sum(dim=1) / counts

    return losses
