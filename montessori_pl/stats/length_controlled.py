r"""The win rate that there would be between answers of equal length: the formula of length-controlled AlpacaEval.

A logistic model of the preferences (arXiv 2404.04475; `metrics/glm_winrate.py` of tatsu-lab/alpaca_eval), in which the
difference of lengths is then set to zero:

    p_i = sigma(theta + phi * tanh(D_i) + psi * gamma_i)     D_i = (characters of the baseline - of the model) / spread
    rate = mean_i sigma(theta + psi * gamma_i)

It is fitted by logistic regression with an L1 penalty, whose strength five-fold cross-validation chooses. The
difficulties gamma and the annotations of gamed baselines, which hold theta down, belong to AlpacaEval's own prompts. On
other prompts both are left out (`length_controlled_minimal` of the library), and the rate is sigma(theta).

Legend: `N` items, `F` features, `B` fits at once, which differ in the weights of the items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from montessori_pl.stats.bootstrap import NUM_RESAMPLES, percentile_interval
from montessori_pl.stats.means import MeanInterval

Array = NDArray[np.float64]
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse strengths of the penalty among which cross-validation chooses."""
GAMED_WEIGHT = 0.2 / 2
"""Of an annotation of one of the two gamed baselines, where that of the model weighs 1."""
MAX_STEPS, MAX_SWEEPS, MAX_HALVINGS = 40, 30, 30
PRECISION = 1e-8
"""A fit ends when no coefficient moves by more."""


@dataclass(frozen=True)
class PromptFeatures:
    """What is known of AlpacaEval's own prompts: `df_gamed.csv` of its data set."""

    difficulties: Array
    """gamma of each item that is compared, shape (N,)."""
    gamed_preferences: Array
    """How far each annotation prefers a gamed baseline, from 0 to 1, shape (G,)."""
    gamed_differences: Array
    """D of each, shape (G,)."""
    gamed_difficulties: Array
    """gamma of each, shape (G,)."""


def length_controlled_win_rate(
    preferences: Sequence[float],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    rng: np.random.Generator | None = None,
    prompts: PromptFeatures | None = None,
) -> MeanInterval | None:
    """The win rate at equal lengths, from 0 to 1, and its interval by the bootstrap over items.

    Resamples are fitted with the weakest penalty. The one that is chosen for all items may hold every coefficient at
    zero, where a judge has no preference that can be proved; at a half, without any width, an interval would be wrong.

    Args:
        preferences: how far the judge prefers the model in each item: 1 it wins, 0.5 a tie, 0 the baseline wins, and
            anything between; NaN where there is no judgement, so that only the lengths of the item count.
        lengths: characters of the model's answers.
        baseline_lengths: characters of the baseline's.
        rng: draws the resamples; none for a rate without an interval.
        prompts: what is known of AlpacaEval's own prompts; none for others.

    Returns:
        None where fewer items have a judgement than there are folds.
    """
    preferred = np.asarray(preferences, dtype=np.float64)
    judged = np.flatnonzero(~np.isnan(preferred))
    if len(judged) < FOLDS:
        return None
    differences = np.subtract(baseline_lengths, lengths).astype(np.float64)
    spread = differences.std(ddof=1)
    # tanh(D), gamma and 1 of each item that is judged.
    difficulties = prompts.difficulties if prompts is not None else np.zeros(len(preferred))
    features = np.stack([np.tanh(differences / (spread or 1.0)), difficulties, np.ones(len(preferred))], axis=1)
    targets, features_judged, weights = preferred[judged], features[judged], np.ones(len(judged))
    if prompts is not None:
        gamed = np.zeros(len(prompts.gamed_preferences))
        of_gamed = np.stack([np.tanh(prompts.gamed_differences), prompts.gamed_difficulties, gamed], axis=1)
        features_judged = np.concatenate([of_gamed, features_judged])
        targets = np.concatenate([prompts.gamed_preferences, targets])
        weights = np.concatenate([gamed + GAMED_WEIGHT, weights])
    strength = _choose_strength(features_judged, targets, weights)
    at_equal_lengths = features * [0, 1, 1]
    rate = float(_sigma(fit(features_judged, targets, weights[None], strength) @ at_equal_lengths.T).mean())
    if rng is None:
        return MeanInterval(rate)
    count = len(judged)
    draws = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(NUM_RESAMPLES)])
    resampled_weights = np.tile(weights, (NUM_RESAMPLES, 1))
    resampled_weights[:, -count:] *= draws
    coefficients = fit(features_judged, targets, resampled_weights, STRENGTHS[-1])
    rates = (draws * _sigma(coefficients @ at_equal_lengths[judged].T)).sum(axis=1) / count
    return percentile_interval(rate, rates)


