"""The opinion of a language model as a signal: an LLM as a judge, with a look at whether it tells examples apart."""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from montessori_pl.bounds import Count, PositiveInt, Share, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, Rejection, Score, read_records, stable_seed
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.evaluation.judge_prompts import MAX_SCORE, load_prompt, parse_score, prompt_file, render_prompt
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.generation.request_journal import JUDGE
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.models.loading import ModelSource, load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.signals.base import SignalCallback
from montessori_pl.signals.scoring_data import ScoringData

SHOWN = 200
"""Characters of a judgement that are shown where the run stops."""


class JudgeSignal(SignalCallback):
    """The mean score, from 0 to 5, that a language model gives an example in several sampled judgements.

    A judgement without a score is left out of the mean; an example without any is left unscored, and no pair is made of
    it. Each judgement has a seed of its own, from the example's id and the judgement's number. The judge's texts are
    kept with the scores. No score is negative, so that pairs are made by the rule `best_worst`.

    A judge that says the same of nearly everything, or whose judgements mostly hold no score, would make preferences by
    chance. It stops the run, with its judgements kept: under a higher limit the run goes on without asking again.

    The standard error of a score is that of the mean over judgements: a unanimous judge has one of zero, whatever it
    is worth, and an example with one valid judgement has none.

    Args:
        prompt: what the judge is asked: the name of a shipped prompt (`additive`), or the path of a text file that
            holds `{instruction}` and `{response}`, and asks for a last line `Score: n`.
        judgements: how often each example is judged.
        sampling: how judgements are drawn; the score comes last, so leave room for the reasons before it.
        judge: the model that judges; null: the student judges itself, as it is when it is scored. Only then is the
            student loaded.
        engine: the engine that runs the judge; null takes Transformers.
        max_same_rate: largest share of judgements with one and the same score; 1 never stops the run.
        max_failed_rate: largest share of judgements without a score; 1 never stops the run.
        min_examples: the run is not stopped before so many examples were judged, or all of them.
    """

    fingerprint_excludes = ("max_same_rate", "max_failed_rate", "min_examples")
    files: ClassVar[Files] = {"prompt": prompt_file, "judge.chat_template": chat_template_file}

    def __init__(
        self,
        prompt: Text = "additive",
        judgements: Count = 3,
        sampling: Sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=512),
        judge: ModelSource | None = None,
        engine: GenerationBackend | None = None,
        max_same_rate: Share = 0.95,
        max_failed_rate: Share = 0.5,
        min_examples: PositiveInt = 64,
    ) -> None:
        self.prompt, self.judgements, self.sampling, self.judge = prompt, judgements, sampling, judge
        self.needs_student = judge is None
        self.distributed = engine is None or not engine.one_per_run
        self.max_same_rate, self.max_failed_rate, self.min_examples = max_same_rate, max_failed_rate, min_examples
        self._template = load_prompt(prompt)
        self.engine = engine
        self._running: GenerationBackend | None = None
        if judgements > 1 and sampling.temperature == 0:
            raise ValueError(
                f"{judgements} judgements at temperature 0 would all be the same: sample with a higher temperature, or "
                "set judgements: 1"
            )
        if judge is None and not isinstance(engine, TransformersBackend | None):
            raise ValueError(
                f"{type(engine).__name__} cannot let the student judge itself, which only TransformersBackend can; "
                "name the model that judges: judge: {backbone: ...}"
            )

    def check_environment(self) -> None:
        """The judge's engine and model."""
        if self.judge is not None:
            engine = self.engine or TransformersBackend()
            engine.check_environment(self.judge)
            engine.check(self.judge)

    def check_inputs(self, chat_template: ChatTemplate) -> None:
        """Whether a prompt for a short example has room in the judge, beside a judgement."""
        example = Example(id="short", instruction="?", response="?")
        asked: list[list[Message]] = [[{"role": "user", "content": render_prompt(self._template, example)}]]
        judge = RequestEstimator.of_template(chat_template)
        if self.judge is not None:
            judge = RequestEstimator.of(self.judge, self.engine or TransformersBackend())
        judge.check_room(asked, "signal.init_args.sampling.max_tokens", self.sampling.max_tokens)

    def estimate(self, count: int, upper_bound: int, data: ScoringData, chat_template: ChatTemplate) -> StageEstimate:
        """The judgements; their length is not known, so each is counted at its largest."""
        engine = self.engine or TransformersBackend()
        if self.judge is not None:
            judge = RequestEstimator.of(self.judge, engine, JUDGE, self.requests)
        else:
            judge = RequestEstimator.of_template(chat_template)
        asked: list[list[Message]] = [
            [{"role": "user", "content": render_prompt(self._template, example)}] for example, _ in data.items
        ]
        requests, highest = count * self.judgements, upper_bound * self.judgements
        work = judge.work("judgements", requests, highest, asked, None, self.sampling.max_tokens)
        return StageEstimate(
            work=[*super().estimate(count, upper_bound, data, chat_template).work, work],
            prompts=[judge.shown(messages) for messages in asked],
            notes=["Judgements are counted as if each were as long as it may be."],
        )

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Load the judge, unless what it said before the run was stopped stops it again.

        Raises:
            ValueError: there is no such model, or the judge is of no use.
        """
        self._judged = {record.id: record for record in self._written()}
        self._look()
        self._running = engine = self.engine or TransformersBackend()
        if self.judge is not None:
            if self.requests is not None:
                engine.set_cache_dir(self.requests / JUDGE)
            engine.load(self.judge)
        else:
            assert isinstance(engine, TransformersBackend)
            engine.serve(student.network, load_chat_template(student.source))

    def report(self) -> dict[str, Any]:
        """Who judges, and how it is asked."""
        return {
            "judge": self.judge.backbone if self.judge is not None else "the student itself",
            "prompt": self.prompt,
            "judgements_per_example": self.judgements,
            "sampling": dataclasses.asdict(self.sampling),
        }

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """Whether the judge tells examples apart, agrees with itself, and likes what is long.

        Returns:
            `histogram` (judgements by score), `most_common_score` and its share of the judgements that have one,
            `failed_rate` (of all judgements, those without a score), `unanimous_rate` (of the examples with several
            valid judgements), `length_correlation` (Spearman's, of score and response length in characters, ties
            sharing the mean of their ranks; 0 where one of them does not vary) and `mean_standard_error`.

        Raises:
            ValueError: the judge is of no use.
        """
        if not scores and not unscored:
            return {}
        tally = _Tally.of([*scores, *unscored], self.judgements)
        self._refuse(tally)
        errors = [score.standard_error for score in scores if score.standard_error is not None]
        most_common, count = tally.most_common
        return {
            "histogram": {str(score): tally.counts[score] for score in range(MAX_SCORE + 1)},
            "most_common_score": most_common,
            "most_common_rate": count / max(tally.counts.total(), 1),
            "failed_rate": tally.failed / tally.total,
            "unanimous_rate": errors.count(0.0) / max(len(errors), 1),
            "length_correlation": _rank_correlation(
                [score.details["response_characters"] for score in scores], [score.value for score in scores]
            ),
            "mean_standard_error": statistics.fmean(errors) if errors else None,
        }

    def score_batch(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> list[Score | Rejection]:
        """The mean of each example's judgements."""
        assert self._running is not None
        asked: dict[str, list[Message]] = {
            example.id: [{"role": "user", "content": render_prompt(self._template, example)}] for example in examples
        }
        fitting = {id_ for id_, messages in asked.items() if self._running.fits(messages, self.sampling)}
        requests = [
            Request(messages=messages, seed=stable_seed("judge", id_, number))
            for id_, messages in asked.items()
            if id_ in fitting
            for number in range(1, self.judgements + 1)
        ]
        judgements = iter(self._running.generate(requests, self.sampling))
        records = [
            self._mean(example, list(islice(judgements, self.judgements))) if example.id in fitting else _unfit(example)
            for example in examples
        ]
        self._judged |= {record.id: record for record in records}
        return records

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Judge the examples of this batch, write down what was said, and look whether it is of use."""
        super().on_predict_batch_end(trainer, pl_module, *args, **kwargs)
        self._look()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the judge."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the judge, also where the run stops."""
        self._close()

    def _close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _mean(self, example: Example, judgements: Sequence[Completion]) -> Score | Rejection:
        found = {n: parse_score(one.text, one.finished) for n, one in enumerate(judgements, start=1)}
        valid = {number: score for number, score in found.items() if score is not None}
        if not valid:
            return Rejection(
                id=example.id,
                reason="no score",
                detail=f"none in {len(judgements)} judgements",
                text=judgements[0].text,
                prompt_id=example.prompt_id,
            )
        spread = statistics.stdev(valid.values()) if len(valid) > 1 else None
        return Score(
            id=example.id,
            value=statistics.fmean(valid.values()),
            standard_error=spread / math.sqrt(len(valid)) if spread is not None else None,
            method=f"judge, prompt {self.prompt}",
            details={
                **{_judgement(number): float(score) for number, score in valid.items()},
                "valid": float(len(valid)),
                **({"spread": spread} if spread is not None else {}),
                "response_characters": float(len(example.response)),
            },
            texts=tuple(one.text for one in judgements),
        )

    def _written(self) -> list[Score | Rejection]:
        """What this process wrote down in earlier sessions."""
        files: list[tuple[Any, type[Score] | type[Rejection]]] = [(self.output, Score), (self.unscored, Rejection)]
        return [record for path, kind in files if path.exists() for record in read_records(path, kind)]

    def _look(self) -> None:
        if len(self._judged) >= self.min_examples:
            self._refuse(_Tally.of(self._judged.values(), self.judgements))

    def _refuse(self, tally: "_Tally") -> None:
        """Stop at a judge that is of no use.

        Raises:
            ValueError: too few judgements have a score, or too many have the same.
        """
        if tally.failed > self.max_failed_rate * tally.total:
            raise ValueError(
                f"{tally.failed} of {tally.total} judgements ({tally.failed / tally.total:.0%}) hold no score, more "
                f"than max_failed_rate {self.max_failed_rate:g} allows; found, for example, "
                f"{_shortened(tally.samples[None])}; take another judge, another prompt or other "
                "sampling.max_tokens, or raise max_failed_rate, and what was judged is kept"
            )
        score, count = tally.most_common
        if count > self.max_same_rate * tally.counts.total():
            raise ValueError(
                f"the judge does not tell the examples apart: {count} of {tally.counts.total()} judgements "
                f"({count / tally.counts.total():.0%}) say {score}, more than max_same_rate {self.max_same_rate:g} "
                f"allows, for example {_shortened(tally.samples[score])}; take another judge or another prompt, or "
                "raise max_same_rate, and what was judged is kept"
            )


