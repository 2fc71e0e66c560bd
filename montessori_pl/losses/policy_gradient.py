"""The clipped policy gradient of sampled completions, with advantages within a group (GRPO, arXiv 2402.03300).

Shapes: B completions, T tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyGradientOutput:
    """The loss of each token of each completion, and what it shows; 0 where a token is not the policy's."""

    loss: Tensor
    """Loss of each token, shape (B, T)."""
    divergence: Tensor
    """Estimated divergence from the reference policy at each token in nats, without gradients, shape (B, T)."""
    clipped: Tensor
    """1 where the clip lets no gradient of the advantage through, else 0, shape (B, T)."""


def policy_gradient_loss(
    policy: Tensor,
    sampled: Tensor,
    reference: Tensor,
    advantages: Tensor,
    answered: Tensor,
    clip: tuple[float, float],
    kl_weight: float,
) -> PolicyGradientOutput:
    """GRPO's loss of each token (arXiv 2402.03300, equations 3 and 4), as TRL 1.16 computes it.

        -min(r A, clip(r, 1 - low, 1 + high) A) + kl_weight r (q - log q - 1)

    with r the token's probability now by that under the policy that sampled it, and q its probability under the
    reference policy by that now, whose term is an estimate of the divergence that is never negative. The factor r in
    front of it makes its gradient that of the divergence (arXiv 2512.02556); GRPO had none. In TRL's `GRPOConfig`
    `epsilon` and `epsilon_high` are the clip, and `beta` is the weight of the divergence.

    Args:
        policy: log-probability of each token under the policy, shape (B, T).
        sampled: the same under the policy that has sampled the completions.
        reference: the same under the reference policy.
        advantages: how much better than its group each completion is, shape (B,).
        answered: whether a token is the policy's own, shape (B, T).
        clip: how far below and above 1 the ratio of probabilities counts.
        kl_weight: weight of the divergence from the reference policy.
    """
    ratio = (policy - sampled).exp()
    held = ratio.clamp(1 - clip[0], 1 + clip[1])
    gain = advantages[:, None]
    away = reference - policy
    divergence = away.exp() - away - 1
    loss = -torch.minimum(ratio * gain, held * gain)
    if kl_weight:
        loss = loss + kl_weight * ratio * divergence
    outside = ((ratio < 1 - clip[0]) & (gain < 0)) | ((ratio > 1 + clip[1]) & (gain > 0))
    own = answered.to(loss.dtype)
    # Not a product: what is nobody's may be infinite.
    return PolicyGradientOutput(
        loss=torch.where(answered, loss, 0.0),
        divergence=torch.where(answered, divergence.detach(), 0.0),
        clipped=outside.to(own.dtype) * own,
    )
