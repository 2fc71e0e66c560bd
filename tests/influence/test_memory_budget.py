"""A budget in bytes: what is planned, what does not fit, and that blocks change no score."""

from typing import Any

import pytest
import torch
from influence_models import collate, make_examples, make_model, warm_adamw
from test_memory import peak_bytes
from torch import nn

from montessori_pl.influence import (
    AdamW,
    InfluenceScorer,
    default_budget,
    plan_memory,
    row_blocks,
    trainable_parameters,
)

PARAMS = {"a": torch.zeros(10, 20), "b": torch.zeros(50)}
COPY = 4 * 250
BATCH, REFERENCES = collate(make_examples(9, seed=3)), [collate(make_examples(12, seed=4))]


@pytest.mark.parametrize(
    ("copies", "kept", "at_once"),
    [
        (7, 0, 0),  # the shared ones and not all of one example's
        (8, 0, 1),
        (9, 0, 1),
        (10, 1, 1),
        (15, 2, 2),
        (16, 4, 2),
        (70, 16, 8),  # 62 more than the first example takes: half of them would be 31, and a power of two is 16
        (200, 32, 32),
    ],
)
def test_plan_by_hand(copies: int, kept: int, at_once: int) -> None:
    """Four copies are shared, an example takes four, a reference one; 32 references are wanted."""
    plan = plan_memory(PARAMS, copies * COPY + 3, wanted=32, for_examples=copies * COPY)

    assert (plan.copy, plan.kept_gradients, plan.examples_at_once) == (COPY, kept, at_once)
    assert (4 + kept + 4 * at_once) * COPY <= plan.budget or at_once == 0


@pytest.mark.parametrize(("copies", "at_once"), [(0, 1), (3, 1), (4, 2), (12, 4), (1000, 16)])
def test_more_than_one_example_may_take_so_much(copies: int, at_once: int) -> None:
    """Of 92 copies that one example leaves, 32 are the references', and 60 have room for 15 examples more."""
    plan = plan_memory(PARAMS, 100 * COPY, wanted=32, for_examples=copies * COPY)

    assert (plan.kept_gradients, plan.examples_at_once) == (32, at_once)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.set_num_threads(1)
    return make_model("llama", "all", torch.float64)


def scored(model: nn.Module, copies: int | None, **settings: Any) -> list[tuple[float, float]]:
    params = trainable_parameters(model)
    size = sum(param.nbytes for param in params.values())
    budget = copies * size if copies is not None else None
    scorer = InfluenceScorer(model, warm_adamw(params, 1e-3), REFERENCES, memory_budget=budget, **settings)
    scorer.calibrate([BATCH])
    return [(one.plain, one.centred) for one in scorer(BATCH, [0, 0, 0, 1, 1, 1, 2, 2, 2])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "copies"), [("first_order", 8), ("first_order", 16), ("control_variate", 17), ("auto", 20)]
)
def test_blocks_change_no_score(model: nn.Module, method: Any, copies: int) -> None:
    few, many = (scored(model, size, method=method, num_references=4, min_agreement=0.5) for size in (copies, None))

    torch.testing.assert_close(torch.tensor(few), torch.tensor(many), rtol=1e-9, atol=1e-13)


@pytest.mark.slow
def test_what_does_not_fit_is_not_offered(model: nn.Module) -> None:
    assert scored(model, 7, method="auto") == scored(model, None, method="exact")
    for method, copies in (("first_order", 7), ("control_variate", 10)):
        with pytest.raises(
            ValueError, match=rf"method {method} does not fit into memory_budget: one copy .* takes \d+"
        ):
            scored(model, copies, method=method)


def test_first_order_without_kept_gradients_has_no_standard_error(model: nn.Module) -> None:
    params = trainable_parameters(model)
    budget = 8 * sum(param.nbytes for param in params.values())
    scorer = InfluenceScorer(model, AdamW(1e-3), REFERENCES, method="first_order", memory_budget=budget)

    assert scorer.memory.kept_gradients == 0
    assert all(one.centred_standard_error != one.centred_standard_error for one in scorer(BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("copies", [12, 40])
def test_the_peak_stays_within_the_budget(copies: int) -> None:
    """All weights of a model whose parameters weigh more than what a pass over a few tokens takes."""
    model = make_model("llama", "all", torch.float32, vocab_size=200, hidden_size=128, intermediate_size=256)
    size = sum(param.nbytes for param in trainable_parameters(model).values())
    batch = collate(make_examples(16, seed=3))

    def work() -> object:
        references = [collate(make_examples(6, seed=4))]
        budget = copies * size
        settings: dict[str, Any] = {"method": "first_order", "memory_budget": budget, "batch_tokens": 32}
        scorer = InfluenceScorer(model, AdamW(lr=1e-3), references, **settings)
        return [one.centred for one in scorer(batch)]

    work()
    # Beyond gradients there are the passes' own tensors, well below one copy here.
    assert peak_bytes(work) < (copies + 1) * size


def test_rows_stay_in_order() -> None:
    blocks = list(row_blocks(BATCH, 4))

    assert [len(block["labels"]) for block in blocks] == [4, 4, 1]
    assert torch.equal(torch.cat([block["input_ids"] for block in blocks]), BATCH["input_ids"])


def test_half_of_what_is_free() -> None:
    assert 2**20 < default_budget(torch.device("cpu")) < 2**50
