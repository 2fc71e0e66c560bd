"""What all processes have together: means over their batches and over optimizer steps, and smallest numbers."""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed import all_gather_object, get_rank, get_world_size, is_available, is_initialized
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


def is_first_rank() -> bool:
    """Whether this is the first process, or the only one."""
    return not _several() or get_rank() == 0


def minimum_over_ranks(number: int) -> int:
    """The smallest of what the processes have."""
    if not _several():
        return number
    numbers: list[int] = [number] * get_world_size()
    all_gather_object(numbers, number)
    return min(numbers)


def mean_over_step(total: Tensor, count: Tensor | int, in_step: Mapping[str, int], unit: str) -> Tensor:
    """What a batch adds to the mean over its whole optimizer step, to be returned by `training_step`.

    Lightning averages the gradients of a step's batches, and the strategy those of the processes: with the mean over
    each batch's own tokens the step would follow a mean of means, in which a token of a short batch counts more than
    one of a long batch. Here the total is divided by the mean count of a batch, so that the average of averages is the
    sum over the whole step divided by its number of tokens, as in Transformers (`num_items_in_batch`) and TRL.

    Args:
        total: sum over this batch of what is averaged, a scalar.
        count: how much this batch holds: labelled tokens, pairs.
        in_step: from `EpochBatches.in_step`; where it is empty, the batch is taken for a whole step.
        unit: what is counted: `tokens`, `pairs`, `comparisons`.
    """
    return total * in_step["averaged_batches"] / in_step[unit] if in_step else total / count


def _several() -> bool:
    return is_available() and is_initialized() and get_world_size() > 1
