"""How often a judge prefers the student's answers to another side's, each pair in both orders."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Count, PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, stable_seed
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.estimates.estimate import Work, passes
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.evaluation.asking import BatchedWork, Judge, ask, kept_records, loaded
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.evaluation.outputs import (
    ANNOTATIONS,
    ARENA_HARD,
    OUTPUTS,
    Output,
    outputs_file,
    read_outputs,
    side_name,
    write_alpaca_eval,
)
from montessori_pl.evaluation.pairwise import (
    Judgement,
    Verdict,
    arena_hard_games,
    arena_hard_score,
    load_pairwise_prompt,
    pairwise_prompt_file,
    parse_verdict,
    render_pair,
    win_rates,
)
from montessori_pl.generation.base import Completion, GenerationBackend, Sampling
from montessori_pl.generation.reward_model import RewardModel, RewardModelSource, check_reward_model
from montessori_pl.models.loading import ModelSource, best_device
from montessori_pl.run_directory.atomic import write_json_lines
from montessori_pl.run_directory.fingerprint import Files

log = logging.getLogger(__name__)

ANSWERED, OTHER, JUDGEMENTS = "outputs.jsonl", "other_outputs.jsonl", "judgements.jsonl"
"""What is kept while the evaluator works: the student's answers, the other student's, and what the judge says."""
LEAST_JUDGED = 0.5
"""The share of items with a verdict below which a rate is warned of."""

Compared = tuple[Example, str, str]
"""An item with the student's answer and the other side's."""
_BY_SIGN: dict[int, tuple[Verdict, Verdict]] = {1: ("A", "B"), 0: ("C", "C"), -1: ("B", "A")}


class WinRate(Evaluator):
    """The share of test items on which a judge prefers the student's greedy answer to the other side's.

    The judge sees both answers side by side, in both orders. A tie, or two orders that disagree, is half a win. The
    same text on both sides is a tie, and the judge is not asked. An item of which one order has no verdict that can be
    read is left out: `judged_rate` says how many are left, and `unparsed_judgements` how many judgements it were.

    Beside the win rate stands what it would be between answers of equal length (`length_controlled_win_rate`). All
    answers and judgements are kept, the former also as `outputs.json` and `annotations.json` in AlpacaEval's form.

    Args:
        judge: the language model that judges; null where a reward model does.
        engine: the engine that runs the judge; null takes the recipe's.
        against: the other side: null for the responses of the test set, a stage that trains a student, or `base`, or a
            file of outputs (a list of `{instruction, output}`, as AlpacaEval's). The names of the rates hold its
            name, where there is one: `win_rate_against_base`.
        prompt: what the judge is asked: the name of a shipped prompt (`pairwise`, or `graded`), or the path of a text
            file with `{instruction}`, `{answer_a}` and `{answer_b}`; the verdict is a last line `[[A]]`, `[[B]]` or
            `[[C]]`. Where the prompt names the mark `[[A>>B]]`, verdicts are graded, from `[[A>>B]]` over `[[A=B]]` to
            `[[B>>A]]`, and Arena-Hard's score stands beside the win rate (`arena_hard_score`).
        sampling: how judgements are drawn.
        reward_model: a reward model that judges in the place of a language model: the answer with the higher reward is
            better, and there are no orders and no prompt.
        max_tokens: longest answer in tokens.
        items_per_batch: items that are answered or judged between two commits: what a kill can cost.
    """

    needs_test: ClassVar[bool] = True
    artifacts: ClassVar[tuple[str, ...]] = (OUTPUTS, ANNOTATIONS, JUDGEMENTS, ARENA_HARD)
    files: ClassVar[Files] = {
        "against": outputs_file,
        "prompt": pairwise_prompt_file,
        "judge.chat_template": chat_template_file,
    }
    fingerprint_excludes: ClassVar[tuple[str, ...]] = ("items_per_batch", "reward_model.batch_size")

    def __init__(
        self,
        judge: ModelSource | None = None,
        engine: GenerationBackend | None = None,
        against: Text | None = None,
        prompt: Text = "pairwise",
        sampling: Sampling = Sampling(temperature=0.0, max_tokens=512),
        reward_model: RewardModelSource | None = None,
        max_tokens: Count = 512,
        items_per_batch: PositiveInt = 256,
    ) -> None:
        if (judge is None) is (reward_model is None):
            raise ValueError("WinRate needs one who judges: set judge, or reward_model, and not both")
        self.judge = Judge(judge, engine, sampling) if judge is not None else None
        self.reward_model, self.against = reward_model, against
        self._judge_name = judge.backbone if judge is not None else reward_model.model if reward_model else ""
        self.template = load_pairwise_prompt(prompt)
        self._graded = "[[A>>B]]" in self.template and judge is not None
        self.answering = Sampling(temperature=0.0, max_tokens=max_tokens)
        self.items_per_batch = items_per_batch
        file = outputs_file(against) if against is not None else None
        self._against_student = against if file is None else None
        side = side_name(file) if file is not None else against
        self._suffix = f"_against_{side}" if side is not None else ""

    def other_students(self) -> list[str]:
        """The other side, where it is one."""
        return [self._against_student] if self._against_student is not None else []

    def check_environment(self) -> None:
        """The judge's engine and model."""
        if self.judge is not None:
            self.judge.check_environment()
        if self.reward_model is not None:
            check_reward_model(self.reward_model)

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """Whether any item of the test set leaves room for an answer, and whether the other side has one to each."""
        test = data.read("test")
        asked = [example.messages()[:-1] for example in test]
        RequestEstimator.of_template(chat_template).check_room(asked, "max_tokens", self.answering.max_tokens)
        self._given(test)

    def estimate(
        self, data: DataSources, chat_template: ChatTemplate, backend: Callable[[], GenerationBackend]
    ) -> list[Work]:
        """Answers and judgements that are not there yet; judgements as long as they may be."""
        test = data.read("test")
        asked: list[list[Message]] = [
            [{"role": "user", "content": render_pair(self.template, one, one.response, one.response)}] for one in test
        ]
        sides = [ANSWERED, *([OTHER] if self._against_student is not None else [])]
        answers = sum(len(test) - len(kept_records(self.directory, name, Output)) for name in sides)
        judgements = 2 * (len(test) - len(kept_records(self.directory, JUDGEMENTS, Judgement)))
        answered = [example.messages()[:-1] for example in test], [example.response for example in test]
        student = RequestEstimator.of_template(chat_template)
        work = [student.work("answers", answers, answers, *answered, self.answering.max_tokens)]
        if self.judge is None:
            tokens = sum(len(chat_template.conversation_ids(example.messages())) for example in test)
            return [*work, passes("rewards", round(tokens * judgements / len(test)))]
        judge = self.judge.estimator(backend, self.requests)
        return [*work, judge.work("judgements", judgements, judgements, asked, None, self.judge.sampling.max_tokens)]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`win_rate` and `length_controlled_win_rate` with their intervals, and how far the judge can be trusted.

        Raises:
            ValueError: no item could be judged.
        """
        test = data.read("test")
        work = BatchedWork(self.directory, [ANSWERED, OTHER, JUDGEMENTS], self.items_per_batch)
        answers = self._answers(work, ANSWERED, test, student, backend)
        other = self.other_sources[self._against_student] if self._against_student is not None else None
        if other is None:
            others = self._given(test)
        else:
            others = answers if other == student else self._answers(work, OTHER, test, other, backend)
        judgements = self._judgements(work, list(zip(test, answers, others, strict=True)), backend)
        self._look(judgements)
        self._write(test, student, answers, others, judgements)
        graded = arena_hard_score(judgements, self._suffix) if self._graded else {}
        return {**win_rates(judgements, answers, others, self._suffix), **graded}

    def _look(self, judgements: Sequence[Judgement]) -> None:
        """Whether enough items have a verdict for a rate."""
        judged = sum(one.preference is not None for one in judgements)
        if not judged:
            said = next((text for one in judgements for text in one.texts if text), "")
            needed = (
                "it must end in a line with the mark that the prompt asks for within sampling.max_tokens"
                if self.judge is not None
                else "its rewards must be numbers"
            )
            raise ValueError(
                f"the judge {self._judge_name} gave no item of the test set a verdict that can be read in "
                f"both orders; {needed}, found, for example, {said[-200:]!r}"
            )
        if judged < LEAST_JUDGED * len(judgements):
            log.warning(
                "the judge %s gave %d of %d items a verdict in both orders; the win rate is that of these alone",
                *(self._judge_name, judged, len(judgements)),
            )

    def _answers(
        self,
        work: BatchedWork,
        name: str,
        test: Sequence[Example],
        student: ModelSource,
        backend: Callable[[], GenerationBackend],
    ) -> list[str]:
        """A student's answer to each item."""

        def make(items: Sequence[Example], engine: GenerationBackend) -> list[Output]:
            completions = ask(engine, [item.messages()[:-1] for item in items], self.answering, [0] * len(items))
            return [
                Output(id=item.id, output=one.text if one else "", cut=one is not None and not one.finished)
                for item, one in zip(items, completions, strict=True)
            ]

        return [one.output for one in work.records(name, Output, test, lambda: loaded(backend, student), make)]

    def _given(self, test: Sequence[Example]) -> list[str]:
        """The other side's answers, where no student has to write them."""
        if self.against is None or self._against_student is not None:
            return [example.response for example in test]
        try:
            return read_outputs(self.against, test)
        except (ValueError, OSError) as error:
            raise ValueError(f"against: {error}") from error

    def _judgements(
        self, work: BatchedWork, items: Sequence[Compared], backend: Callable[[], GenerationBackend]
    ) -> list[Judgement]:
        """What the judge says of each item."""
        judge, reward_model = self.judge, self.reward_model
        if judge is not None:
            make = functools.partial(self._compare, judge.sampling)
            return work.records(JUDGEMENTS, Judgement, items, lambda: judge.loaded(backend, self.requests), make)
        assert reward_model is not None
        return work.records(JUDGEMENTS, Judgement, items, lambda: RewardModel(reward_model, best_device()), _by_reward)

    def _compare(self, sampling: Sampling, items: Sequence[Compared], engine: GenerationBackend) -> list[Judgement]:
        asked: list[list[Message]] = []
        seeds: list[int] = []
        for item, ours, theirs in items:
            if ours != theirs:
                for order, pair in enumerate(((ours, theirs), (theirs, ours))):
                    asked.append([{"role": "user", "content": render_pair(self.template, item, *pair)}])
                    seeds.append(stable_seed("judge", item.id, order))
        said = iter(ask(engine, asked, sampling, seeds))
        return [
            _judgement(item, next(said), next(said))
            if ours != theirs
            else Judgement(id=item.id, verdicts=("C", "C"), texts=())
            for item, ours, theirs in items
        ]

    def _write(
        self,
        test: Sequence[Example],
        student: ModelSource,
        answers: Sequence[str],
        others: Sequence[str],
        judgements: Sequence[Judgement],
    ) -> None:
        """The answers and the comparisons in AlpacaEval's form."""
        if self.directory is None:
            return
        name = f"{student.backbone} + {student.weights.parent.name}" if student.weights else student.backbone
        outputs = [
            {"instruction": item.instruction, "output": answer, "generator": name}
            for item, answer in zip(test, answers, strict=True)
        ]
        write_alpaca_eval(self.directory / OUTPUTS, outputs)
        rows = [
            {
                "instruction": row["instruction"],
                "output_1": other,
                "generator_1": self.against or "test set",
                "output_2": row["output"],
                "generator_2": name,
                "annotator": self._judge_name,
                "preference": 1 + one.preference if one.preference is not None else None,
            }
            for row, other, one in zip(outputs, others, judgements, strict=True)
        ]
        write_alpaca_eval(self.directory / ANNOTATIONS, rows)
        if self._graded:
            games = arena_hard_games(test, judgements, self._judge_name, name, self.against or "test set")
            write_json_lines(self.directory / ARENA_HARD, games)


def _by_reward(items: Sequence[Compared], model: RewardModel) -> list[Judgement]:
    """The verdict by rewards, which stand in the place of texts."""
    answered = [[*item.messages()[:-1], _assistant(text)] for item, *pair in items for text in pair]
    rewards = [one.value for one in model.rewards(answered)]
    judgements = []
    for (item, *_), ours, theirs in zip(items, rewards[::2], rewards[1::2], strict=True):
        comparable = not (math.isnan(ours) or math.isnan(theirs))
        verdicts = _BY_SIGN[(ours > theirs) - (ours < theirs)] if comparable else (None, None)
        judgements.append(Judgement(id=item.id, verdicts=verdicts, texts=(f"{ours:.9g}", f"{theirs:.9g}")))
    return judgements


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _judgement(item: Example, *judged: Completion | None) -> Judgement:
    first, second = (_verdict(one) for one in judged)
    return Judgement(id=item.id, verdicts=(first, second), texts=tuple(one.text if one else "" for one in judged))


def _verdict(completion: Completion | None) -> Verdict | None:
    return parse_verdict(completion.text, completion.finished) if completion is not None else None
