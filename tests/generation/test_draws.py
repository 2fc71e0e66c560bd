"""Draws are those of Transformers' processors with noise for the whole vocabulary, but for less work."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from montessori_pl.generation import Sampling
from montessori_pl.generation.draws import CANDIDATES, SeededDraws, exponential, nucleus, random_bits

SIZES = (5, CANDIDATES[0] + 7, CANDIDATES[1] + 500)


def kept_by_transformers(scores: Tensor, top_p: float) -> Tensor:
    """The tokens that `TopPLogitsWarper` keeps, as booleans (B, V)."""
    ids = torch.zeros(len(scores), 1, dtype=torch.long)
    kept: Tensor = TopPLogitsWarper(top_p)(ids, scores) > -torch.inf
    return kept


def kept_by_us(scores: Tensor, top_p: float) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for row, (values, ids) in enumerate(zip(*nucleus(scores, top_p), strict=True)):
        inside = values > -torch.inf
        assert values[inside].tolist() == scores[row, ids[inside]].sort(descending=True).values.tolist()
        kept[row, ids[inside]] = True
    return kept


@given(
    st.sampled_from(SIZES),
    st.integers(0, 2**32),
    st.sampled_from([0.01, 1.0, 4.0, 20.0]),
    st.sampled_from([0.001, 0.3, 0.5, 0.9, 0.99, 0.999, 0.9999999]),
    st.sampled_from([0.0, 0.25, 2.0]),
)
def test_nucleus_is_that_of_transformers(size: int, seed: int, spread: float, top_p: float, grid: float) -> None:
    """The same scores are kept, from peaked to flat, on a grid (where many are equal), and near one.

    Of equals at the edge `TopPLogitsWarper` keeps any, as its unstable sort has them.
    """
    scores = spread * torch.randn(4, size, generator=torch.Generator().manual_seed(seed))
    if grid:
        scores = grid * (scores / grid).round()
    kept, expected = kept_by_us(scores, top_p), kept_by_transformers(scores, top_p)
    assert kept.sum(dim=1).tolist() == expected.sum(dim=1).tolist()
    for row in range(4):
        assert scores[row][kept[row]].sort().values.tolist() == scores[row][expected[row]].sort().values.tolist()


def test_of_equals_the_earlier_are_in_the_nucleus() -> None:
    """Ten equally likely tokens, and .35 of their mass: the first four. Of a hundred with .995: all."""
    assert nucleus(torch.zeros(1, 10), 0.35)[1][0, :4].tolist() == [0, 1, 2, 3]
    assert kept_by_us(torch.zeros(1, 10), 0.35).sum() == 4
    assert kept_by_us(torch.zeros(1, 100), 0.995).sum() == 100


def test_the_likeliest_token_is_always_in_the_nucleus() -> None:
    assert kept_by_us(torch.tensor([[0.0, 3.0, 1.0]]), 1e-9).tolist() == [[False, True, False]]


@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**63 - 1, -1])
def test_noise_is_that_of_torch_to_the_last_digit(seed: int) -> None:
    """Three times in a row, and for a part of the tokens as for all."""
    ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(3):
        bits, expected = random_bits(ours, 5000), torch.empty(5000).exponential_(generator=theirs)
        assert exponential(bits).tolist() == expected.tolist()
        assert exponential(bits[17:3000:13]).log().tolist() == expected.log()[17:3000:13].tolist()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_tokens_are_those_of_noise_for_the_whole_vocabulary(top_p: float) -> None:
    """With a penalty on what has been written, token by token, also when rows have left."""
    sampling, seeds = Sampling(temperature=0.8, top_p=top_p, presence_penalty=1.5), [3, 1, 4, 1, 5]
    draws, generators = SeededDraws(sampling, seeds), [torch.Generator().manual_seed(seed) for seed in seeds]
    written = torch.zeros(5, 0, dtype=torch.long)
    for step in range(60):
        logits = 4 * torch.randn(len(generators), 300, generator=torch.Generator().manual_seed(step))
        present = torch.zeros_like(logits).scatter(1, written, 1.0)
        scores = (logits - 1.5 * present) / 0.8
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(written, scores)
        noise = torch.stack([torch.empty(300).exponential_(generator=one) for one in generators])
        tokens = draws.next_tokens(logits, written)
        assert tokens.tolist() == (scores - noise.log()).argmax(dim=-1).tolist()
        written = torch.cat([written, tokens[:, None]], dim=1)
        if step in (20, 40):
            kept = [0, 2, 4] if step == 20 else [1]
            draws.keep(kept)
            written, generators = written[kept], [generators[row] for row in kept]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_has_diverged_still_draws_tokens(top_p: float, odd: float) -> None:
    logits = torch.tensor([[0.0, odd, 1.0], [odd, odd, odd]])
    tokens = SeededDraws(Sampling(top_p=top_p), [0, 1]).next_tokens(logits, torch.zeros(2, 0, dtype=torch.long))
    assert all(0 <= token < 3 for token in tokens.tolist())
