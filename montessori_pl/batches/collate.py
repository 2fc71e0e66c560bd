"""Token ids as padded tensors.

Legend: B batch, T tokens."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from montessori_pl.batches.encoding import EncodedCompletion, EncodedPair
from montessori_pl.data.chat_template import Rendered
from montessori_pl.losses import IGNORED

Side = Literal["left", "right"]


def pad(ids: Sequence[Sequence[int]], pad_id: int, side: Side = "right") -> dict[str, Tensor]:
    """Pad to the longest of this batch: `input_ids` and `attention_mask`, each (B, T).

    Args:
        ids: the token ids of each example.
        pad_id: token that pads.
        side: where it stands; a batch that a model goes on with is padded on the left.
    """
    return {
        "input_ids": _padded(ids, pad_id, side),
        "attention_mask": _padded([[1] * len(row) for row in ids], 0, side),
    }


def collate(rendered: Sequence[Rendered], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest of this batch: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    labels = [
        [token if trained else IGNORED for token, trained in zip(one.input_ids, one.completion_mask, strict=True)]
        for one in rendered
    ]
    return {**pad([one.input_ids for one in rendered], pad_id), "labels": _padded(labels, IGNORED)}


def num_labels(rendered: Rendered) -> int:
    """How many tokens of a row a loss is taken on: all trained ones but a first one, which follows nothing."""
    return sum(rendered.completion_mask[1:])


def collate_pairs(pairs: Sequence[EncodedPair], pad_id: int) -> dict[str, Tensor]:
    """One batch of 2B sequences, the chosen ones, then the rejected ones, and the pairs' `weights`, shape (B,).

    Where the reference policy's log-probabilities of all pairs are known, they are its `reference`, shape (2B,).
    """
    batch = collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id)
    batch["weights"] = torch.tensor([pair.weight for pair in pairs])
    known = [pair.reference for pair in pairs if pair.reference is not None]
    if len(known) == len(pairs):
        batch["reference"] = torch.tensor([chosen for chosen, _ in known] + [rejected for _, rejected in known])
    return batch


def collate_completions(completions: Sequence[EncodedCompletion], pad_id: int) -> dict[str, Tensor]:
    """One batch of completions with their `advantages`, shape (B,).

    Where they are known, the log-probabilities of their tokens are its `sampled` and `reference`, each (B, T), as the
    labels are: 0 where there is no label.
    """
    batch = collate([one.rendered for one in completions], pad_id)
    batch["advantages"] = torch.tensor([one.advantage for one in completions])
    for name in ("sampled", "reference"):
        rows = [getattr(one, name) for one in completions]
        if all(row is not None for row in rows):
            values = torch.zeros(batch["labels"].shape)
            values[:, 1:][batch["labels"][:, 1:] != IGNORED] = torch.tensor([value for row in rows for value in row])
            batch[name] = values
    return batch


def _padded(rows: Sequence[Sequence[int]], value: int, side: Side = "right") -> Tensor:
    return pad_sequence(
        [torch.tensor(row, dtype=torch.long) for row in rows],
        batch_first=True,
        padding_value=value,
        padding_side=side,
    )
