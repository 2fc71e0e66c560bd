"""Log-probabilities of labelled tokens, and the losses made of them.

Knows logits and labels; nothing about models or trainers. A label of -100 is not trained on. Logits are raised to
float32 (float64 stays), because a log-probability in half precision has two or three digits.

Shapes: B examples or pairs, T tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

IGNORED = -100
"""Label of a token that is not trained on; the one that `cross_entropy` leaves out unless told otherwise."""

PairLoss = Literal["sigmoid", "conservative", "robust", "ipo"]


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
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    loss: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
    lengths: tuple[Tensor, Tensor] | None = None,
) -> DPOOutput:
    """Direct preference optimization of each pair.

    With h, the log-ratio of the chosen completion minus that of the rejected one, and e, the label smoothing:
        `sigmoid` (DPO, arXiv 2305.18290, equation 7): -log sigmoid(beta h)
        `conservative` (cDPO): -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), which stops at a finite margin
        `robust` (arXiv 2403.00409): (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2e), whose mean over
        labels that are flipped with probability e is the loss without flips
        `ipo` (arXiv 2310.12036, equation 17): (h' - 1 / (2 beta))^2, where h' takes log-ratios per token

    Args:
        policy_chosen: log-probability of the chosen completions under the policy, shape (B,).
        policy_rejected: the same for the rejected completions.
        reference_chosen: log-probability of the chosen completions under the reference policy, shape (B,).
        reference_rejected: the same for the rejected completions.
        beta: how strongly the policy is held to the reference.
        loss: which of the losses above.
        label_smoothing: the share e of pairs that are believed to be the wrong way round, from 0 to less than 1/2.
        lengths: labelled tokens of the chosen and of the rejected completions, each (B,); `ipo` needs them.
    """
    chosen_ratios, rejected_ratios = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    margins = beta * (chosen_ratios - rejected_ratios)
    if loss == "ipo":
        assert lengths is not None, "ipo takes log-ratios per token"
        losses = (chosen_ratios / lengths[0] - rejected_ratios / lengths[1] - 1 / (2 * beta)) ** 2
    elif loss == "sigmoid":
        losses = -logsigmoid(margins)
    else:
        right, flipped = -(1 - label_smoothing) * logsigmoid(margins), -label_smoothing * logsigmoid(-margins)
        losses = right + flipped if loss == "conservative" else (right - flipped) / (1 - 2 * label_smoothing)
    return DPOOutput(
        loss=losses, chosen_rewards=(beta * chosen_ratios).detach(), rejected_rewards=(beta * rejected_ratios).detach()
    )
