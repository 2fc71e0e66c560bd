"""The reference set: packed by length, its losses under any parameters, and how they are averaged.

Knows losses as functions; nothing about update rules.

Shapes: R reference examples, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from montessori_pl.bounds import checked
from montessori_pl.influence.frozen import FrozenLayers
from montessori_pl.influence.functional import Batch, LossFn, unpadded
from montessori_pl.influence.memory import row_blocks
from montessori_pl.influence.packing import packed
from montessori_pl.influence.updates import Params
from montessori_pl.losses import IGNORED

Reduction = Literal["examples", "tokens", "batches_of_8", "losses"]
"""How the losses of the reference examples become one number: their mean; the mean over all response tokens; as the
original code of Montessori-Instruct does, the mean over batches of eight of each batch's mean over tokens; or their
mean weighted by what each was before the step, so that what the student still lacks counts most."""


@checked
class ReferenceSet:
    """Reference examples, ready to be evaluated again and again.

    Rows are unpadded and packed with others of similar length into batches of bounded size, whatever batches they came
    in; results are in the order in which they came.

    Args:
        loss: the loss of each example of a batch.
        references: the examples, in batches of any sizes, padded on the right.
        reduction: how their losses are averaged.
        batch_tokens: tokens of one batch, padding included: what bounds the memory of a pass.
        frozen: the model's frozen lower layers; what they compute is kept, where the model allows.
        cache_bytes: how much of it is kept at most; the rest is computed in every pass.
        gradient_tokens: tokens of a pass with gradients, which holds on to its activations; none takes `batch_tokens`.

    Raises:
        ValueError: there are no examples, or there is no such reduction.
    """

    def __init__(
        self,
        loss: LossFn,
        references: Sequence[Batch],
        reduction: Reduction = "examples",
        batch_tokens: int = 8192,
        frozen: FrozenLayers | None = None,
        cache_bytes: int = 2**30,
        gradient_tokens: int | None = None,
    ) -> None:
        rows = [row for batch in references for row in unpadded(batch)]
        if not rows:
            raise ValueError("the reference set is empty, so that there is no loss to lower")
        self.loss, self.batch_tokens, self.gradient_tokens = loss, batch_tokens, gradient_tokens
        self._rows, self._by_losses = rows, reduction == "losses"
        self.lengths = [row["input_ids"].shape[1] for row in rows]
        self.weights = _weights([int((row["labels"][:, 1:] != IGNORED).sum()) for row in rows], reduction)
        self._frozen = frozen if frozen is not None and frozen.layers else None
        self._cache_bytes = cache_bytes
        self._packed = self._pack(range(len(rows)))
        self._parts: dict[tuple[int, ...], list[tuple[list[int], Batch]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def weigh(self, losses: Tensor) -> None:
        """Weigh the examples by their losses before any step, shape (R,), where the reduction asks for it."""
        terms = losses.cpu().double()
        if self._by_losses and terms.sum() > 0:
            self.weights = terms / terms.sum()

    @torch.no_grad()
    def losses(self, params: Params, indices: Sequence[int] | None = None) -> Tensor:
        """The loss of each reference example, or of these, shape (R,)."""
        wanted = range(len(self)) if indices is None else indices
        losses: dict[int, Tensor] = {}
        for rows, batch in self._packed if indices is None else self._part(tuple(indices)):
            with without_autocast(params), self._onward(batch):
                losses |= dict(zip(rows, self.loss(params, batch), strict=True))
        return torch.stack([losses[index] for index in wanted])

    def gradient(self, params: Params) -> Params:
        """The gradient of the average loss, accumulated batch by batch."""
        total = {name: torch.zeros_like(param) for name, param in params.items()}
        for indices, batch in self._within_gradient_tokens():
            with without_autocast(params), torch.enable_grad(), self._onward(batch):
                leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
                losses = self.loss(leaves, batch)
                average = (losses * self.weights[indices].to(losses)).sum()
                gradients = torch.autograd.grad(average, list(leaves.values()), materialize_grads=True)
            for held, gradient in zip(total.values(), gradients, strict=True):
                held += gradient
        return total

    def _within_gradient_tokens(self) -> Iterator[tuple[list[int], Batch]]:
        """The batches, cut where a pass with gradients would take too much."""
        for indices, batch in self._packed:
            rows = len(indices)
            if self.gradient_tokens is not None:
                rows = max(1, self.gradient_tokens // batch["labels"].shape[1])
            for number, block in enumerate(row_blocks(batch, rows)):
                yield indices[number * rows : (number + 1) * rows], block

    def row(self, index: int) -> Batch:
        """One reference example, shape (1, T)."""
        return self._rows[index]

    def average(self, differences: Tensor) -> tuple[float, float]:
        """The weighted mean of one number for each reference example, shape (R,), and its standard error.

        The error is the sampling error of the reference set; for equal weights it is the sample's standard deviation
        over the root of R. It is nan for a single example.
        """
        terms = differences.cpu().double()  # in this order: not every accelerator has float64
        mean = (self.weights * terms).sum()
        if len(terms) == 1:
            return mean.item(), float("nan")
        spread = (self.weights**2 * (terms - mean) ** 2).sum() * len(terms) / (len(terms) - 1)
        return mean.item(), spread.sqrt().item()

    def _part(self, indices: tuple[int, ...]) -> list[tuple[list[int], Batch]]:
        """These examples, packed once: a correction asks for the same few again and again."""
        if indices not in self._parts:
            self._parts[indices] = self._pack(indices)
        return self._parts[indices]

    def _pack(self, indices: Sequence[int]) -> list[tuple[list[int], Batch]]:
        """These examples in batches, with what the frozen layers make of them."""
        batches = packed([self._rows[i] for i in indices], self.batch_tokens)
        found = [([indices[place] for place in places], batch) for places, batch in batches]
        if self._frozen is None:
            return found
        return _with_hidden_states(found, self._frozen, self.loss, self._cache_bytes)

    def _onward(self, batch: Batch) -> AbstractContextManager[None]:
        """The frozen layers are skipped for a batch that brings what they have computed."""
        return self._frozen.skipped() if self._frozen is not None and "inputs_embeds" in batch else nullcontext()


def without_autocast(params: Params) -> torch.autocast:
    """Autocast is off inside: differences of half-precision losses are noise."""
    return torch.autocast(next(iter(params.values())).device.type, enabled=False)


def _with_hidden_states(
    batches: list[tuple[list[int], Batch]], frozen: FrozenLayers, loss: LossFn, cache_bytes: int
) -> list[tuple[list[int], Batch]]:
    """The same batches, as many as fit with what the frozen layers compute for them."""
    with torch.no_grad(), torch.autocast(batches[0][1]["labels"].device.type, enabled=False):
        if not frozen.agrees(loss, batches[0][1]):
            return batches
        kept: list[tuple[list[int], Batch]] = []
        for indices, batch in batches:
            if cache_bytes > 0:
                hidden = frozen.hidden_states(loss, batch)
                cache_bytes -= hidden.nbytes
                if cache_bytes >= 0:
                    batch = {"inputs_embeds": hidden, "labels": batch["labels"]}
            kept.append((indices, batch))
    return kept


def _weights(num_tokens: Sequence[int], reduction: Reduction) -> Tensor:
    """The weight of each example's mean loss in the average, shape (R,), in float64; they sum to 1.

    By losses all are equal as long as these are not known.
    """
    tokens = torch.tensor(num_tokens, dtype=torch.float64)
    if reduction in ("examples", "losses"):
        return torch.full_like(tokens, 1 / len(tokens))
    if reduction == "tokens":
        return tokens / tokens.sum()
    batches = tokens.split(8)
    return torch.cat([batch / batch.sum() for batch in batches]) / len(batches)
