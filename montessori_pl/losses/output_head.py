"""Log-probabilities of labelled tokens without the logits of all positions.

Logits are the largest tensor of a training: for 32 sequences of 1,024 tokens and a vocabulary of 128K they take 17 GB,
and their gradient as much again. Where they are large, the model's body runs as always, and what stands above it (the
head, with whatever the architecture does to logits: soft caps, scales, biases) only on the hidden states at labelled
positions, some rows at a time. Nothing above the body is written here a second time: the model's own code computes it,
with the body handing on the rows that it is given.

Shapes: B examples, T tokens, V vocabulary, N labelled tokens of the batch, H width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from montessori_pl.losses.log_probabilities import IGNORED, nats, token_log_probabilities

LOGITS_AT_ONCE = 2**24
"""Logits that are computed together (64 MiB in float32); of a batch with fewer, all at once, by the model as it is."""
TOKENS_TO_COMPARE = 4
"""Tokens on which a model is compared with its two parts."""

ToLogits = Callable[[Tensor], Tensor]
"""Hidden states (N, H) -> logits (N, V)."""


class OutputHead:
    """What stands above the body of a causal language model, applied where labels are.

    Where a model cannot be taken apart, all its logits are computed, with the same results. That is found out once, by
    comparing both ways on a few tokens.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.top: Any = getattr(model, "get_base_model", lambda: model)()  # inside PEFT
        config = getattr(self.top, "config", None)
        self.vocabulary: int = getattr(config.get_text_config(), "vocab_size", 0) if config is not None else 0
        self._body: Any = None
        self._compared = False

    def log_probabilities(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Log-probability of each labelled token given the tokens before it, shape (B, T-1); 0 where the label is -100.

        Args:
            labels: the token ids, or -100, shape (B, T).
            inputs: of the model: `input_ids` and `attention_mask`, each (B, T).
        """
        if labels.numel() * self.vocabulary <= LOGITS_AT_ONCE or not self.can_be_split(**inputs):
            return token_log_probabilities(self.model(**inputs).logits, labels)
        targets = labels[:, 1:]
        answered = targets != IGNORED
        found = -self.nats(self.hidden_states(**inputs)[:, :-1][answered], targets[answered])
        # Unlike an indexed addition, writing to distinct places is deterministic on every device.
        return torch.zeros(targets.shape, dtype=found.dtype, device=found.device).index_put((answered,), found)

    def hidden_states(self, **inputs: Tensor) -> Tensor:
        """What the body gives, shape (B, T, H); only for a model that `can_be_split`."""
        hidden: Tensor = self._body(**inputs, use_cache=False)[0]
        return hidden

    def nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probability of each target (N,) after its hidden state (N, H), a bounded number at a time."""
        rows = max(1, LOGITS_AT_ONCE // self.vocabulary)
        parts = list(zip(hidden.split(rows), targets.split(rows), strict=True))
        if not torch.is_grad_enabled():
            return torch.cat([nats(self.logits(some), wanted) for some, wanted in parts])
        if self.is_frozen:
            return torch.cat([_NatsOfFrozenHead.apply(some, wanted, self.logits)[0] for some, wanted in parts])

        def of(some: Tensor, wanted: Tensor) -> Tensor:
            return nats(self.logits(some), wanted)

        return torch.cat([checkpoint(of, some, wanted, use_reentrant=False) for some, wanted in parts])

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits (N, V) of these hidden states (N, H)."""
        with _handing_on(self._body, hidden[None]):
            logits: Tensor = self.top(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0]

    @property
    def is_frozen(self) -> bool:
        """Whether nothing above the body is trained, tied weights included."""
        inside = set(self._body.modules())
        above = [module for module in self.top.modules() if module not in inside]
        return not any(one.requires_grad for module in above for one in module.parameters(recurse=False))

    def look(self) -> None:
        """Find out now whether the model can be taken apart, and not with the first batch."""
        ids = torch.arange(TOKENS_TO_COMPARE)[None] % max(1, self.vocabulary)
        self.can_be_split(input_ids=ids, attention_mask=torch.ones_like(ids))

    @torch.no_grad()
    def can_be_split(self, **inputs: Tensor) -> bool:
        """Whether body and head one after the other are the model; looked at once, on the first tokens of a batch."""
        if not self._compared:
            few = {name: values[:1, :TOKENS_TO_COMPARE] for name, values in inputs.items()}
            with evaluating(self.model):
                self._body = next((body for body in self._bodies() if self._is_split_at(body, few)), None)
            self._compared = True
        return self._body is not None

    def _bodies(self) -> Iterator[nn.Module]:
        for find in (lambda: self.top.base_model, lambda: self.top.get_decoder()):
            try:
                body = find()
            except (AttributeError, NotImplementedError):
                continue
            if isinstance(body, nn.Module) and body is not self.top:
                yield body

    def _is_split_at(self, body: nn.Module, inputs: dict[str, Tensor]) -> bool:
        self._body = body
        whole = self.model(**inputs).logits[0]
        try:
            parts = self.logits(self.hidden_states(**inputs)[0])
        except Exception:  # whatever an architecture raises whose body gives or whose head wants something else
            return False
        return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-3)


class _NatsOfFrozenHead(torch.autograd.Function):
    """The nats of some targets, with their gradients computed at once: the logits need not be kept or computed again.

    Each target's nats depend on its own hidden state alone, so that the gradient of any function of them is that of the
    nats, row by row, times what comes from above.
    """

    @staticmethod
    def forward(hidden: Tensor, targets: Tensor, to_logits: ToLogits) -> tuple[Tensor, Tensor]:
        # Autograd takes no tensors of inference mode: hence the copies.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = hidden.clone().detach().requires_grad_()
            found = nats(to_logits(leaf), targets.clone())
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
        return found.detach(), gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, from_above: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * from_above[:, None]).to(gradient.dtype), None, None


class _Handed(tuple[Tensor]):
    """The output of a body, with nothing but hidden states in it."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        """No caches, attentions or router logits."""
        return


@contextmanager
def _handing_on(body: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Inside, the body gives these hidden states, whatever it is called with."""
    before = body.__dict__.get("forward")  # hooks of other libraries may have put one there
    body.forward = lambda *arguments, **keywords: _Handed([hidden])
    try:
        yield
    finally:
        if before is None:
            del body.forward
        else:
            body.forward = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
