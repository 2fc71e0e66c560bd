"""The floor of float32: how much of an exact influence is rounding.

An exact influence is the difference of two losses that are nearly the same. The shorter the step, the smaller the
difference, while the rounding of the losses and of the moved parameters stays: below some step nothing else is left.

Along the way of a step, influence is a smooth function of how far one goes; what is not smooth about it is noise. For
f at 1, 1 + h and 1 + 2h times the step, f(1) - 2 f(1 + h) + f(1 + 2h) has six times the variance of the noise. What
curvature adds is h^2 f'', some ten thousandth of the influence for h = .01. A step of which a hundredth would be
rounded away takes a larger h; it is so short that it has no curvature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from montessori_pl.influence.exact import ExactInfluence, one_step
from montessori_pl.influence.functional import Batch, unpadded
from montessori_pl.influence.updates import Params

NEAREST, FARTHEST = 0.01, 4.0
"""Bounds of h."""
ROUNDINGS = 256
"""By so many units in the last place a parameter moves from one place to the next: nearer ones round alike, so that
their noise cancels. On the classroom's adapter at lr 1e-7, whose noise against float64 is 7e-8 nats, 16 find 4e-8 and
256 find 1e-7. Where all weights move at 1e-6, 256 find twice the noise, because of curvature, and the spread is more
than a hundred times as large."""
EXAMPLES = 8
"""Examples that the noise is measured on."""


@dataclass(frozen=True)
class Noise:
    """The rounding of exact influence, beside how much the influences of a sample differ."""

    noise: float
    """Standard deviation of what rounding adds to one centred influence, in nats."""
    spread: float
    """Standard deviation of the centred influences of the sample, in nats; rounding is part of it. Of one, its size."""

    @property
    def reliability(self) -> float:
        """Correlation of exact influence as computed with what it would be without rounding."""
        if self.noise == 0:
            return 1.0
        return max(0.0, 1 - (self.noise / self.spread) ** 2) ** 0.5 if self.spread > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        """As plain JSON values."""
        return {"noise": self.noise, "spread": self.spread, "reliability": self.reliability}

    def warning(self, min_agreement: float) -> str | None:
        """What there is to say where rounding leaves less agreement than is asked for."""
        if self.reliability >= min_agreement:
            return None
        return (
            f"exact influence is lost in the rounding of float32: its noise is {self.noise:.2g} nats, the scores of "
            f"the sample differ by {self.spread:.2g}; first order has a much lower floor (method: first_order), or "
            "take a larger lr"
        )


def measure_noise(exact: ExactInfluence, batches: Sequence[Batch], values: Sequence[float]) -> Noise:
    """Measure the rounding on the first examples.

    Args:
        exact: what computes influence.
        batches: the examples.
        values: the centred influence of at least those that are looked at, and of others, whose spread is taken.
    """
    examples = [one for batch in batches for one in unpadded(batch)][:EXAMPLES]
    squares = []
    for example, value in zip(examples, values, strict=False):
        moved = one_step(exact.loss, exact.params, example, exact.update)
        apart = _apart(exact.null, moved)
        second, third = (exact.after(stretched(exact.null, moved, 1 + n * apart)).centred for n in (1, 2))
        squares.append((value - 2 * second + third) ** 2 / 6)
    spread = torch.tensor(list(values), dtype=torch.float64).std().item() if len(values) > 1 else abs(values[0])
    return Noise((sum(squares) / len(squares)) ** 0.5, spread)


def _apart(null: Params, moved: Params) -> float:
    """The share of a step that moves most parameters by some units in the last place."""
    units = torch.cat([(p.abs() * torch.finfo(p.dtype).eps / (moved[n] - p).abs()).flatten() for n, p in null.items()])
    # Parameters that do not move at all are infinitely many units apart, and those at zero too are no number.
    return min(FARTHEST, max(NEAREST, ROUNDINGS * units.nan_to_num(nan=0.0).median().item()))


def stretched(null: Params, moved: Params, factor: float) -> Params:
    """Where a step leads that is so many times as long, measured from the null step."""
    return {name: torch.lerp(null[name], place, factor) for name, place in moved.items()}
