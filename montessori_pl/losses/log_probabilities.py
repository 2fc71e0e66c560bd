"""Log-probabilities of labelled tokens.

Knows logits and labels; nothing about models or trainers. A label of -100 is not trained on. Logits are raised to
float32 (float64 stays), because a log-probability in half precision has two or three digits.

Shapes: B examples, T tokens, V vocabulary, N tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""Label of a token that is not trained on; the one that `cross_entropy` leaves out unless told otherwise."""


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probability of each target (N,) under its logits (N, V); 0 where the target is -100."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise, targets, ignore_index=IGNORED, reduction="none")


def token_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each labelled token given the tokens before it.

    Args:
        logits: shape (B, T, V).
        labels: the token ids, or -100, shape (B, T).

    Returns:
        Shape (B, T-1), for the labels from the second on; 0 where the label is -100.
    """
    targets = labels[:, 1:]
    return -nats(logits[:, :-1].flatten(0, 1), targets.flatten()).view_as(targets)


def sequence_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the log-probabilities of each example's labelled tokens, shape (B,)."""
    return token_log_probabilities(logits, labels).sum(dim=1)


def mean_response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats per labelled token of each example, shape (B,); nan for an example without labelled tokens."""
    return mean_nats(token_log_probabilities(logits, labels), labels)


def mean_nats(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """The same from the log-probabilities of labelled tokens, shape (B, T-1)."""
    return -log_probabilities.sum(dim=1) / (labels[:, 1:] != IGNORED).sum(dim=1)
