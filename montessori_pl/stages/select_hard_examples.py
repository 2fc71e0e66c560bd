"""SelectHardExamples: which examples the student gets wrong."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from montessori_pl.batches.encoding import encode_examples
from montessori_pl.batches.samplers import chunks
from montessori_pl.bounds import Count, PositiveInt, PositiveShare, Text
from montessori_pl.data.records import Example, Record, Score, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import ExpectedRecords, StageEstimate, Work, mean, passes
from montessori_pl.estimates.requests import SHORT
from montessori_pl.evaluation.answers import same_answer
from montessori_pl.evaluation.losses import ResponseLoss
from montessori_pl.generation.base import Request, Sampling
from montessori_pl.models.loading import load_chat_template
from montessori_pl.run_directory.journal import Journal
from montessori_pl.stages.base import EXAMPLES, LATEST, SCORES, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.generating.generators import Generators, so_far, student, usage_metrics

FINDINGS = "findings.jsonl"
NUM_SHOWN = 3
"""So many mistakes are shown in the metrics."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """What was found out about one example; `id` is the example's."""

    mistake: bool
    """Whether it counts as a mistake."""
    answer: str = ""
    """What the student answers, where answers are compared."""
    value: float | None = None
    """The student's loss in nats per response token, or the score, where that decides."""


