"""Direct preference optimization (DPO, arXiv 2305.18290) of a causal language model on completions of its own.

The reference policy is the model as it was before, and there is never a second base model where an adapter is trained.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from montessori_pl.losses import IGNORED, DPOOutput, PairLoss, dpo_loss, sequence_log_probabilities
from montessori_pl.models.language_module import OF_PREFERENCES, LanguageModule
from montessori_pl.models.loading import BaseDtype, LoraSettings

REFERENCE = "reference"
"""Name of the frozen adapter that holds the model as it was before this training."""


class DPOModule(LanguageModule):
    """Learns to prefer the chosen completion of each pair to the rejected one.

    The reference policy is the model before this training: its base with the adapter switched off, or the adapter that
    was there before, kept frozen beside the one that is trained; where all weights are trained, a frozen copy of them.

    Args:
        backbone: hub id, local directory, or a name of the embedded classroom.
        lora: the adapter that is trained; null trains all weights.
        beta: strength of the pull towards the reference policy.
        loss: `sigmoid` is DPO's; `conservative`, `robust` and `ipo` trust the pairs less (see `losses.dpo_loss`).
        label_smoothing: for `conservative` and `robust`, the share of pairs believed to be the wrong way round.
        nll_weight: weight of the negative log-likelihood of the chosen completions, per token. DPO alone widens margins
            also by making both completions unlikely, and what becomes likely instead nobody has looked at.
        chat_template: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        base_dtype: precision of the frozen base under an adapter; the adapter itself is in float32.
    """

    for_training = ("beta", "loss", "label_smoothing", "nll_weight")

    def __init__(
        self,
        backbone: str,
        lora: LoraSettings | None,
        beta: float,
        loss: PairLoss,
        label_smoothing: float,
        nll_weight: float,
        chat_template: str,
        base_dtype: BaseDtype,
    ) -> None:
        super().__init__(backbone, lora, chat_template, base_dtype)
        check_preference_settings(beta, loss, label_smoothing, nll_weight)
        self.beta, self.loss, self.label_smoothing, self.nll_weight = beta, loss, label_smoothing, nll_weight
        self._copy: list[nn.Module] = []
        """The frozen copy, where all weights are trained; in a list, so that it is no part of what is checkpointed."""

    def load(self) -> nn.Module:
        """The model and its reference: of the adapter that it has, or of all weights, there are then two."""
        model = super().load()
        if self.lora is None:
            self._copy = [copy.deepcopy(model).requires_grad_(False)]
        elif self.source.weights is not None:
            model.load_adapter(str(self.source.weights), adapter_name=REFERENCE, is_trainable=False)  # type: ignore[operator]
        return model

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
        if self.source.weights is None:
            with self.network.disable_adapter():  # type: ignore[operator]
                yield
            return
        trained = list(self.optimized().values())
        self.network.set_adapter(REFERENCE)  # type: ignore[operator]
        try:
            yield
        finally:
            self.network.set_adapter("default")  # type: ignore[operator]
            # Switching adapters switches `requires_grad` too, on both of them.
            for parameter in self.network.parameters():
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)

    def log_probabilities(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each sequence's labelled tokens under the policy and under the reference, each (B,)."""
        with self.reference_policy():
            reference = sequence_log_probabilities(self.logits(batch), batch["labels"])
        return sequence_log_probabilities(self.logits(batch), batch["labels"]), reference

    def dpo(self, batch: dict[str, Tensor]) -> tuple[DPOOutput, Tensor, Tensor]:
        """The DPO loss of a batch of 2B sequences: B chosen, then the B rejected of the same prompts.

        Returns:
            losses and rewards, and the policy's log-probabilities of the chosen and of the rejected, each (B,).
        """
        policy, reference = self.log_probabilities(batch)
        chosen, rejected = policy.chunk(2)
        reference_chosen, reference_rejected = reference.chunk(2)
        chosen_tokens, rejected_tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).chunk(2)
        output = dpo_loss(
            *(chosen, rejected, reference_chosen, reference_rejected),
            beta=self.beta,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            lengths=(chosen_tokens, rejected_tokens),
        )
        return output, chosen, rejected

    def objective(
        self, losses: Tensor, chosen: Tensor, weights: Tensor, num_tokens: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """Weighted mean of the pairs' losses, with the chosen completions' negative log-likelihood per token.

        Args:
            losses: loss of each pair, shape (B,).
            chosen: the policy's log-probability of each chosen completion, shape (B,).
            weights: how much each pair counts, shape (B,).
            num_tokens: labelled tokens of all chosen completions together.

        Returns:
            the loss that is trained, and the negative log-likelihood, in nats per token, that is a part of it.
        """
        nll = -(weights * chosen).sum() / num_tokens
        return (weights * losses).mean() + self.nll_weight * nll, nll

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The objective of one batch."""
        output, chosen, rejected = self.dpo(batch)
        num_tokens = (batch["labels"][: len(chosen), 1:] != IGNORED).sum()
        loss, nll = self.objective(output.loss, chosen, batch["weights"], num_tokens)
        self.log_metrics(
            {
                "loss": loss.detach(),
                "chosen_nll": nll.detach(),
                "reward_accuracy": output.accuracies.mean(),
                "reward_margin": output.margins.mean(),
                "chosen_reward": output.chosen_rewards.mean(),
                "rejected_reward": output.rejected_rewards.mean(),
                "chosen_log_probability": chosen.detach().mean(),
                "rejected_log_probability": rejected.detach().mean(),
            },
            batch_size=len(chosen),
        )
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the optimizer's moments are of: a probe that takes a step on an example has no use for them."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[OF_PREFERENCES] = True


def check_preference_settings(beta: float, loss: PairLoss, label_smoothing: float, nll_weight: float) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ValueError: a number is out of its range, or the loss does not look at it.
    """
    if beta <= 0 or nll_weight < 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(
            "beta must be positive, nll_weight not negative, and label_smoothing from 0 to less than 0.5, "
            f"found {beta}, {nll_weight} and {label_smoothing}"
        )
    if label_smoothing and loss not in ("conservative", "robust"):
        raise ValueError(f"label_smoothing is for the losses conservative and robust, found loss {loss!r}")
