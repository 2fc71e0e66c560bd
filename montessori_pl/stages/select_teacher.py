"""SelectTeacher: the one teacher whose responses suit the student best, and how sure that is."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from montessori_pl.bounds import Bounds, NonNegativeFloat, NotEmpty, Share, Text
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.models.loading import load_chat_template
from montessori_pl.routing import ConstantRouter, ResponsePool
from montessori_pl.routing.responses import Array
from montessori_pl.routing.selection import NEEDED, Rule, merit, ranking
from montessori_pl.stages.base import ROUTING, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.responses import (
    MAX_REPEATED_RATE,
    leave_out_degenerate,
    read_pool,
    read_pool_scores,
    save_router,
)
from montessori_pl.stats.bootstrap import bootstrap_rows, percentile_interval
from montessori_pl.stats.gradients import grace

Beta = Annotated[float, Bounds(ge=0, infinite=True)]
"""How much the loss counts; at infinity nothing else does."""
Mask = NDArray[np.bool_]


class SelectTeacher(Stage):
    """Rank teachers by compatibility-adjusted reward (CAR, arXiv 2411.07133), GRACE (arXiv 2511.02833) or a baseline.

        CAR(teacher) = r / (1 + beta * L)

    r is the mean quality of the teacher's responses, L their mean loss per response token under the student. GRACE
    (`stats.gradients.grace`) looks at the student's gradients on them and needs no quality. Whatever the rule, all
    rankings are reported for which the numbers are known: CAR for several beta, GRACE, and the baselines, which these
    have to beat. Only prompts that all teachers have answered count, so that no teacher gains by having answered the
    easy ones.

    Args:
        examples: the stage whose responses are compared: several teachers' to the same instructions.
        quality: the stage that scored how good they are, for example with a reward model or `RecordedQualitySignal`;
            null leaves out all rankings that need it.
        loss: the stage that scored them with `TrainingLossSignal`, or with `IFDSignal`, which adds the ranking by
            instruction-following difficulty; in CAR, under the student before any training (`student: base`). Null
            leaves out all rankings that need it.
        rule: `car`; `grace`; or the highest mean `quality`, the lowest `loss`, the longest responses (`length`, in the
            student's tokens), the highest instruction-following difficulty (`ifd`).
        beta: how much the loss discounts the quality. The default is not verified: the paper's value was not found.
        betas: the sensitivity of CAR's ranking is reported for these.
        max_repeated_rate: a degenerate teacher is left out, with a warning: more than this share of its responses is
            given to other prompts too, it repeats itself far more than the median of the other teachers does, and what
            it repeats does not depend on the prompt. Teachers who rightly answer all prompts with a few labels are
            kept. Null leaves out no teacher, and only warns.
        gradients: the stage that scored the responses with `ProjectedGradientSignal`; null leaves out GRACE.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.ROUTING
    artifacts = (f"{ROUTING}/*",)
    uses = ("student",)

    def __init__(
        self,
        examples: Text,
        quality: Text | None = None,
        loss: Text | None = None,
        rule: Rule = "car",
        beta: NonNegativeFloat = 3.0,
        betas: Annotated[tuple[Beta, ...], NotEmpty()] = (0.0, 0.5, 1.0, 3.0, 10.0, math.inf),
        max_repeated_rate: Share | None = MAX_REPEATED_RATE,
        gradients: Text | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.quality, self.loss, self.gradients = examples, quality, loss, gradients
        self.rule, self.beta, self.betas, self.max_repeated_rate = rule, beta, betas, max_repeated_rate
        settings = {"quality": "quality", "loss": "loss", "ifd": "loss", "grace": "gradients"}
        for setting in (settings[column] for column in NEEDED[rule] if column in settings):
            if getattr(self, setting) is None:
                raise ValueError(f"rule {rule!r} needs `{setting}`: name there the stage that scored it")

    def reads(self) -> list[Input]:
        """The responses and their scores."""
        scores = {"quality": self.quality, "loss": self.loss, "gradients": self.gradients}
        return [
            Input("examples", self.examples, Kind.EXAMPLES),
            *(Input(setting, name, Kind.SCORES) for setting, name in scores.items() if name is not None),
        ]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work: the scores are there."""
        return StageEstimate()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Rank, and leave the ranking as a router that sends everything to the best."""
        pool, repetition = leave_out_degenerate(read_pool(context), self.max_repeated_rate)
        gradients = self._gradients(context)
        tables = self._tables(context, pool, gradients)
        complete = self._complete(context, pool, tables)
        tables = {name: table[complete] for name, table in tables.items()}
        means = {name: table.mean(axis=0) for name, table in tables.items()}
        resampled = _resampled(tables, context.seed)
        if self.gradients is not None:
            resampled["grace"] = self._grace(context, pool, complete, gradients)
            means["grace"] = resampled["grace"].mean(axis=0)
        merits = merit(self.rule, means, self.beta)
        save_router(context, ConstantRouter(pool.teachers, merits.tolist()))
        metrics = self._metrics(pool, int(complete.sum()), means, resampled, ranking(pool.teachers, merits)[0])
        return {**repetition, **metrics, "warnings": [*repetition["warnings"], *metrics["warnings"]]}

    def _tables(
        self, context: StageContext, pool: ResponsePool, gradients: Mapping[str, Sequence[float]]
    ) -> dict[str, Array]:
        """Quality and lengths, and what the signal of `loss` knows; each of shape (N, K)."""
        chat_template = load_chat_template(context.student().source)
        responses = [example for answers in pool.answers.values() for example in answers]
        columns: dict[str, dict[str, float]] = {}
        if self.quality is not None:
            columns["quality"] = {score.id: score.value for score in read_pool_scores(context, "quality")}
        columns["length"] = {
            one.id: float(len(chat_template.response_ids(one.response, sampled=one.response_tokens)))
            for one in responses
        }
        if self.gradients is not None:
            columns["gradient_length"] = {id_: float(np.linalg.norm(one)) for id_, one in gradients.items()}
        scores = [] if self.loss is None else read_pool_scores(context, "loss")
        columns |= {
            name: {score.id: score.details[name] for score in scores}
            for name in ("loss", "ifd")
            if scores and all(name in score.details for score in scores)
        }
        if missing := set(NEEDED[self.rule]) - columns.keys() - {"grace"}:
            raise StageError(
                f"{context.key}: rule {self.rule!r} needs the {missing.pop()} of each response, which stage "
                f"{self.loss!r} does not tell; score with TrainingLossSignal there, or with IFDSignal"
            )
        return {name: pool.table(numbers) for name, numbers in columns.items()}

    def _gradients(self, context: StageContext) -> dict[str, Sequence[float]]:
        """What the stage that `gradients` names has kept, by id of the example; empty where it names none.

        Raises:
            StageError: its scores hold no gradients.
        """
        scores = read_pool_scores(context, "gradients") if self.gradients is not None else []
        if not all(score.gradient for score in scores):
            raise StageError(
                f"{context.key}: the scores of stage {self.gradients!r} hold no gradients; score with "
                "ProjectedGradientSignal there"
            )
        return {score.id: score.gradient for score in scores}

    def _grace(
        self, context: StageContext, pool: ResponsePool, complete: Mask, gradients: Mapping[str, Sequence[float]]
    ) -> Array:
        """GRACE of each teacher for each split of the prompts, shape (splits, K).

        Raises:
            StageError: there is only one prompt.
        """
        prompts = [prompt for prompt, kept in zip(pool.prompts, complete, strict=True) if kept]
        if len(prompts) < 2:
            raise StageError(f"{context.key}: GRACE splits the prompts that all teachers have answered; there is one")
        found = [
            grace(
                [
                    np.array([gradients[one.id] for one in pool.answers[prompt, teacher] if one.id in gradients])
                    for prompt in prompts
                ]
            )
            for teacher in pool.teachers
        ]
        return np.stack(found, axis=1)

    def _complete(self, context: StageContext, pool: ResponsePool, tables: Mapping[str, Array]) -> Mask:
        """Which prompts all teachers have a scored response to, shape (N,).

        Raises:
            StageError: there is none.
        """
        complete: Mask = np.asarray(~np.isnan(np.stack(list(tables.values()))).any(axis=(0, 2)))
        if not complete.any():
            scored = tables["length" if self.quality is None else "quality"]
            known = {teacher: int((~np.isnan(scored[:, k])).sum()) for k, teacher in enumerate(pool.teachers)}
            raise StageError(
                f"{context.key} finds no prompt to which all {len(pool.teachers)} teachers have a scored response; of "
                f"{len(pool.prompts)} prompts, {', '.join(f'{name} has {count}' for name, count in known.items())}"
            )
        return complete

    def _metrics(
        self,
        pool: ResponsePool,
        num_prompts: int,
        means: Mapping[str, Array],
        resampled: Mapping[str, Array],
        best: str,
    ) -> dict[str, Any]:
        """The best teacher, how often it is the best of resampled prompts, and all numbers and rankings."""
        agreeing = np.mean([ranking(pool.teachers, one)[0] == best for one in merit(self.rule, resampled, self.beta)])
        counted = f"{num_prompts} prompts that all teachers have answered"
        return {
            "teacher": best,
            "chosen_in_resamples": float(agreeing),
            "prompts": num_prompts,
            "prompts_left_out": len(pool.prompts) - num_prompts,
            "teachers": self._report(pool, means, resampled),
            "rankings": self._rankings(pool, means),
            "warnings": self._warnings(means),
            "finding": f"{best} is the best by {self.rule} on {counted}, and in {agreeing:.0%} of their resamples",
        }

    def _report(
        self, pool: ResponsePool, means: Mapping[str, Array], resampled: Mapping[str, Array]
    ) -> dict[str, dict[str, Any]]:
        """For each teacher its responses, and each mean with its interval."""
        if {"quality", "loss"} <= means.keys():
            means = {**means, "car": merit("car", means, self.beta)}
            resampled = {**resampled, "car": merit("car", resampled, self.beta)}
        counts = pool.counts()
        return {
            teacher: {
                "responses": counts[teacher],
                **{
                    name: dataclasses.asdict(percentile_interval(mean[place], resampled[name][:, place]))
                    for name, mean in means.items()
                },
            }
            for place, teacher in enumerate(pool.teachers)
        }

    def _rankings(self, pool: ResponsePool, means: Mapping[str, Array]) -> dict[str, list[str]]:
        """The teachers from the best to the worst by every rule for which the numbers are known."""
        rules: list[Rule] = ["grace", "quality", "loss", "length", "ifd"]
        baselines: dict[str, list[str]] = {
            rule: ranking(pool.teachers, merit(rule, means, 0)) for rule in rules if rule in means
        }
        betas = sorted({*self.betas, self.beta}) if {"quality", "loss"} <= means.keys() else []
        return {
            **{f"car, beta {beta:g}": ranking(pool.teachers, merit("car", means, beta)) for beta in betas},
            **baselines,
        }

    def _warnings(self, means: Mapping[str, Array]) -> list[str]:
        if not {"quality", "loss"} <= means.keys() or (lowest := means["quality"].min()) > 0:
            return []
        return [
            f"the lowest mean quality of a teacher is {lowest:.3g}; for CAR all qualities were shifted, because a "
            "larger loss would raise a negative one, and the ranking depends on the shift"
        ]


def _resampled(tables: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """By the name of a table (N, K), its means over prompts that are drawn again, the same ones for all tables."""
    columns = np.concatenate(list(tables.values()), axis=1)
    parts = np.split(bootstrap_rows(columns, np.random.default_rng(seed)), len(tables), axis=1)
    return dict(zip(tables, parts, strict=True))