class SelectHardExamples(Stage):
    """Keep the examples that the student gets wrong, as LLM2LLM (arXiv 2403.15042) does before it augments them.

    A student without a mistake is no error: nothing is kept, and there is nothing to augment. Examples that do not fit
    the student's context, or that have no score, are left out and counted.

    Args:
        examples: the stage whose examples are looked at.
        student: the stage whose student is examined; `latest`, or `base`. Not read where scores decide.
        by: what a mistake is. `exact_match`: the greedy answer is another one than the example's response, where
            numbers are compared as numbers. `loss`: the example is one of the `share` whose responses have the highest
            mean loss. `score`: its score, a judge's or any signal's, is below `below`.
        share: part of the examples that counts as mistakes by `loss`.
        scores: the stage whose scores decide by `score`.
        below: the score from which on an example is no mistake.
        max_tokens: longest answer, in tokens.
        max_length: longest conversation in tokens by `loss`; longer ones are cut on the right.
        examples_per_batch: examples that are answered between two commits: what a kill can cost.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, FINDINGS)

    def __init__(
        self,
        examples: Text,
        student: Text = LATEST,
        by: Literal["exact_match", "loss", "score"] = "exact_match",
        share: PositiveShare = 0.5,
        scores: Text | None = None,
        below: float | None = None,
        max_tokens: Count = 64,
        max_length: Count = 1024,
        examples_per_batch: PositiveInt = 256,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        given = sum(one is not None for one in (scores, below))
        if given != (2 if by == "score" else 0):
            raise ValueError(
                "SelectHardExamples needs scores and below where it selects by score, and neither where it does not, "
                f"found by {by}, scores {scores} and below {below}"
            )
        self.uses = {"exact_match": ("student", "generation"), "loss": ("student",), "score": ()}[by]
        self.examples, self.student, self.by, self.share = examples, student, by, share
        self.scores, self.below = scores, below
        self.sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
        self.max_length, self.examples_per_batch = max_length, examples_per_batch

    def reads(self) -> list[Input]:
        """The examples, and their scores or the student."""
        if self.scores is not None:
            decides = Input("scores", self.scores, Kind.SCORES)
        else:
            decides = Input("student", self.student, Kind.STUDENT)
        return [Input("examples", self.examples, Kind.EXAMPLES), decides]

    def check_inputs(self, context: EstimateContext) -> None:
        """Whether a short instruction has room in a student that answers."""
        if self.by == "exact_match":
            context.answering().check_room([SHORT], "max_tokens", self.sampling.max_tokens)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The look at what has not been looked at; as many mistakes as in the iteration before, or all examples."""
        given = context.expected_input("examples")
        count = (
            round(self.share * given.count)
            if self.by == "loss"
            else min(len(context.known) or given.count, given.count)
        )
        expected_output = ExpectedRecords(
            count=count,
            upper_bound=given.upper_bound,
            prompts=0,
            instructions=count,
            samples=context.known or given.samples,
        )
        assumed = (
            []
            if self.by == "loss" or context.known
            else ["All examples that are looked at are assumed to be mistakes."]
        )
        return StageEstimate(work=self._work(context, given), expected_output=expected_output, notes=assumed)

    def _work(self, context: EstimateContext, given: ExpectedRecords[Example]) -> list[Work]:
        some = given.some()
        if self.by == "exact_match":
            left = max(0, given.count - len(context.commits) * self.examples_per_batch)
            asked, expected = [example.messages()[:-1] for example in some], [example.response for example in some]
            limit = self.sampling.max_tokens
            return [context.answering().work("answers", left, given.at_most(left), asked, expected, limit)]
        if self.by == "loss":
            rendered, _ = encode_examples(some, load_chat_template(context.student().source), self.max_length)
            length = mean([len(one.input_ids) for one in rendered])
            return [passes("losses", round(given.count * length), round(given.upper_bound * length))]
        return []

    def run(self, context: StageContext) -> dict[str, Any]:
        """Look at what has not been looked at."""
        journal = Journal(context.directory, [EXAMPLES, FINDINGS])
        examples = context.examples("examples")
        with Generators(context) as generators:
            self._look_at_rest(context, journal, generators, examples)
        findings = read_records(context.directory / FINDINGS, Finding)
        return {**self._metrics(examples, findings), **usage_metrics(journal.commits)}

    def _look_at_rest(
        self, context: StageContext, journal: Journal, generators: Generators, examples: Sequence[Example]
    ) -> None:
        """Commit what is found out, batch by batch, and the examples that are mistakes."""
        # Only answers come one by one; which losses are high shows among all of them.
        size = self.examples_per_batch if self.by == "exact_match" else max(1, len(examples))
        done = min(len(journal.commits) * size, len(examples))
        context.progress.start(len(examples), done, **so_far(journal.commits))
        for some in chunks(examples[done:], size):
            findings = self._look(context, generators, some)
            wrong = {finding.id for finding in findings if finding.mistake}
            mistakes = [example for example in some if example.id in wrong]
            journal.commit({EXAMPLES: mistakes, FINDINGS: findings}, **generators.take_usage())
            context.progress.advance(len(some), **so_far(journal.commits))

    def _look(self, context: StageContext, generators: Generators, examples: Sequence[Example]) -> list[Finding]:
        """A finding for each example that can be looked at."""
        if self.by == "exact_match":
            return self._by_answers(context, generators, examples)
        return self._by_losses(context, examples) if self.by == "loss" else self._by_scores(context, examples)

    def _by_answers(self, context: StageContext, generators: Generators, examples: Sequence[Example]) -> list[Finding]:
        generator = student(context, "student")
        asked = [example for example in examples if generators.fits(generator, example.messages()[:-1], self.sampling)]
        requests = [Request(messages=example.messages()[:-1], seed=0) for example in asked]
        answers = generators.generate([generator] * len(asked), requests, self.sampling)
        return [
            Finding(id=example.id, mistake=not same_answer(answer.text, example.response), answer=answer.text)
            for example, answer in zip(asked, answers, strict=True)
        ]

    def _by_losses(self, context: StageContext, examples: Sequence[Example]) -> list[Finding]:
        source = context.source(context.student(), "student")
        _, too_long = encode_examples(examples, load_chat_template(source), self.max_length)
        left_out = {example.id for example in too_long}
        fitting = [example for example in examples if example.id not in left_out]
        losses = ResponseLoss(max_length=self.max_length).losses(source, fitting).tolist()
        highest_first = sorted(range(len(fitting)), key=lambda place: -losses[place])
        wrong = set(highest_first[: round(self.share * len(fitting))])
        return [
            Finding(id=example.id, mistake=place in wrong, value=losses[place]) for place, example in enumerate(fitting)
        ]

    def _by_scores(self, context: StageContext, examples: Sequence[Example]) -> list[Finding]:
        assert self.below is not None
        records = read_records(context.input_dir("scores") / SCORES, Score)
        scores = {score.id: score.value for score in records}
        scored = [example for example in examples if example.id in scores]
        if not scored:
            raise StageError(
                f"{context.key}: stage {self.scores!r} has scored none of the {len(examples)} examples of stage "
                f"{self.examples!r}; let it score that stage's examples"
            )
        return [
            Finding(id=example.id, mistake=scores[example.id] < self.below, value=scores[example.id])
            for example in scored
        ]

    def _metrics(self, examples: Sequence[Example], findings: Sequence[Finding]) -> dict[str, Any]:
        mistakes = [finding for finding in findings if finding.mistake]
        by_id = {example.id: example for example in examples}
        metrics: dict[str, Any] = {
            "looked_at": len(findings),
            "left_out": len(examples) - len(findings),
            "mistakes": len(mistakes),
            "shown": [_shown(by_id[finding.id], finding) for finding in mistakes[:NUM_SHOWN]],
        }
        if findings and self.by == "exact_match":
            metrics["accuracy"] = 1 - len(mistakes) / len(findings)
        elif findings:
            metrics[f"mean_{self.by}"] = sum(finding.value or 0.0 for finding in findings) / len(findings)
        if not mistakes:
            metrics["warnings"] = [f"of {len(findings)} examples none is a mistake: there is nothing to augment"]
        return metrics


def _shown(example: Example, finding: Finding) -> dict[str, Any]:
    said = {"answer": finding.answer} if finding.value is None else {"value": finding.value}
    return {"instruction": example.instruction, "response": example.response, **said}
