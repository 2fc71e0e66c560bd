"""What training will take: optimizer steps and tokens."""

from collections.abc import Sequence

from montessori_pl.estimates.estimate import Work, mean
from montessori_pl.optim import TrainingSettings


def estimate_training(
    settings: TrainingSettings, count: int, lengths: Sequence[int], processes: int, longest: int | None = None
) -> Work:
    """Training on so many items.

    Args:
        settings: how is trained.
        count: the items.
        lengths: tokens of items that they are like.
        processes: that share the work.
        longest: tokens of the longest row, where an item has several; none takes the longest item.
    """
    batches = -(-count // (settings.batch_size * processes))
    tokens = round(settings.epochs * count * mean(lengths))
    return Work(
        what="training",
        steps=settings.epochs * -(-batches // settings.accumulate_grad_batches),
        tokens=tokens,
        max_tokens=tokens,
        longest=max(lengths, default=0) if longest is None else longest,
    )
