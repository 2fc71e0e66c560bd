"""TrainRouter: learn from a calibration set which teacher should answer which prompt, and whether that is worth it."""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from montessori_pl.bounds import Bounds, Count, NonNegativeFloat, NotEmpty, PositiveFloat, PositiveInt, Share, Text
from montessori_pl.data.records import stable_id
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate, mean, passes
from montessori_pl.estimates.training import estimate_training
from montessori_pl.models.loading import LoraSettings, ModelSource, load_chat_template, load_model, make_trainable
from montessori_pl.optim import TrainingSettings
from montessori_pl.routing import ConstantRouter, LearnedRouter, Prompt, ResponsePool
from montessori_pl.routing.encoder import PromptEncoder, encode_prompts
from montessori_pl.routing.head import constant_coefficients, constant_loss, fit_head, penalty_losses
from montessori_pl.routing.module import Compared, RouterModule, collate_compared
from montessori_pl.routing.preferences import Normalization, bradley_terry_loss, combined_rewards, pair_labels
from montessori_pl.routing.regret import RouterComparison
from montessori_pl.routing.responses import Array
from montessori_pl.routing.router import ENCODER
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.stages.base import ROUTING, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.responses import (
    MAX_REPEATED_RATE,
    in_chunks,
    leave_out_degenerate,
    read_pool,
    read_pool_scores,
    save_router,
)
from montessori_pl.stages.training.fit import HOW_TRAINED, TrainingData, fit

FEWEST = 10
"""Fewest prompts to learn from, and fewest to judge by: an interval of fewer means nothing."""
FEATURES = "features"
"""Directory of what the encoder knows of the prompts, until the stage has finished."""


