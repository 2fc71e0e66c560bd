"""How often a judge finds the student's answers better than those that the test set holds."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import ClassVar

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Count, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, stable_seed
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.estimates.estimate import Work
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.evaluation.judge_prompts import load_prompt, parse_score, prompt_file, render_prompt
from montessori_pl.generation.base import GenerationBackend, Request, Sampling
from montessori_pl.generation.request_journal import JUDGE
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.fingerprint import Files


class WinRate(Evaluator):
    """The share of test items on which a judge gives the student's greedy answer a higher score than the test set's.

    Both are judged by themselves and not side by side, so that there is no first place to prefer; equal mean scores are
    half a win. Put another model's answers into the test set's responses to compare with that model. An item of which
    one side has no score that can be read is left out, and `judged_rate` says how many are left.

    Args:
        judge: the model that judges.
        engine: the engine that runs the judge; null takes the recipe's.
        prompt: what the judge is asked: the name of a shipped prompt (`additive`), or the path of a text file.
        judgements: how often each answer is judged.
        sampling: how judgements are drawn.
        max_tokens: longest answer of the student in tokens.
    """

    needs_test: ClassVar[bool] = True
    files: ClassVar[Files] = {"prompt": prompt_file, "judge.chat_template": chat_template_file}

    def __init__(
        self,
        judge: ModelSource,
        engine: GenerationBackend | None = None,
        prompt: Text = "additive",
        judgements: Count = 3,
        sampling: Sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=512),
        max_tokens: Count = 512,
    ) -> None:
        self.judge, self.engine, self.judgements, self.sampling = judge, engine, judgements, sampling
        self.template = load_prompt(prompt)
        self.answering = Sampling(temperature=0.0, max_tokens=max_tokens)

    def check_environment(self) -> None:
        """The judge's engine and model."""
        engine = self.engine or TransformersBackend()  # the recipe's finds a model where Transformers does
        engine.check_environment(self.judge)
        engine.check(self.judge)

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """Whether any item of the test set leaves room for an answer."""
        asked = [example.messages()[:-1] for example in data.read("test")]
        RequestEstimator.of_template(chat_template).check_room(asked, "max_tokens", self.answering.max_tokens)

    def estimate(
        self, data: DataSources, chat_template: ChatTemplate, backend: Callable[[], GenerationBackend]
    ) -> list[Work]:
        """An answer to each item, and the judgements of both sides; each as long as it may be."""
        test = data.read("test")
        judge = RequestEstimator.of(self.judge, self.engine or backend(), JUDGE, self.requests)
        asked: list[list[Message]] = [
            [{"role": "user", "content": render_prompt(self.template, example)}] for example in test
        ]
        judgements = 2 * self.judgements * len(test)
        answered = [example.messages()[:-1] for example in test], [example.response for example in test]
        return [
            RequestEstimator.of_template(chat_template).work(
                "answers", len(test), len(test), *answered, self.answering.max_tokens
            ),
            judge.work("judgements", judgements, judgements, asked, None, self.sampling.max_tokens),
        ]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`win_rate` with its standard error over items, and `judged_rate`.

        Raises:
            ValueError: no item could be judged.
        """
        test = data.read("test")
        answers = self._answers(test, student, backend())
        engine = self.engine or backend()
        if self.requests is not None:
            engine.set_cache_dir(self.requests / JUDGE)
        engine.load(self.judge)
        scores = self._scores([one for pair in zip(answers, test, strict=True) for one in pair], engine)
        engine.close()
        wins = [
            0.5 + (ours > theirs) / 2 - (ours < theirs) / 2
            for ours, theirs in zip(scores[::2], scores[1::2], strict=True)
            if ours is not None and theirs is not None
        ]
        if not wins:
            raise ValueError(f"the judge {self.judge.backbone} gave no item of the test set a score that can be read")
        spread = statistics.stdev(wins) if len(wins) > 1 else 0.0
        return {
            "win_rate": statistics.fmean(wins),
            "win_rate_standard_error": spread / math.sqrt(len(wins)),
            "judged_rate": len(wins) / len(test),
        }

    def _answers(self, test: Sequence[Example], student: ModelSource, engine: GenerationBackend) -> list[Example]:
        """The test items with the student's answers; an empty one where there is no room for an answer."""
        engine.load(student)
        asked = {example.id: example.messages()[:-1] for example in test}
        fitting = [id_ for id_, messages in asked.items() if engine.fits(messages, self.answering)]
        written = engine.generate([Request(messages=asked[id_], seed=0) for id_ in fitting], self.answering)
        engine.close()
        texts = {id_: completion.text for id_, completion in zip(fitting, written, strict=True)}
        return [dataclasses.replace(example, response=texts.get(example.id, "")) for example in test]

    def _scores(self, examples: Sequence[Example], engine: GenerationBackend) -> list[float | None]:
        """The mean of each example's judgements that can be read; none where none can."""
        prompts: list[list[Message]] = [
            [{"role": "user", "content": render_prompt(self.template, example)}] for example in examples
        ]
        fitting = [place for place, messages in enumerate(prompts) if engine.fits(messages, self.sampling)]
        requests = [
            Request(messages=prompts[place], seed=stable_seed("judge", examples[place].id, place % 2, number))
            for place in fitting
            for number in range(self.judgements)
        ]
        found = [parse_score(one.text, one.finished) for one in engine.generate(requests, self.sampling)]
        scores: list[float | None] = [None] * len(examples)
        for number, place in enumerate(fitting):
            own = found[number * self.judgements : (number + 1) * self.judgements]
            valid = [score for score in own if score is not None]
            scores[place] = statistics.fmean(valid) if valid else None
        return scores
