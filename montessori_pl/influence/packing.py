"""Batches of examples of similar length: what padding costs against what one more pass costs.

Shapes: B examples, T tokens.
"""

from collections.abc import Sequence

from torch.nn.utils.rnn import pad_sequence

from montessori_pl.influence.functional import Batch
from montessori_pl.losses import IGNORED

COST_OF_A_PASS = {"cpu": 128, "cuda": 1024}
"""Tokens that could be computed in the time that a pass takes beside its tokens (starting kernels, mostly)."""


def pack(lengths: Sequence[int], max_tokens: int, cost_of_a_pass: int) -> list[list[int]]:
    """Split examples, sorted by length, into the batches that cost least.

    A batch costs its tokens, padding included, and a constant. Dynamic programming finds the cheapest cuts.

    Args:
        lengths: tokens of each example.
        max_tokens: most tokens of a batch, padding included; an example that is longer stands alone.
        cost_of_a_pass: the constant, in tokens.

    Returns:
        indices of the examples of each batch, shortest first.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    costs, starts = [0], [0]
    for end, index in enumerate(order, start=1):
        # Sorted by length, the last example of a batch is as wide as the batch.
        width = max(lengths[index], 1)
        first = min(end - 1, max(0, end - max_tokens // width))
        cost, start = min((costs[s] + (end - s) * width + cost_of_a_pass, s) for s in range(first, end))
        costs.append(cost)
        starts.append(start)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches[::-1]


def padded(rows: Sequence[Batch]) -> Batch:
    """Examples (1, T) as one batch, padded on the right to the longest."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {
        name: pad_sequence([row[name][0] for row in rows], batch_first=True, padding_value=fill[name])
        for name in rows[0]
    }


def packed(rows: Sequence[Batch], max_tokens: int) -> list[tuple[list[int], Batch]]:
    """Examples (1, T) in the cheapest batches, each with the indices of its examples."""
    cost = COST_OF_A_PASS.get(rows[0]["input_ids"].device.type, COST_OF_A_PASS["cuda"])
    lengths = [row["input_ids"].shape[1] for row in rows]
    return [(indices, padded([rows[i] for i in indices])) for indices in pack(lengths, max_tokens, cost)]
