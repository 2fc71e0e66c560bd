"""Choosing how to compute influence: the cheapest method that agrees with the exact one on examples of the same run.

A calibration sample is scored by every method. The agreement asked for is compared with a lower bound of the agreement
seen, so that it also holds beyond the sample; a method that cannot be trusted is passed over, down to exact itself.

Where exact influence is lost in the rounding of float32 (`noise.py`), it is no measure. First order is then compared
with exact on steps so many times as long that rounding does not matter: what first order leaves out grows with the
step, so that it agrees at least as well on the true ones.

Costs are in forward passes of one token: a backward pass counts as two.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from montessori_pl.data.text import without_nan
from montessori_pl.influence.agreement import Agreement, agreement
from montessori_pl.influence.control_variate import correct
from montessori_pl.influence.exact import ExactInfluence
from montessori_pl.influence.first_order import FirstOrderInfluence
from montessori_pl.influence.functional import Batch
from montessori_pl.influence.noise import Noise, stretched
from montessori_pl.influence.results import Influence
from montessori_pl.stats.correlation import spearman_bound

EXACT, FIRST_ORDER = "exact", "first order"
UNNOTICED = 0.02
"""Noise that does not matter, as a share of how much scores differ."""
LONGEST = 2.0**20
"""Steps are not stretched further."""


@dataclass(frozen=True)
class Candidate:
    """One method on the calibration sample."""

    method: str
    """Its name."""
    num_references: int | None
    """References that a correction looks at; none for first order, all of them for exact."""
    cost: float
    """Token forward passes of one example."""
    agreement: Agreement
    """With exact influence."""
    spearman_bound: float
    """What the rank correlation reaches in 97 of 100 samples of this size."""
    bias: float
    """Median of its difference from exact, in nats."""
    error: float
    """Spread of that difference around its median in nats, as a standard deviation; a median too, because a few
    examples with large steps would otherwise speak for all."""


@dataclass(frozen=True)
class Choice:
    """The method that was chosen, and why."""

    chosen: Candidate
    """The method."""
    reason: str
    """One sentence."""
    candidates: tuple[Candidate, ...]
    """All that were compared, cheapest first."""
    stretch: float = 1.0
    """How many times as long the steps were on which methods were compared; 1 unless exact is lost in rounding."""

    def to_dict(self) -> dict[str, object]:
        """As plain JSON values; an agreement that cannot be told is none."""
        plain: dict[str, object] = without_nan(dataclasses.asdict(self))
        return plain


def compare_methods(
    first_order: FirstOrderInfluence,
    batches: Sequence[Batch],
    truth: Sequence[Influence],
    groups: Sequence[Hashable],
    counts: Sequence[int],
) -> list[Candidate]:
    """Score a calibration sample by every method, cheapest first.

    Args:
        first_order: the cheapest method.
        batches: the sample.
        truth: its exact influence.
        groups: for each example its prompt.
        counts: numbers of references on which first order is corrected, at most as many as it has sampled.
    """
    estimates: dict[int, list[Influence]] = {0: []}
    for batch in batches:
        steps = first_order.steps(first_order.move(batch))
        known = truth[len(estimates[0]) :][: len(steps)]
        bulk = first_order.of(steps)
        estimates[0] += bulk
        differences = torch.stack([one.differences for one in known if one.differences is not None])
        for count in counts:
            corrected = correct(first_order, bulk, steps, differences[:, first_order.sample[:count]])
            estimates.setdefault(count, []).extend(corrected)
    candidates = []
    for count, found in estimates.items():
        name = f"{FIRST_ORDER}, corrected on {count} references" if count else FIRST_ORDER
        cost = _cost(first_order, batches, first_order.sample[:count])
        candidates.append(_candidate(name, count or None, cost, found, truth, groups))
    every = range(len(first_order.references))
    candidates.append(_candidate(EXACT, len(every), _cost(first_order, batches, every), truth, truth, groups))
    return sorted(candidates, key=lambda candidate: candidate.cost)


def compare_above_rounding(
    exact: ExactInfluence,
    first_order: FirstOrderInfluence,
    batches: Sequence[Batch],
    truth: Sequence[Influence],
    groups: Sequence[Hashable],
    noise: Noise,
) -> tuple[list[Candidate], float]:
    """The same where `truth` is lost in rounding: first order is compared on longer steps.

    Returns:
        first order and exact, whose bound is what rounding leaves of its correlation with itself; and how many times as
        long the steps were.
    """
    bulk = [one for batch in batches for one in first_order(batch)]
    differ = torch.tensor([one.centred for one in bulk], dtype=torch.float64).std().item()
    stretch = 1.0
    while noise.noise > UNNOTICED * stretch * differ and stretch < LONGEST:
        stretch *= 2
    longer = []
    for batch in batches:
        moved = first_order.move(batch)
        for row in range(len(batch["labels"])):
            place = {name: places[row] for name, places in moved.items()}
            longer.append(exact.after(stretched(exact.null, place, stretch)))
    # Errors are asked for in nats of the true step.
    scaled = [dataclasses.replace(one, centred=one.centred / stretch) for one in longer]
    every = range(len(first_order.references))
    lost = _candidate(EXACT, len(every), _cost(first_order, batches, every), truth, scaled, groups)
    return [
        _candidate(FIRST_ORDER, None, _cost(first_order, batches, []), bulk, scaled, groups),
        dataclasses.replace(lost, spearman_bound=noise.reliability),
    ], stretch


def choose(candidates: Sequence[Candidate], min_agreement: float, stretch: float = 1.0) -> Choice:
    """The cheapest method whose rank correlation with exact is at least so high; exact where there is none."""
    for candidate in candidates:
        if candidate.method == EXACT or candidate.spearman_bound >= min_agreement:
            break
    passed_over = len(candidates) - 1 if candidate.method == EXACT else candidates.index(candidate)
    reason = (
        f"of {len(candidates)} methods the cheapest whose rank correlation with exact is at least {min_agreement:g} "
        f"beyond the {candidate.agreement.count} examples compared (at least {candidate.spearman_bound:.4f}); "
        f"{passed_over} cheaper ones did not reach it"
        if candidate.method != EXACT
        else f"no approximation reached a rank correlation of {min_agreement:g} with exact beyond the "
        f"{candidate.agreement.count} examples compared"
    )
    if stretch > 1:
        reason = f"exact influence is lost in rounding; on steps {stretch:g} times as long, {reason}"
    return Choice(candidate, reason, tuple(candidates), stretch)


def subset_sizes(num_sampled: int, num_references: int) -> list[int]:
    """Numbers of references to try: doubling from four, up to what was sampled and a quarter of all."""
    sizes = []
    size = 4
    while size <= min(num_sampled, num_references // 4):
        sizes.append(size)
        size *= 2
    return sizes


def _cost(first_order: FirstOrderInfluence, batches: Sequence[Batch], looked_at: Sequence[int]) -> float:
    """Token forward passes of one example: its own, and those of the references that are looked at for it."""
    num_examples = sum(len(batch["labels"]) for batch in batches)
    own = 3 * sum(batch["input_ids"].numel() for batch in batches) / num_examples
    return own + sum(first_order.references.lengths[index] for index in looked_at)


def _candidate(
    method: str,
    num_references: int | None,
    cost: float,
    found: Sequence[Influence],
    truth: Sequence[Influence],
    groups: Sequence[Hashable],
) -> Candidate:
    values, exact = [one.centred for one in found], [one.centred for one in truth]
    agreed = agreement(values, exact, groups)
    errors = torch.tensor(values, dtype=torch.float64) - torch.tensor(exact, dtype=torch.float64)
    return Candidate(
        method=method,
        num_references=num_references,
        cost=cost,
        agreement=agreed,
        spearman_bound=1.0 if method == EXACT else spearman_bound(agreed.spearman, agreed.count),
        bias=errors.median().item(),
        # 1.4826 makes the median absolute deviation of a normal distribution its standard deviation.
        error=1.4826 * (errors - errors.median()).abs().median().item(),
    )
