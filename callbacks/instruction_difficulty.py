"""Instruction-following difficulty: how little an instruction helps the student to its response."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import Rendered
from montessori_pl.data.records import Example, Message, Rejection, Score
from montessori_pl.losses import IGNORED
from montessori_pl.models.loading import load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.scalar import Columns, Direction, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData

FLOOR = 1e-12
"""Smallest loss that is divided by, in nats per token."""


class IFDSignal(ScalarSignal):
    """Instruction-following difficulty of Cherry LLM (arXiv 2308.12032).

        IFD(x, y) = PPL(y | x) / PPL(y) = exp(loss(y | x) - loss(y))          `of: perplexities`
        IFD(x, y) = loss(y | x) / loss(y)                                     `of: losses`

    with losses in nats per response token under the student. The first form is how CAR (arXiv 2411.07133) writes it,
    the second is what the code published with Cherry LLM computes; both are 1 where the instruction changes nothing.
    From 1 on the instruction makes its own response less likely: the original counts such examples as misaligned and
    drops them. Of the others it keeps the highest.

    For loss(y) the response answers an empty user turn, without a system message: the chat format keeps its own text
    around the turns, because many templates refuse a conversation without a user turn, and only what the user said is
    gone. Earlier turns stay where they were, those of the user empty too. The response tokens are the same ones, end
    token included, also where a response was cut.

    Args:
        direction: whether low or high difficulty is preferred.
        of: what the ratio is taken of.
        misaligned_last: whether examples with a ratio from 1 on are worse than all others, the higher the worse (their
            score is 1 minus the ratio); it makes a difference where high is preferred.
    """

    quantity = "ifd"
    unit = "ratio"

    def __init__(
        self,
        direction: Direction = "high",
        of: Literal["perplexities", "losses"] = "perplexities",
        misaligned_last: bool = True,
    ) -> None:
        self.direction, self.of, self.misaligned_last = direction, of, misaligned_last

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Find out how the student writes conversations."""
        self._chat, self._pad_id = load_chat_template(student.source), data.pad_id

    def report(self) -> dict[str, Any]:
        """What is measured, and what becomes of misaligned examples."""
        return {**super().report(), "of": self.of, "misaligned_last": self.misaligned_last}

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """Beside the quantiles the share of examples whose instruction does not help."""
        misaligned = [score.details[self.quantity] >= 1 for score in scores]
        return {**super().summary(scores, unscored), "misaligned_rate": sum(misaligned) / max(len(misaligned), 1)}

    def preference(self, quantity: float) -> float:
        """Ratios from 1 on get what is below all others, unless they are taken as they are."""
        misaligned = quantity >= 1 and self.misaligned_last and self.direction == "high"
        return 1 - quantity if misaligned else super().preference(quantity)

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The ratio, and the loss of each response with its instruction and alone."""
        num_tokens = (batch["labels"] != IGNORED).sum(dim=1).tolist()
        alone = [self._alone(example, number) for example, number in zip(examples, num_tokens, strict=True)]
        tensors = {name: rows.to(student.device) for name, rows in collate(alone, self._pad_id).items()}
        # By the strategy, so that both losses are computed at the trainer's precision.
        unconditional: Tensor = student.trainer.strategy.predict_step(tensors, 0)
        if self.of == "perplexities":
            ratios = torch.exp(losses - unconditional)
        else:
            ratios = losses / unconditional.clamp_min(FLOOR)
        return {self.quantity: ratios.tolist(), "loss": losses.tolist(), "loss_alone": unconditional.tolist()}

    def _alone(self, example: Example, num_tokens: int) -> Rendered:
        """The example without what the user said, up to so many response tokens."""
        messages: list[Message] = [
            {"role": message["role"], "content": "" if message["role"] == "user" else message["content"]}
            for message in example.messages()
            if message["role"] != "system"
        ]
        whole = self._chat.render(messages, learned=self._chat.learned(example), sampled=example.response_tokens)
        places = [place for place, learned in enumerate(whole.completion_mask) if learned]
        return self._chat.cut(whole, places[:num_tokens][-1] + 1)
