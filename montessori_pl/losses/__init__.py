"""Log-probabilities of labelled tokens, and the losses made of them."""

from montessori_pl.losses.log_probabilities import (
    IGNORED,
    mean_nats,
    mean_response_loss,
    nats,
    sequence_log_probabilities,
    token_log_probabilities,
)
from montessori_pl.losses.output_head import LOGITS_AT_ONCE, OutputHead, evaluating
from montessori_pl.losses.policy_gradient import PolicyGradientOutput, policy_gradient_loss
from montessori_pl.losses.preferences import DPOOutput, PairLoss, dpo_loss

__all__ = [
    "IGNORED",
    "LOGITS_AT_ONCE",
    "DPOOutput",
    "OutputHead",
    "PairLoss",
    "PolicyGradientOutput",
    "dpo_loss",
    "evaluating",
    "mean_nats",
    "mean_response_loss",
    "nats",
    "policy_gradient_loss",
    "sequence_log_probabilities",
    "token_log_probabilities",
]
