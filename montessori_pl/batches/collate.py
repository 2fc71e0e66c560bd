"""Token ids as padded tensors.

Legend: B batch, T tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.data.chat_template import Rendered

IGNORED = -100
"""Label of a token that is not trained on."""


def collate(rendered: Sequence[Rendered], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest of this batch: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    length = max(len(one.input_ids) for one in rendered)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for one in rendered:
        padding = length - len(one.input_ids)
        rows["input_ids"].append(one.input_ids + [pad_id] * padding)
        rows["attention_mask"].append([1] * len(one.input_ids) + [0] * padding)
        labels = [
            token if trained else IGNORED for token, trained in zip(one.input_ids, one.completion_mask, strict=True)
        ]
        rows["labels"].append(labels + [IGNORED] * padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


def collate_pairs(pairs: Sequence[EncodedPair], pad_id: int) -> dict[str, Tensor]:
    """One batch of 2B sequences, the chosen ones, then the rejected ones, and the pairs' `weights`, shape (B,)."""
    batch = collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id)
    return {**batch, "weights": torch.tensor([pair.weight for pair in pairs])}
