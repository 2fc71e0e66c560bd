"""Rounding of exact influence: measured against float64, warned of, and no judge of other methods."""

import dataclasses

import pytest
import torch
from influence_models import collate, double, make_examples, make_model, warm_moments
from torch import nn

from montessori_pl.influence import AdamW, InfluenceScorer, Noise, trainable_parameters
from montessori_pl.stats.correlation import spearman

EXAMPLES = [collate(make_examples(12, seed=3)), collate(make_examples(12, seed=5))]
REFERENCES = [collate(make_examples(12, seed=4))]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.set_num_threads(1)
    return make_model("llama", "lora", torch.float32)


def scorer(model: nn.Module, lr: float, **settings: object) -> InfluenceScorer:
    params = trainable_parameters(model)
    moments = warm_moments(params)
    if next(iter(params.values())).dtype == torch.float64:  # of exactly the same numbers
        moments = dataclasses.replace(moments, exp_avg_sq={n: m.double() for n, m in moments.exp_avg_sq.items()})
    return InfluenceScorer(model, AdamW(lr, moments=moments), REFERENCES, **settings)  # type: ignore[arg-type]


def exact(model: nn.Module, lr: float) -> list[float]:
    return [one.centred for batch in EXAMPLES for one in scorer(model, lr, method="exact")(batch)]


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e-3, 1e-5, 1e-7])
def test_noise_is_what_float64_does_not_have(model: nn.Module, lr: float) -> None:
    """The measured noise is within a factor of three of the spread of the true errors, over decades of the step."""
    engine = scorer(model, lr, method="exact")
    engine.calibrate(EXAMPLES)
    found, truth = exact(model, lr), exact(double(model), lr)
    errors = torch.tensor(found, dtype=torch.float64) - torch.tensor(truth, dtype=torch.float64)

    assert engine.noise is not None
    rounding = errors.std().item()
    # Curvature adds at most some ten thousandth of the influences.
    assert rounding / 3 < engine.noise.noise < 3 * rounding + 1e-4 * engine.noise.spread


@pytest.mark.slow
def test_where_exact_is_rounding_first_order_is_chosen(model: nn.Module) -> None:
    """Ten thousand times below a usual step: exact ranks loosely, and would have judged first order a failure."""
    lr = 1e-7
    engine = scorer(model, lr, min_agreement=0.9, refine=2.0)
    choice = engine.calibrate(EXAMPLES)
    assert choice is not None
    assert engine.noise is not None
    found = [one for batch in EXAMPLES for one in engine(batch, list(range(12)))]
    truth = exact(double(model), lr)

    assert engine.noise.reliability < 0.9
    assert spearman(exact(model, lr), truth) < 0.9
    assert choice.chosen.method == "first order"
    assert choice.stretch > 1
    assert "lost in rounding" in choice.reason
    assert {one.method for one in found} == {"first order"}, "not refined by what is rounding"
    assert spearman([one.centred for one in found], truth) > 0.99
    assert engine.calibrated == []
    assert engine.warnings() == []


@pytest.mark.slow
def test_who_insists_on_exact_is_warned(model: nn.Module) -> None:
    for lr, warned in ((1e-3, False), (1e-8, True)):
        engine = scorer(model, lr, method="exact")
        assert engine.calibrate(EXAMPLES) is None
        assert bool(engine.warnings()) is warned
        assert all("lost in the rounding of float32" in one for one in engine.warnings())


@pytest.mark.slow
def test_usual_steps_are_compared_as_they_are(model: nn.Module) -> None:
    engine = scorer(model, 1e-3, min_agreement=0.9)
    choice = engine.calibrate(EXAMPLES)

    assert choice is not None
    assert choice.stretch == 1
    assert engine.noise is not None
    assert engine.noise.reliability > 0.9999
    assert [one.centred for one in engine.calibrated] == exact(model, 1e-3), "the exact scores, to the last digit"


def test_reliability_by_hand() -> None:
    """Of a variance of 25, rounding has 9: the correlation with what is left is the root of 16 / 25."""
    assert Noise(noise=3.0, spread=5.0).reliability == pytest.approx(0.8)
    assert Noise(noise=5.0, spread=5.0).reliability == 0
    assert Noise(noise=7.0, spread=5.0).reliability == 0
    assert Noise(noise=0.0, spread=0.0).reliability == 1
    assert Noise(noise=1.0, spread=0.0).reliability == 0
    assert Noise(noise=3.0, spread=5.0).warning(0.8 - 1e-9) is None
