"""Losses of preference pairs, made of the log-probabilities of their completions.

Shapes: B pairs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PairLoss = Literal["sigmoid", "robust", "ipo", "sft"]


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


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    loss_type: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
    lengths: tuple[Tensor, Tensor] | None = None,
) -> DPOOutput:
    """Direct preference optimization of each pair.

    The names and values are those of TRL's `DPOConfig`, with one difference: where the loss is `sigmoid`, TRL 1.16 does
    not use `label_smoothing`, while older versions of TRL and this function compute cDPO.

    With h, the log-ratio of the chosen completion minus that of the rejected one, and e, the label smoothing:
        `sigmoid`: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), which is DPO (arXiv 2305.18290, equation 7)
        where e is 0, and else cDPO, also called conservative DPO, which stops at a finite margin
        `robust` (arXiv 2403.00409): (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2e), whose mean over
        labels that are flipped with probability e is the loss without flips
        `ipo` (arXiv 2310.12036, equation 17): (h' - 1 / (2 beta))^2, where h' takes log-ratios per token
        `sft`: 0; what is learned is the likelihood of the chosen completions, which is no loss of a pair

    Args:
        policy_chosen: log-probability of the chosen completions under the policy, shape (B,).
        policy_rejected: the same for the rejected completions.
        reference_chosen: log-probability of the chosen completions under the reference policy, shape (B,).
        reference_rejected: the same for the rejected completions.
        beta: how strongly the policy is held to the reference.
        loss_type: which of the losses above.
        label_smoothing: the share e of pairs that are believed to be the wrong way round, from 0 to less than 1/2;
            `ipo` and `sft` do not look at it.
        lengths: labelled tokens of the chosen and of the rejected completions, each (B,); `ipo` needs them.
    """
    chosen_ratios, rejected_ratios = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    margins = beta * (chosen_ratios - rejected_ratios)
    if loss_type == "sft":
        losses = torch.zeros_like(margins)
    elif loss_type == "ipo":
        assert lengths is not None, "ipo takes log-ratios per token"
        losses = (chosen_ratios / lengths[0] - rejected_ratios / lengths[1] - 1 / (2 * beta)) ** 2
    elif label_smoothing == 0:
        losses = -logsigmoid(margins)
    else:
        right, flipped = -(1 - label_smoothing) * logsigmoid(margins), -label_smoothing * logsigmoid(-margins)
        losses = right + flipped if loss_type == "sigmoid" else (right - flipped) / (1 - 2 * label_smoothing)
    return DPOOutput(
        loss=losses, chosen_rewards=(beta * chosen_ratios).detach(), rejected_rewards=(beta * rejected_ratios).detach()
    )
