"""How a token is drawn: presence penalty, temperature, the nucleus, and noise of which each row has its own.

Legend: B rows, V tokens of the vocabulary, K candidates for the next token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from montessori_pl.generation.base import Sampling

CANDIDATES = (64, 1024, 16384)
"""Among how many tokens a nucleus is looked for before all are sorted; 64 of 49,152 are found 30 times as fast."""
_MANTISSA = 2**53


class SeededDraws:
    """Draws the next token of each row by the row's own generator, so that it does not depend on what stands beside it.

    The largest of the scores plus Gumbel noise is a sample of their softmax, and Gumbel noise is minus the logarithm of
    exponential noise. A generator gives noise for the whole vocabulary at each token, as `Tensor.exponential_` on a CPU
    would, on every device. But it gives bits, and what is computed of them is computed for the candidates alone.

    Args:
        sampling: how tokens are drawn.
        seeds: of the rows.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.generators = [self.generators[row] for row in rows]

    def next_tokens(self, logits: Tensor, written: Tensor) -> Tensor:
        """Draw.

        Args:
            logits: of the next token, shape (B, V), in float32.
            written: the tokens of the completions so far, shape (B, T).

        Returns:
            the tokens, shape (B,), on the device of the logits.
        """
        sampling = self.sampling
        if not sampling.temperature:
            return penalized(logits, written, sampling.presence_penalty).argmax(dim=-1)
        bits = [random_bits(generator, logits.shape[1]) for generator in self.generators]  # while a GPU still computes
        scores = penalized(logits, written, sampling.presence_penalty) / sampling.temperature
        if sampling.top_p < 1:
            values, ids = nucleus(scores, sampling.top_p)
            values, ids = values.cpu(), ids.cpu()
            noise = exponential(torch.stack([row[kept] for row, kept in zip(bits, ids, strict=True)]))
            drawn = (values - noise.log()).argmax(dim=-1, keepdim=True)
            tokens = ids.gather(1, drawn).squeeze(1)
        else:
            tokens = torch.stack(list(map(_largest, scores.cpu(), bits)))
        return tokens.to(logits.device)


def penalized(scores: Tensor, written: Tensor, penalty: float) -> Tensor:
    """Subtract the penalty once from every token that a row has written; `scores` (B, V), `written` (B, T)."""
    return scores.scatter(1, written, scores.gather(1, written) - penalty) if penalty else scores


def nucleus(scores: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of each row's likeliest tokens whose probabilities reach `top_p`; of equals the earlier ones.

    As Transformers' `TopPLogitsWarper` has it, which takes any of equals, but without sorting the vocabulary: the
    likeliest tokens suffice where the set ends among them.

    Args:
        scores: shape (B, V).
        top_p: below 1.

    Returns:
        the scores, falling, and the tokens, each (B, K). Scores of minus infinity fill the rows that have fewer.
    """
    return _nucleus(scores, top_p, CANDIDATES)


def _nucleus(scores: Tensor, top_p: float, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The nucleus, looked for among so many tokens, among more in the rows where they are too few, and among all."""
    size = min([*sizes[:1], scores.shape[1]])
    probabilities = scores.softmax(dim=-1)
    if size < scores.shape[1]:
        ids = scores.topk(size).indices.sort(dim=-1).values  # a stable sort then puts the earlier one of equals first
        values, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
    else:
        values, ids = scores.sort(dim=-1, descending=True, stable=True)
    likeliest = probabilities.gather(1, ids).double()
    # Not one minus what comes before: rounded probabilities do not sum to one, and the limit may be hit exactly.
    total = probabilities.sum(dim=-1, keepdim=True, dtype=torch.float64)
    inside = (total - (likeliest.cumsum(dim=-1) - likeliest)).float() > 1 - top_p
    inside[:, 0] = True
    least = values.gather(1, inside.sum(dim=-1, keepdim=True) - 1)
    too_few = (least <= values[:, -1:]).squeeze(1)  # behind the candidates stand more of the nucleus, or equals
    values = values.masked_fill(~inside, -torch.inf)
    if size == scores.shape[1] or not too_few.any():
        return values, ids
    more, more_ids = _nucleus(scores[too_few], top_p, sizes[1:])
    padding = (0, more.shape[1] - size)
    values, ids = pad(values, padding, value=-torch.inf), pad(ids, padding)
    values[too_few], ids[too_few] = more, more_ids
    return values, ids


def random_bits(generator: torch.Generator, number: int) -> Tensor:
    """So many times 64 bits of the generator, shape (number,)."""
    return torch.empty(number, dtype=torch.int64).random_(-(2**63), None, generator=generator)


def exponential(bits: Tensor) -> Tensor:
    """The noise that `Tensor.exponential_` makes of these bits on a CPU, in float32 and to the last digit."""
    return (-torch.log1p(-_uniform(bits))).float()


def _uniform(bits: Tensor) -> Tensor:
    return (bits & (_MANTISSA - 1)).double() / _MANTISSA


def _largest(scores: Tensor, bits: Tensor) -> Tensor:
    """Where the scores plus Gumbel noise are largest; both (V,).

    Logarithms are taken of a few tokens only: -log(1 - u) is at least u, so that a token whose u is too large to win
    against the likeliest one cannot win.
    """
    likeliest = scores.argmax()
    limit = (scores - scores[likeliest]).exp() * (1.01 * exponential(bits[likeliest]))  # with room for rounding
    ids = (_uniform(bits) > limit).logical_not().nonzero().squeeze(1)  # all, if the scores of a model are NaN
    return ids[(scores[ids] - exponential(bits[ids]).log()).argmax()]
