"""Rank-surprisal ratio: responses that the student finds unlikely, made of tokens that it ranks high."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from montessori_pl.bounds import PositiveInt
from montessori_pl.data.records import Example
from montessori_pl.influence import Batch, row_blocks
from montessori_pl.losses import IGNORED, LOGITS_AT_ONCE, token_log_probabilities
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.scalar import Columns, Direction, ScalarSignal

FLOOR = 1e-12
"""Smallest surprisal of a whole response that is divided by, in nats."""


class RankSurprisalSignal(ScalarSignal):
    """The rank-surprisal ratio (arXiv 2601.14249, as in the code published with it).

        RSR(x, y) = sum_t min(rank_t, max_rank) / sum_t -log p(y_t | x, y_<t)          ranks per nat

    where rank_t is 1 plus the number of tokens that the student finds likelier than y_t. Low is preferred there: the
    response is informative (large surprisal) and still close to what the student would say (small ranks). Here the sums
    go over what the student is trained on, which includes the response's end token; the original leaves that out.

    Args:
        direction: whether low or high ratios are preferred.
        max_rank: ranks beyond this one count as this one.
    """

    quantity = "rank_surprisal_ratio"
    unit = "ranks per nat"

    def __init__(self, direction: Direction = "low", max_rank: PositiveInt = 100) -> None:
        self.direction, self.max_rank = direction, max_rank

    def report(self) -> dict[str, Any]:
        """What is measured, and where ranks are clipped."""
        return {**super().report(), "max_rank": self.max_rank}

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The ratio, with the means of its two sums per token."""
        columns: dict[str, list[float]] = {self.quantity: [], "mean_rank": [], "mean_surprisal": []}
        logits_of_a_row = batch["labels"].shape[1] * student.output_head.vocabulary
        for some in row_blocks(batch, max(1, LOGITS_AT_ONCE // logits_of_a_row)):
            for name, values in self._measured(student, some).items():
                columns[name] += values.tolist()
        return columns

    def _measured(self, student: StudentModule, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad(), student.trainer.precision_plugin.predict_step_context():
            logits = student.logits(dict(batch))
        surprisals = -token_log_probabilities(logits, batch["labels"]).sum(dim=1)
        answered = batch["labels"][:, 1:] != IGNORED
        rows = logits[:, :-1][answered]  # (N, V), the N response tokens of the batch
        chosen = rows.gather(1, batch["labels"][:, 1:][answered][:, None])
        ranks = torch.zeros_like(batch["labels"][:, 1:])
        ranks[answered] = (1 + (rows > chosen).sum(dim=1)).clamp_max(self.max_rank)
        counts, totals = answered.sum(dim=1), ranks.sum(dim=1)
        return {
            self.quantity: totals / surprisals.clamp_min(FLOOR),
            "mean_rank": totals / counts,
            "mean_surprisal": surprisals / counts,
        }
