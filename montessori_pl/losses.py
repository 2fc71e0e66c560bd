"""Log-probabilities of labelled tokens, and the losses made of them.

Knows logits and labels; nothing about models or trainers. A label of -100 is not trained on. Logits are raised to
float32 (float64 stays), because a log-probability in half precision has two or three digits.

Shapes: B examples or pairs, T tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

IGNORED = -100


@dataclass(frozen=True)
class DPOOutput:
    """The DPO loss of each pair, and the implicit rewards beta * log(policy / reference), which carry no gradient."""

    loss: Tensor
    """Loss of each pair, shape (B,)."""
    chosen_rewards: Tensor
    """Implicit reward of the chosen completion, shape (B,)."""
    rejected_rewards: Tensor
    """Implicit reward of the rejected completion, shape (B,)."""

    @property
    def margins(self) -> Tensor:
        """Reward of the chosen completion minus reward of the rejected one, shape (B,)."""
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracies(self) -> Tensor:
        """1 where the chosen completion has the higher reward, else 0, shape (B,)."""
        return (self.margins > 0).to(self.margins.dtype)


def token_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each labelled token given the tokens before it.

    Args:
        logits: shape (B, T, V).
        labels: the token ids, or -100, shape (B, T).

    Returns:
        Shape (B, T-1), for the labels from the second on; 0 where the label is -100.
    """
    targets = labels[:, 1:]
    logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -nats.view_as(targets)


def sequence_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the log-probabilities of each example's labelled tokens, shape (B,)."""
    return token_log_probabilities(logits, labels).sum(dim=1)


def mean_response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats per labelled token of each example, shape (B,); nan for an example without labelled tokens."""
    return -sequence_log_probabilities(logits, labels) / (labels[:, 1:] != IGNORED).sum(dim=1)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> DPOOutput:
    """Direct preference optimization: -log sigmoid of beta times the difference of the log-ratios.

    Args:
        policy_chosen: log-probability of the chosen completions under the policy, shape (B,).
        policy_rejected: the same for the rejected completions.
        reference_chosen: log-probability of the chosen completions under the reference policy, shape (B,).
        reference_rejected: the same for the rejected completions.
        beta: how strongly the policy is held to the reference.
    """
    chosen_rewards = beta * (policy_chosen - reference_chosen)
    rejected_rewards = beta * (policy_rejected - reference_rejected)
    return DPOOutput(
        loss=-logsigmoid(chosen_rewards - rejected_rewards),
        chosen_rewards=chosen_rewards.detach(),
        rejected_rewards=rejected_rewards.detach(),
    )
