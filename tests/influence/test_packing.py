"""Packing by length: the cuts that cost least, found among all."""

import itertools
import random

import pytest
import torch

from montessori_pl.influence.packing import pack, packed, padded


def _cost(batches: list[list[int]], lengths: list[int], cost_of_a_pass: int) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) + cost_of_a_pass for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cuts_cost_less(seed: int) -> None:
    """Against all ways to cut nine sorted examples."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 30) for _ in range(9)]
    order = sorted(range(9), key=lambda i: (lengths[i], i))
    found = pack(lengths, max_tokens=80, cost_of_a_pass=12)
    assert [index for batch in found for index in batch] == order
    costs = []
    for cuts in itertools.product((False, True), repeat=8):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), 9]
        batches = [order[a:b] for a, b in itertools.pairwise(edges)]
        if all(len(batch) * max(lengths[i] for i in batch) <= 80 for batch in batches):
            costs.append(_cost(batches, lengths, 12))
    assert _cost(found, lengths, 12) == min(costs)


def test_dear_padding_splits_and_dear_passes_join() -> None:
    """Three of 10 tokens and one of 100: 400 + c together, 130 + 2 c apart; they part below c = 270."""
    lengths = [10, 100, 10, 10]
    assert pack(lengths, 8192, cost_of_a_pass=269) == [[0, 2, 3], [1]]
    assert pack(lengths, 8192, cost_of_a_pass=271) == [[0, 2, 3, 1]]


def test_an_example_beyond_the_budget_stands_alone() -> None:
    assert pack([5, 50, 5], max_tokens=10, cost_of_a_pass=1000) == [[0, 2], [1]]


def test_rows_come_with_their_indices() -> None:
    rows = [
        {
            "input_ids": torch.full((1, length), 7),
            "attention_mask": torch.ones(1, length, dtype=torch.long),
            "labels": torch.full((1, length), 7),
        }
        for length in (3, 1, 2)
    ]
    ((indices, batch),) = packed(rows, max_tokens=100)
    assert indices == [1, 2, 0]
    assert batch["attention_mask"].sum(dim=1).tolist() == [1, 2, 3]
    assert batch["labels"].tolist() == [[7, -100, -100], [7, 7, -100], [7, 7, 7]]
    assert torch.equal(padded([rows[0]])["input_ids"], rows[0]["input_ids"])