def _choose_strength(features: Array, targets: Array, weights: Array) -> float:
    """The inverse strength with the least log loss on items that were left out; of equal ones the least."""
    fold = np.arange(len(targets) - 1, -1, -1) % FOLDS  # scikit-learn's GroupKFold, with a group for each item
    left_out = np.arange(FOLDS)[:, None] == fold
    losses = []
    for strength in STRENGTHS:
        coefficients = fit(features, targets, weights * ~left_out, strength)
        predicted = np.clip(_sigma(coefficients @ features.T), 1e-15, 1 - 1e-15)
        loss = -weights * (targets * np.log(predicted) + (1 - targets) * np.log(1 - predicted))
        losses.append(((loss * left_out).sum(axis=1) / left_out.sum(axis=1)).mean())
    return float(STRENGTHS[int(np.argmin(losses))])


def fit(features: Array, targets: Array, weights: Array, strength: float) -> Array:
    """The coefficients w that minimise `|w|_1 + strength * sum_i weight_i * logloss_i`, by Newton's method.

    Each step minimises the quadratic model with the penalty, coordinate by coordinate, and is halved while it leads
    upwards. Liblinear, which the library calls, minimises the same function and stops earlier.

    Args:
        features: shape (N, F).
        targets: probabilities, shape (N,).
        weights: shape (B, N).
        strength: inverse strength of the penalty.

    Returns:
        Shape (B, F).
    """
    coefficients = np.zeros((len(weights), features.shape[1]))
    products = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    active = np.arange(len(weights))
    for _ in range(MAX_STEPS):
        w, own = coefficients[active], weights[active]
        total = own.sum(axis=1, keepdims=True)
        penalty = 1 / (strength * total)
        predicted = _sigma(w @ features.T)
        slope = (own * (predicted - targets)) @ features / total
        curvature = ((own * predicted * (1 - predicted)) @ products / total).reshape(len(w), *[w.shape[1]] * 2)
        step = _penalised_step(w, slope, curvature, penalty)
        before = _objective(w, features, targets, own / total, penalty)
        for _ in range(MAX_HALVINGS):
            upwards = _objective(w + step, features, targets, own / total, penalty) > before + 1e-15
            if not upwards.any():
                break
            step[upwards] /= 2
        coefficients[active] += step
        active = active[np.abs(step).max(axis=1) > PRECISION]
        if not len(active):
            break
    return coefficients


def _objective(coefficients: Array, features: Array, targets: Array, weights: Array, penalty: Array) -> Array:
    """What is minimised, divided by the strength and the sum of the weights, shape (B,)."""
    logits = coefficients @ features.T
    losses = (weights * (np.logaddexp(0, logits) - targets * logits)).sum(axis=1)
    found: Array = losses + penalty[:, 0] * np.abs(coefficients).sum(axis=1)
    return found


def _penalised_step(coefficients: Array, slope: Array, curvature: Array, penalty: Array) -> Array:
    """The step that minimises `slope * step + step * curvature * step / 2 + penalty * |coefficients + step|_1`."""
    step = np.zeros_like(coefficients)
    for _ in range(MAX_SWEEPS):
        before = step.copy()
        for j in range(coefficients.shape[1]):
            bend = curvature[:, j, j] + 1e-12
            rest = slope[:, j] + (curvature[:, j] * step).sum(axis=1) - bend * step[:, j]
            free = bend * coefficients[:, j] - rest
            step[:, j] = np.sign(free) * np.maximum(np.abs(free) - penalty[:, 0], 0) / bend - coefficients[:, j]
        if np.abs(step - before).max() < PRECISION / 10:
            break
    return step


def _sigma(logits: Array) -> Array:
    probabilities: Array = np.exp(-np.logaddexp(0, -logits))
    return probabilities
