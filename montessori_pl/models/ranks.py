"""What all processes have together: means over their batches, and the smallest of a number."""

from torch import Tensor
from torch.distributed import all_gather_object, get_world_size, is_available, is_initialized
from torchmetrics import SumMetric


def mean_over_ranks(mean: Tensor, weight: Tensor | int) -> Tensor:
    """The mean over all processes, of which each knows the mean over its own batch.

    With one process this is the mean itself, to the last digit. The metrics live for this call alone, so that they are
    no part of a module or its checkpoint.

    Args:
        mean: of this process, a scalar without gradients.
        weight: over how much this process took its mean: tokens, pairs.
    """
    if not _several():
        return mean
    # A loss that is no number must not vanish ("disable"), and with it MeanMetric of TorchMetrics 1.9 forgets weights.
    total, count = (SumMetric(nan_strategy="disable").to(mean.device) for _ in range(2))
    total.update(mean * weight)
    count.update(weight)
    reduced: Tensor = total.compute() / count.compute()
    return reduced


def minimum_over_ranks(number: int) -> int:
    """The smallest of what the processes have."""
    if not _several():
        return number
    numbers: list[int] = [number] * get_world_size()
    all_gather_object(numbers, number)
    return min(numbers)


def _several() -> bool:
    return is_available() and is_initialized() and get_world_size() > 1
