"""What a signal scores: examples in batches of whole prompts, and the reference set beside them."""

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from montessori_pl.batches.collate import collate
from montessori_pl.batches.samplers import FixedBatches, group_batches
from montessori_pl.data.chat_template import Rendered
from montessori_pl.data.records import Example


class ScoringData(LightningDataModule):
    """The examples to be scored, in batches of whole prompts, and the reference set beside them.

    Args:
        examples: what is scored.
        rendered: the same examples as the student sees them: cut on the right to its context. Of one that is cut before
            its response begins, no signal that needs the student can be asked.
        reference: the reference set, rendered, in its own order; empty for a signal that needs no student.
        pad_id: token that pads.
        batch_tokens: tokens of one batch of examples, padding included; a prompt with more is a batch of its own.
        scored: ids of examples that have been scored already, or were found to have no score.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        rendered: Sequence[Rendered],
        reference: Sequence[Rendered],
        pad_id: int,
        batch_tokens: int = 4096,
        scored: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.items = list(zip(examples, rendered, strict=True))
        self.reference, self.pad_id, self.batch_tokens, self.scored = reference, pad_id, batch_tokens, set(scored)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of whole prompts: their `rows` here, and `input_ids`, `attention_mask` and `labels`, each (B, T)."""
        assert self.trainer is not None
        batches = [
            batch for batch in self.batches() if not self.scored.issuperset(self.items[row][0].id for row in batch)
        ]
        # Lightning wants a batch in every process; one that has none left scores the last one, with the same result.
        share = FixedBatches(batches[self.trainer.global_rank :: self.trainer.world_size] or batches[-1:])
        return DataLoader(range(len(self.items)), batch_sampler=share, collate_fn=self.collate)  # type: ignore[arg-type]

    def batches(self) -> list[list[int]]:
        """All batches, for any rank and any progress, so that a batch is always the same.

        Examples of whose response the student sees nothing come last and apart. So the batches before them are the same
        for signals that score them and for those that do not.
        """
        seen = [any(rendered.completion_mask) for _, rendered in self.items]
        fitting, too_long = ([row for row, one in enumerate(seen) if one is fits] for fits in (True, False))
        return self._batched(self._prompts(fitting)) + self._batched(self._prompts(too_long))

    def sample(self, num_examples: int, seed: int) -> list[list[int]]:
        """Batches of prompts drawn at random, of at least so many examples together (or all there are)."""
        prompts = self._prompts(range(len(self.items)))
        random.Random(seed).shuffle(prompts)
        sizes = itertools.accumulate(map(len, prompts))
        return self._batched(prompts[: sum(size < num_examples for size in sizes) + 1])

    def groups(self, rows: Sequence[int]) -> list[str]:
        """For each of these rows its prompt; an example without a prompt stands for itself."""
        return [self.items[row][0].prompt_id or self.items[row][0].id for row in rows]

    def reference_batch(self) -> dict[str, Tensor]:
        """The reference set, in its own order."""
        return collate(self.reference, self.pad_id)

    def collate(self, rows: Sequence[int]) -> dict[str, Any]:
        """The batch of these rows."""
        return {"rows": list(rows), **collate([self.items[row][1] for row in rows], self.pad_id)}

    def _prompts(self, rows: Sequence[int]) -> list[list[int]]:
        """These rows, those of each prompt together."""
        prompts: dict[str, list[int]] = {}
        for row, group in zip(rows, self.groups(rows), strict=True):
            prompts.setdefault(group, []).append(row)
        return list(prompts.values())

    def _batched(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Whole prompts in batches of bounded size."""
        return group_batches(prompts, [len(rendered.input_ids) for _, rendered in self.items], self.batch_tokens)
