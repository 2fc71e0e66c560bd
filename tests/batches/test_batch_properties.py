"""Batches of any lengths against slow and obvious references: what stands together, and every token and label."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from montessori_pl.batches.collate import Side, collate, pad
from montessori_pl.batches.samplers import chunks, group_batches, length_batches
from montessori_pl.data.chat_template import Rendered
from montessori_pl.influence.packing import padded

PAD_ID = 9
LENGTHS = st.lists(st.integers(1, 8), max_size=40)
LIMITS = st.integers(1, 40)
IDS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=8), min_size=1, max_size=6)


def slowly_batched(groups: list[list[int]], lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Each group joins the last batch if both, padded to their longest example, stay within the bound."""
    batches: list[list[int]] = []
    for group in groups:
        joined = [*batches[-1], *group] if batches else group
        if batches and len(joined) * max(lengths[index] for index in joined) <= max_tokens:
            batches[-1] = joined
        else:
            batches.append(group)
    return batches


def slowly_padded(rows: list[list[int]], value: int, side: Side = "right") -> Tensor:
    """Cell by cell."""
    width = max(map(len, rows))
    tensor = torch.full((len(rows), width), value)
    for number, row in enumerate(rows):
        first = width - len(row) if side == "left" else 0
        for place, token in enumerate(row):
            tensor[number, first + place] = token
    return tensor


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Lengths, and their indices in groups that need not follow each other, in any order."""
    lengths = draw(LENGTHS)
    groups: dict[int, list[int]] = {}
    for index in range(len(lengths)):
        groups.setdefault(draw(st.integers(0, 12)), []).append(index)
    return draw(st.permutations(list(groups.values()))), lengths


@given(grouped(), LIMITS)
def test_groups_join_while_they_fit(drawn: tuple[list[list[int]], list[int]], max_tokens: int) -> None:
    groups, lengths = drawn
    before = [list(group) for group in groups]
    assert group_batches(groups, lengths, max_tokens) == slowly_batched(groups, lengths, max_tokens)
    assert groups == before, "what was given is not changed"


@given(LENGTHS, LIMITS)
def test_sorted_examples_are_groups_of_one(lengths: list[int], max_tokens: int) -> None:
    order = [index for _, index in sorted((length, index) for index, length in enumerate(lengths))]
    assert length_batches(lengths, max_tokens) == slowly_batched([[index] for index in order], lengths, max_tokens)


@given(st.lists(st.integers()), st.integers(1, 50))
def test_chunks_are_full_but_for_the_last(items: list[int], size: int) -> None:
    found = chunks(items, size)
    assert [item for chunk in found for item in chunk] == items
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(0 < len(chunk) <= size for chunk in found)


@given(IDS, st.sampled_from(["left", "right"]))
def test_ids_are_padded_on_either_side(ids: list[list[int]], side: Side) -> None:
    batch = pad(ids, PAD_ID, side)
    assert list(batch) == ["input_ids", "attention_mask"]
    assert torch.equal(batch["input_ids"], slowly_padded(ids, PAD_ID, side))
    assert torch.equal(batch["attention_mask"], slowly_padded([[1] * len(row) for row in ids], 0, side))
    assert all(tensor.dtype == torch.long for tensor in batch.values())


@given(IDS, st.randoms(use_true_random=False))
def test_labels_are_the_trained_tokens(ids: list[list[int]], rng: random.Random) -> None:
    """Rendered examples, and the same ones as tensors, which influence pads with zeros."""
    rendered = [Rendered(row, [rng.random() < 0.5 for _ in row]) for row in ids]
    labels = [
        [token if trained else -100 for token, trained in zip(one.input_ids, one.completion_mask, strict=True)]
        for one in rendered
    ]
    expected = {"attention_mask": slowly_padded([[1] * len(row) for row in ids], 0)}
    expected |= {"input_ids": slowly_padded(ids, PAD_ID), "labels": slowly_padded(labels, -100)}
    batch = collate(rendered, PAD_ID)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in batch.items())

    rows = padded([collate([one], PAD_ID) for one in rendered])
    expected["input_ids"] = slowly_padded(ids, 0)
    assert rows.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in rows.items())
