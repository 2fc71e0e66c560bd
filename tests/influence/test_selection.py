"""The choice of a method: the cheapest that keeps its promise, or the exact one."""

import json
import math

import pytest
import torch
from influence_models import collate, make_examples, make_model, reference_set, warm_adamw

from montessori_pl.influence import (
    Agreement,
    Candidate,
    ControlVariateInfluence,
    ExactInfluence,
    FirstOrderInfluence,
    ResponseLosses,
    agreement,
    per_example_gradients,
    trainable_parameters,
)
from montessori_pl.influence.scorer import undecided
from montessori_pl.influence.selection import choose, compare_methods, subset_sizes
from montessori_pl.stats.correlation import spearman_bound


def candidate(method: str, cost: float, bound: float) -> Candidate:
    agreed = Agreement(48, 0.9, bound, 0.9, 0.9, 0.9)
    return Candidate(method, None, cost, agreed, spearman_bound=bound, bias=0.0, error=0.0)


CANDIDATES = [
    candidate("first order", 1.0, 0.95),
    candidate("first order, corrected on 4 references", 5.0, 0.98),
    candidate("first order, corrected on 8 references", 9.0, 0.97),
    candidate("exact", 100.0, 1.0),
]


@pytest.mark.parametrize(
    ("min_agreement", "chosen", "cheaper"), [(0.9, 0, 0), (0.95, 0, 0), (0.96, 1, 1), (0.98, 1, 1), (0.99, 3, 3)]
)
def test_the_cheapest_that_reaches_what_is_asked_for(min_agreement: float, chosen: int, cheaper: int) -> None:
    choice = choose(CANDIDATES, min_agreement)

    assert choice.chosen is CANDIDATES[chosen]
    assert choice.candidates == tuple(CANDIDATES)
    expected = "no approximation reached" if cheaper == 3 else f"{cheaper} cheaper ones did not reach it"
    assert expected in choice.reason
    assert f"{min_agreement:g}" in choice.reason
    json.dumps(choice.to_dict())


def test_what_is_not_known_is_not_trusted() -> None:
    unknown = candidate("first order", 1.0, math.nan)

    assert choose([unknown, CANDIDATES[-1]], -2.0).chosen.method == "exact"


def test_subset_sizes() -> None:
    """Doubling from four, at most what was sampled and a quarter of all."""
    assert subset_sizes(32, 256) == [4, 8, 16, 32]
    assert subset_sizes(32, 40) == [4, 8]
    assert subset_sizes(10, 256) == [4, 8]
    assert subset_sizes(15, 15) == []


def test_methods_are_compared_as_they_would_score() -> None:
    """Each candidate's agreement is that of the engine's own scores, and costs are token passes by hand."""
    model = make_model("llama", "lora", torch.float64)
    examples, references = make_examples(10, seed=1), make_examples(24, seed=2)
    loss, params = ResponseLosses(model), trainable_parameters(model)
    update, held = warm_adamw(params, 0.05), reference_set(model, references)
    exact = ExactInfluence(loss, params, update, held)
    order = [*range(5, 24), *range(5)]
    first = FirstOrderInfluence(per_example_gradients(loss, params), params, update, held, order)
    batches, groups = [collate(examples[:4]), collate(examples[4:])], [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]
    known = [one for batch in batches for one in exact(batch)]
    found = compare_methods(first, batches, known, groups, [4, 6])

    truth = [one.centred for one in known]
    engines = {None: first, 4: ControlVariateInfluence(first, 4), 6: ControlVariateInfluence(first, 6), 24: exact}
    own = 3 * (4 * max(len(one.ids) for one in examples[:4]) + 6 * max(len(one.ids) for one in examples[4:])) / 10
    tokens = [len(references[i].ids) for i in order]
    assert [one.num_references for one in found] == [None, 4, 6, 24]
    assert [one.method for one in found][::3] == ["first order", "exact"]
    for one in found:
        scores = [score.centred for batch in batches for score in engines[one.num_references](batch)]
        expected = agreement(scores, truth, groups)
        assert one.agreement.spearman == pytest.approx(expected.spearman, abs=1e-12)
        assert (one.agreement.best, one.agreement.worst, one.agreement.count) == (expected.best, expected.worst, 10)
        assert one.cost == pytest.approx(own + sum(tokens[: one.num_references or 0]))
        assert one.spearman_bound == (1 if one.method == "exact" else spearman_bound(expected.spearman, 10))
        errors = torch.tensor(scores, dtype=torch.float64) - torch.tensor(truth, dtype=torch.float64)
        spread = (errors - errors.median()).abs().median().item()
        assert one.bias == pytest.approx(errors.median().item(), abs=1e-12)
        assert one.error == pytest.approx(1.4826 * spread, abs=1e-12)
    assert found[0].error > found[-1].error == 0
    assert found[-1].agreement.spearman == pytest.approx(1)


def test_undecided_by_hand() -> None:
    """Within .5: in a, 5.0 and 4.6 may be the best, and -1 alone is the worst; b has clear ends; c has one member."""
    values = [5.0, 4.6, 4.0, -1.0, 3.0, 1.0, 2.0, 9.0]
    groups = ["a", "a", "a", "a", "b", "b", "b", "c"]

    assert undecided(values, groups, 0.5) == [0, 1]
    assert undecided(values, groups, 0.4) == [0, 1]
    assert undecided(values, groups, 0.3) == []
    assert undecided(values, groups, 1.0) == [0, 1, 2, 4, 5, 6]
    assert undecided([1.0, 1.0], ["a", "a"], 0.0) == [0, 1], "equal ones are undecided without any error"
    assert undecided([], [], 1.0) == []