@dataclasses.dataclass(frozen=True)
class _Tally:
    """All judgements together."""

    total: int
    """Judgements that were asked for."""
    counts: Counter[int]
    """Those with a score, by score."""
    samples: dict[int | None, str]
    """By score the first text that said so; for None the first that said none."""

    @property
    def failed(self) -> int:
        """Judgements without a score."""
        return self.total - self.counts.total()

    @property
    def most_common(self) -> tuple[int | None, int]:
        """The most common score, and how many judgements say so; ties go to the lower one."""
        score = min(self.counts, key=lambda score: (-self.counts[score], score), default=None)
        return score, self.counts[score] if score is not None else 0

    @classmethod
    def of(cls, records: Iterable[Score | Rejection], judgements: int) -> "_Tally":
        """Count, with so many judgements of each example."""
        total, counts, samples = 0, Counter[int](), dict[int | None, str]()
        for record in records:
            total += judgements
            if isinstance(record, Rejection):
                samples.setdefault(None, record.text or record.detail)
                continue
            for number, text in enumerate(record.texts, start=1):
                value = record.details.get(_judgement(number))
                score = int(value) if value is not None else None
                samples.setdefault(score, text)
                if score is not None:
                    counts[score] += 1
        return cls(total, counts, samples)


def _judgement(number: int) -> str:
    """The name of a judgement among the details of a score."""
    return f"judgement_{number}"


def _unfit(example: Example) -> Rejection:
    return Rejection(
        id=example.id,
        reason="too long for the judge",
        detail="prompt and judgement are longer than the judge's context",
        text="",
        prompt_id=example.prompt_id,
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + " ...")


def _rank_correlation(lengths: Sequence[float], scores: Sequence[float]) -> float:
    if len(scores) < 2:
        return 0.0
    return float(spearman_corrcoef(*(torch.tensor(values, dtype=torch.float64) for values in (lengths, scores))))
