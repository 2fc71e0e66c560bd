"""A causal language model that is held to what it was: training on completions of its own, beside a reference policy.

There is never a second base model where an adapter is trained.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from montessori_pl.models.language_module import LanguageModule

if TYPE_CHECKING:
    from peft import PeftModel

REFERENCE = "reference"
"""Name of the frozen adapter that holds the model as it was before this training."""


class PolicyModule(LanguageModule):
    """A policy beside its reference policy, the model before this training.

    That is its base with the adapter switched off, or the adapter that was there before, kept frozen beside the one
    that is trained; where all weights are trained, a frozen copy of them.
    """

    reference_is_base = False
    """Whether the reference policy is the base alone, also where an adapter was there before."""
    _copy: tuple[nn.Module, ...] = ()
    """The frozen copy, where all weights are trained; in a tuple, so that it is no part of what is checkpointed."""

    def load(self) -> nn.Module:
        """The model and its reference: of the adapter that it has, or of all weights, there are then two."""
        model = self.load_language_model()
        if self.lora is None:
            self._copy = (copy.deepcopy(model).requires_grad_(False),)
        elif self._has_previous_adapter:
            _with_adapter(model).load_adapter(str(self.source.weights), adapter_name=REFERENCE, is_trainable=False)
        return model

    @property
    def _has_previous_adapter(self) -> bool:
        return self.source.weights is not None and not self.reference_is_base

    @contextmanager
    def reference_policy(self) -> Iterator[None]:
        """Inside, the network is the model before this training, without gradients and without dropout."""
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad(), self._copied_weights() if self.lora is None else self._previous_adapter():
                yield
        finally:
            self.network.train(training)

    @contextmanager
    def _copied_weights(self) -> Iterator[None]:
        trained = self.network
        self.model = self._copy[0].to(next(trained.parameters()).device)  # Lightning moves only what is registered
        try:
            yield
        finally:
            self.model = trained

    @contextmanager
    def _previous_adapter(self) -> Iterator[None]:
        model = _with_adapter(self.network)
        if not self._has_previous_adapter:
            with model.disable_adapter():
                yield
            return
        trained = list(self.optimized().values())
        model.set_adapter(REFERENCE)
        try:
            yield
        finally:
            model.set_adapter("default")
            # Switching adapters switches `requires_grad` too, on both of them.
            for parameter in self.network.parameters():
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)

    def log_probabilities(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each sequence's labelled tokens under the policy and under the reference, each (B,)."""
        reference = batch["reference"] if "reference" in batch else self.reference_log_probabilities(batch)
        return self.token_log_probabilities(batch).sum(dim=1), reference

    def reference_log_probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probability of each sequence's labelled tokens under the reference policy, shape (B,)."""
        with self.reference_policy():
            return self.token_log_probabilities(batch).sum(dim=1)

    def release_copy(self) -> None:
        """Give back the memory of the frozen copy, where there is one: batches bring what it says of them."""
        self._copy = ()


def _with_adapter(model: nn.Module) -> "PeftModel":
    from peft import PeftModel

    assert isinstance(model, PeftModel)
    return model
