"""Solve rate as a signal: an instruction is worth most that the student solves half of the time."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from montessori_pl.bounds import PositiveInt
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, Rejection, Score, stable_seed
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.evaluation.answers import answer_key, same_answer, same_text
from montessori_pl.generation.base import Completion, Request, Sampling
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.models.loading import load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import SignalCallback
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.stats.distribution import describe


class SolveRateSignal(SignalCallback):
    """How near the student's solve rate of an instruction is to one half: the uncertainty of R-Zero (arXiv 2508.05004).

        score = 1 - |2 p - 1|              1 where half of the student's answers are right, 0 where all or none are

    The student answers each instruction several times, each answer drawn with a seed of its own from the example's id
    and the answer's number. An answer that reaches the token limit is none, nor is one whose reasoning does not end.

    `against: majority` needs nobody who knows better: right is the most frequent answer, as in R-Zero, and an example
    without any answer is left unscored. Open questions have as many answers as they are asked, and say nothing here.
    `against: response` compares with the example's own response. What was not finished is wrong either way: R-Zero
    leaves it out, and then two answers that differ count as the greatest uncertainty where all others were cut.

    Few answers leave few different scores, and no pair tells equal ones apart. Standard errors are those of a share of
    so many draws.

    Args:
        samples: answers to each instruction.
        sampling: how they are drawn.
        against: which answer is taken to be right.
        answers: what is compared: the `final` answer, which stands behind `####`, in a `\\boxed{}`, or last of all, and
            is compared as a number where it is one; or the whole `text`, without regard to case and blanks.
    """

    def __init__(
        self,
        samples: PositiveInt = 8,
        sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=512),
        against: Literal["majority", "response"] = "majority",
        answers: Literal["final", "text"] = "final",
    ) -> None:
        if samples < 2 or sampling.temperature == 0:
            raise ValueError(
                f"a solve rate needs several answers that may differ, found samples {samples} at temperature "
                f"{sampling.temperature:g}: set samples to 2 or more, and a temperature above 0"
            )
        self.samples, self.sampling, self.against, self.answers = samples, sampling, against, answers
        self.needs_response = against == "response"

    def check_inputs(self, chat_template: ChatTemplate) -> None:
        """Whether a short instruction has room in the student, beside an answer."""
        asked: list[list[Message]] = [[{"role": "user", "content": "?"}]]
        RequestEstimator.of_template(chat_template).check_room(
            asked, "signal.init_args.sampling.max_tokens", self.sampling.max_tokens
        )

    def estimate(self, count: int, upper_bound: int, data: ScoringData, chat_template: ChatTemplate) -> StageEstimate:
        """The answers, as long as the responses of the examples."""
        asked = [example.messages()[:-1] for example, _ in data.items]
        expected = [example.response for example, _ in data.items]
        requests, highest = count * self.samples, upper_bound * self.samples
        student = RequestEstimator.of_template(chat_template)
        work = student.work("answers", requests, highest, asked, expected, self.sampling.max_tokens)
        return StageEstimate(
            work=[*super().estimate(count, upper_bound, data, chat_template).work, work],
            prompts=[student.shown(messages) for messages in asked],
        )

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Let the student answer."""
        self._engine = TransformersBackend()
        self._engine.serve(student.network, load_chat_template(student.source))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the student."""
        del self._engine

    def report(self) -> dict[str, Any]:
        """What is asked, and what is compared with what."""
        return {
            "quantity": "uncertainty",
            "unit": "1 - |2 p - 1|",
            "direction": "high",
            "against": self.against,
            "answers": self.answers,
            "answers_per_example": self.samples,
            "sampling": dataclasses.asdict(self.sampling),
        }

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """Quantiles of the solve rate, the share of examples that are always or never solved, and of those tied."""
        counts = Counter(score.value for score in scores)
        return {
            "quantiles": describe([score.details["solve_rate"] for score in scores]).get("quantiles", {}),
            "certain_rate": counts[0.0] / max(len(scores), 1),
            "tied": sum(count for count in counts.values() if count > 1),
        }

    def score_batch(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> list[Score | Rejection]:
        """The uncertainty of each example."""
        fitting = [one for one in examples if self._engine.fits(one.messages()[:-1], self.sampling)]
        requests = [
            Request(messages=one.messages()[:-1], seed=stable_seed("solve", one.id, number))
            for one in fitting
            for number in range(1, self.samples + 1)
        ]
        drawn = iter(self._engine.generate(requests, self.sampling))
        answers = {one.id: [next(drawn) for _ in range(self.samples)] for one in fitting}
        return [
            self._scored(example, answers[example.id])
            if example.id in answers
            else _unscored(example, "too long for the student", "instruction and answer are longer than its context")
            for example in examples
        ]

    def _scored(self, example: Example, answers: Sequence[Completion]) -> Score | Rejection:
        finished = [one.text for one in answers if one.finished]
        keys = Counter(key for text in finished if (key := answer_key(text, self.answers == "final")))
        if self.against == "response":
            same = same_answer if self.answers == "final" else same_text
            right = sum(same(text, example.response) for text in finished)
        elif keys:
            right = max(keys.values())
        else:
            what = "is more than blanks or reasoning" if finished else f"ended in {self.sampling.max_tokens} tokens"
            return _unscored(example, "no answer", f"none of {len(answers)} {what}")
        # In whole numbers: k right of n is as uncertain as n - k, and 1 - |2 p - 1| would differ in the last digit.
        wrong = len(answers) - right
        return Score(
            id=example.id,
            value=2 * min(right, wrong) / len(answers),
            standard_error=2 * math.sqrt(right * wrong / len(answers) ** 3),
            method=f"uncertainty, against {self.against}",
            details={
                "solve_rate": right / len(answers),
                "answers": float(keys.total()),
                "different_answers": float(len(keys)),
            },
            texts=tuple(one.text for one in answers),
        )


def _unscored(example: Example, reason: str, detail: str) -> Rejection:
    return Rejection(id=example.id, reason=reason, detail=detail, text=example.instruction, prompt_id=example.prompt_id)