class TrainRouter(Stage):
    """Fit a router on the responses of all teachers to calibration prompts, as PerSyn does (arXiv 2510.10925).

        r = (1 - alpha) * quality + alpha * learnability          made comparable within each prompt
        P(teacher i before j | prompt) = sigmoid(c_i - c_j)       c = head(encoder(prompt)), fitted on all pairs

    A teacher who has not answered a prompt just makes fewer pairs. Some prompts are held out, and on them the router
    stands beside an oracle and beside always asking the teacher who is best on the others: routing by the prompt alone
    may gain nothing over that, and `finding` says so in a sentence.

    Differences from the paper: the encoder is the student's base and not Qwen2.5-1.5B unless another is named; it stays
    frozen unless `training` is given; the position that is read is the prompt's last and no token of its own.

    Args:
        examples: the stage whose responses are compared: several teachers' to the same instructions.
        quality: the stage that scored how good they are.
        learnability: the stage that scored how well the student can learn them; in the paper `TrainingLossSignal` with
            `direction: low` under the student before any tuning (`student: base`). Influence will do as well.
        alpha: weight of learnability, from 0 to 1; 0.4 is the paper's.
        normalization: how scores are made comparable within a prompt: `zscore`, `minmax` or `none`. Accounts of the
            paper differ in how it normalises, so that the default is not verified.
        tie_margin: responses whose rewards differ by no more than this count as equally good.
        held_out: share of the prompts that the router is judged by and does not learn from; at least 10 prompts. Which
            ones depends on the run's seed and on the prompts alone, so that all routers of a run that read the same
            responses are judged by the same prompts.
        fallback_to_constant: whether the best single teacher gets all prompts, where the router's gain over that cannot
            be told from zero (its 95% interval reaches zero). Off leaves the learned router in any case.
        encoder: the language model that reads prompts; null takes the student's base. From a hub or a directory.
        encoder_chat: chat layout of an encoder that is named; the student's base keeps the student's.
        max_length: longest prompt in tokens; of longer ones the end is read.
        batch_tokens: tokens of one batch of prompts, padding included, where the encoder is not trained.
        penalties: L2 penalties on the weights of the head on a frozen encoder, for standardised features; five-fold
            cross-validation on the prompts that it learns from chooses among them, and a warning says when the lowest
            or the highest was chosen, so that a better one may lie beyond.
        training: train the encoder together with the head, in this way; null leaves the encoder as it is, which needs
            no accelerator and finds the best head exactly.
        lora: the adapter that is trained then; null trains all weights of the encoder.
        max_repeated_rate: a degenerate teacher is left out, with a warning: more than this share of its responses is
            given to other prompts too, it repeats itself far more than the median of the other teachers does, and what
            it repeats does not depend on the prompt. Teachers who rightly answer all prompts with a few labels are
            kept. Null leaves out no teacher, and only warns.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.ROUTING
    artifacts = (f"{ROUTING}/*.json", f"{ROUTING}/*.safetensors", f"{ROUTING}/{ENCODER}/*")
    fingerprint_excludes = (*HOW_TRAINED, "batch_tokens")
    files: ClassVar[Files] = {"encoder_chat": chat_template_file}
    distributed = True

    def __init__(
        self,
        examples: Text,
        quality: Text,
        learnability: Text,
        alpha: Share = 0.4,
        normalization: Normalization = "zscore",
        tie_margin: NonNegativeFloat = 0.0,
        held_out: Annotated[float, Bounds(gt=0, lt=1)] = 0.2,
        fallback_to_constant: bool = True,
        encoder: Text | None = None,
        encoder_chat: Text = "auto",
        max_length: Count = 1024,
        batch_tokens: PositiveInt = 8192,
        penalties: Annotated[tuple[PositiveFloat, ...], NotEmpty()] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        training: TrainingSettings | None = None,
        lora: LoraSettings | None = None,
        max_repeated_rate: Share | None = MAX_REPEATED_RATE,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.quality, self.learnability = examples, quality, learnability
        self.alpha, self.normalization, self.tie_margin = alpha, normalization, tie_margin
        self.held_out, self.fallback_to_constant = held_out, fallback_to_constant
        self.encoder, self.encoder_chat = encoder, encoder_chat
        self.max_length, self.batch_tokens, self.penalties = max_length, batch_tokens, penalties
        self.training, self.lora, self.max_repeated_rate = training, lora, max_repeated_rate
        self.uses = ("student", "trainer") if training is not None else ("student",)
        if training is None and lora is not None:
            raise ValueError("lora says how the encoder is trained, and without `training` it is not")

    def reads(self) -> list[Input]:
        """The responses and both their scores."""
        return [
            Input("examples", self.examples, Kind.EXAMPLES),
            Input("quality", self.quality, Kind.SCORES),
            Input("learnability", self.learnability, Kind.SCORES),
        ]

    def check_inputs(self, context: EstimateContext) -> None:
        """The encoder's files and chat template, and whether its adapter fits it."""
        source = self._source(context)
        load_chat_template(source)
        encoder = load_model(source, weights=False)
        if self.training is not None:
            make_trainable(encoder, self.lora)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The encoder's pass over all prompts, and its training where it is trained."""
        given, chat_template = context.expected_input("examples"), load_chat_template(self._source(context))
        prompts = [Prompt.of(example) for example in given.some()]
        lengths = [len(one.input_ids) for one in encode_prompts(prompts, chat_template, self.max_length)]
        work = [passes("routing", round(given.instructions * mean(lengths)))]
        if self.training is not None:
            learned = given.instructions - round(self.held_out * given.instructions)
            work.append(estimate_training(self.training, learned, lengths, context.processes))
        return StageEstimate(work=work)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Fit the router, judge it, and leave it or the best single teacher behind."""
        pool, repetition = leave_out_degenerate(read_pool(context), self.max_repeated_rate)
        if self.training is None and not _leads():
            return {}  # only training takes all processes
        if len(pool.teachers) == 1:
            return {**repetition, **self._leave_only(context, pool)} if _leads() else {}
        learned, judged = self._calibration(context, pool).split(self.held_out, context.run_seed, pool.prompts)
        router, metrics = self._fit(context, pool.teachers, learned)
        if not _leads():
            return {}
        warnings = [*repetition["warnings"], *metrics.pop("warnings", [])]
        judgement = self._judge(context, router, learned, judged, len(pool.prompts))
        return {**repetition, **metrics, **judgement, "warnings": warnings}

    def _leave_only(self, context: StageContext, pool: ResponsePool) -> dict[str, Any]:
        """Where all others were left out there is nothing to learn."""
        (teacher,) = pool.teachers
        _leave(context, ConstantRouter(pool.teachers, [0.0]))
        return {
            "prompts": len(pool.prompts),
            "best_single_teacher": teacher,
            "fell_back_to_constant": True,
            "finding": f"{teacher} is the only teacher that was not left out, so that it gets all prompts",
        }

    def _calibration(self, context: StageContext, pool: ResponsePool) -> "Calibration":
        tables = {
            name: pool.table({score.id: score.value for score in read_pool_scores(context, name)})
            for name in ("quality", "learnability")
        }
        reward = combined_rewards(tables["quality"], tables["learnability"], self.alpha, self.normalization)
        compared = (~np.isnan(reward)).sum(axis=1) > 1
        if compared.sum() < 2 * FEWEST:
            raise StageError(
                f"{context.key} needs {2 * FEWEST} prompts to which two teachers or more have a scored response, and "
                f"finds {compared.sum()} of {len(pool.prompts)}; let the teachers answer the same prompts"
            )
        tables = {name: table[compared] for name, table in {"reward": reward, **tables}.items()}
        prompts = [prompt for prompt, fits in zip(pool.prompts, compared, strict=True) if fits]
        return Calibration(prompts, tables)

    def _source(self, context: StageContext | EstimateContext) -> ModelSource:
        """The encoder before it is trained."""
        if self.encoder is not None:
            return ModelSource(self.encoder, chat_template=self.encoder_chat)
        return dataclasses.replace(context.student().source, weights=None)

    def _fit(
        self, context: StageContext, teachers: Sequence[str], learned: "Calibration"
    ) -> tuple[LearnedRouter, dict[str, Any]]:
        """The router, and how it was fitted."""
        source = self._source(context)
        if self.training is None:
            return self._fit_head(context, teachers, source, learned)
        return self._train(context, self.training, teachers, source, learned)

    def _fit_head(
        self, context: StageContext, teachers: Sequence[str], source: ModelSource, learned: "Calibration"
    ) -> tuple[LearnedRouter, dict[str, Any]]:
        """The best head on the frozen encoder."""
        encoder = PromptEncoder(source, self.max_length, self.batch_tokens)
        features = in_chunks(context, context.directory / FEATURES, learned.prompts, encoder.features)
        labels = pair_labels(learned.tables["reward"], self.tie_margin)
        losses = penalty_losses(features, labels, self.penalties)
        penalty = min(losses, key=lambda one: (losses[one], -one))
        constant = constant_loss(labels)
        metrics = {
            "penalty": penalty,
            "cross_validated_loss": {f"{one:g}": loss for one, loss in losses.items()},
            "cross_validated_loss_of_constant": constant,
            "warnings": self._warn_of_edge(penalty, losses[penalty], constant),
        }
        return LearnedRouter(teachers, encoder, fit_head(features, labels, penalty)), metrics

    def _warn_of_edge(self, penalty: float, loss: float, constant: float) -> list[str]:
        """A sentence where the chosen penalty is the lowest or the highest of several."""
        lowest, highest = min(self.penalties), max(self.penalties)
        if lowest == highest or penalty not in (lowest, highest):
            return []
        edge, more = ("lowest", "lower") if penalty == lowest else ("highest", "higher")
        return [
            f"penalty {penalty:g}, the {edge} of `penalties`, has the least cross-validated loss ({loss:.3f}; the same "
            f"coefficients for all prompts have {constant:.3f}): a better one may lie beyond, so add {more} ones"
        ]

    def _train(
        self,
        context: StageContext,
        training: TrainingSettings,
        teachers: Sequence[str],
        source: ModelSource,
        learned: "Calibration",
    ) -> tuple[LearnedRouter, dict[str, Any]]:
        """Head and encoder together, or what is left of their training."""
        chat_template = load_chat_template(source)
        labels = pair_labels(learned.tables["reward"], self.tie_margin)
        rendered = encode_prompts(learned.prompts, chat_template, self.max_length)
        data = TrainingData(
            [Compared(*item) for item in zip(rendered, labels, strict=True)],
            [len(one.input_ids) for one in rendered],
            training.batch_size,
            context.seed,
            partial(collate_compared, pad_id=chat_template.tokenizer.pad_token_id),
            {"comparisons": (~labels.isnan()).sum(dim=(1, 2)).tolist()},
        )
        module = RouterModule(source, self.lora, len(teachers))

        def leave_encoder(trainer: Trainer) -> None:
            if trainer.is_global_zero:
                module.save_encoder(context.directory / ROUTING)

        metrics = fit(context, module, data, training, leave_weights=leave_encoder)
        trained = dataclasses.replace(source, weights=context.directory / ROUTING / ENCODER)
        encoder = PromptEncoder(trained, self.max_length, self.batch_tokens)
        return LearnedRouter(teachers, encoder, module.trained_head()), metrics

    def _judge(
        self,
        context: StageContext,
        router: LearnedRouter,
        learned: "Calibration",
        judged: "Calibration",
        num_prompts: int,
    ) -> dict[str, Any]:
        """Compare the router with the best single teacher, and leave the one or the other."""
        coefficients = router.coefficients(judged.prompts)
        constant = ConstantRouter(router.teachers, learned.mean_rewards().tolist())
        comparison = RouterComparison.of(router.teachers, judged.tables, coefficients, np.asarray(constant.values))
        gains = comparison.gains(context.seed)
        useless = gains["reward"]["low"] <= 0
        fallback = useless and self.fallback_to_constant
        _leave(context, constant if fallback else router)
        best = max(router.teachers, key=lambda name: constant.values[router.teachers.index(name)])
        gain = "{mean:+.3g} (95% interval {low:+.3g} to {high:+.3g})".format(**gains["reward"])
        labels = pair_labels(judged.tables["reward"], self.tie_margin)
        fixed = constant_coefficients(pair_labels(learned.tables["reward"], self.tie_margin))
        return {
            "prompts": num_prompts,
            "prompts_with_pairs": len(learned.prompts) + len(judged.prompts),
            "prompts_held_out": len(judged.prompts),
            "pair_loss": bradley_terry_loss(torch.from_numpy(coefficients), labels).item(),
            "pair_loss_of_constant": bradley_terry_loss(fixed.expand(len(labels), -1), labels).item(),
            "best_single_teacher": best,
            "router": comparison.summary("router"),
            "constant": comparison.summary("constant"),
            "oracle": comparison.summary("oracle"),
            "gain": gains,
            "fell_back_to_constant": fallback,
            "finding": (
                f"the router is {'not ' if useless else ''}better than always asking {best}: it gains {gain} of mean "
                f"reward on {len(judged.prompts)} held-out prompts"
                f"{f', so that {best} gets all prompts' if fallback else ''}"
            ),
        }


def _leads() -> bool:
    """Whether this is the first process."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _leave(context: StageContext, router: LearnedRouter | ConstantRouter) -> None:
    """Save the router that others will read, and drop what only another one needs."""
    save_router(context, router)
    if isinstance(router, ConstantRouter):
        shutil.rmtree(context.directory / ROUTING / ENCODER, ignore_errors=True)
    shutil.rmtree(context.directory / FEATURES, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Prompts that two teachers or more have answered, with what is known of the responses."""

    prompts: Sequence[Prompt]
    """N prompts."""
    tables: dict[str, Array]
    """`reward`, `quality` and `learnability`, each (N, K)."""

    def split(self, held_out: float, seed: int, pool: Sequence[Prompt]) -> "tuple[Calibration, Calibration]":
        """What is learned from and what is held out, in an order that depends on the seed and each prompt alone.

        Args:
            held_out: share of the pool's prompts that are held out.
            seed: the same one gives the same split.
            pool: all prompts. The share is taken of these, so that routers for which other prompts can be compared
                hold out the same ones, as far as there are enough.
        """

        def place(prompt: Prompt) -> str:
            return stable_id(seed, prompt.instruction, prompt.system, *prompt.history)

        first = set(sorted(pool, key=place)[: round(held_out * len(pool))])
        order = sorted(range(len(self.prompts)), key=lambda row: place(self.prompts[row]))
        count = min(max(sum(prompt in first for prompt in self.prompts), FEWEST), len(order) - FEWEST)
        return self._part(order[count:]), self._part(order[:count])

    def mean_rewards(self) -> Array:
        """The mean reward of each teacher, shape (K,); below all others for one that has none."""
        reward = self.tables["reward"]
        known = ~np.isnan(reward)
        means = np.nansum(reward, axis=0) / known.sum(axis=0).clip(min=1)
        return np.where(known.any(axis=0), means, np.nanmin(reward) - 1)

    def _part(self, rows: Sequence[int]) -> "Calibration":
        return Calibration([self.prompts[row] for row in rows], {name: one[rows] for name, one in self.tables.items()})
