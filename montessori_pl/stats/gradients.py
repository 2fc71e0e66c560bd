"""What the gradients of many examples say together: how well some foretell the others, and how various they are.

Shapes: N prompts, M responses to a prompt, D dimensions of a (projected) gradient.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TEST_SHARE, NUM_SPLITS, SMOOTHING = 0.1, 10, 1e-3
"""Of GRACE, as in the code published with it."""
SMALLEST = 1e-12


def grace(gradients: Sequence[Array], num_splits: int = NUM_SPLITS) -> Array:
    """GRACE (arXiv 2511.02833) of one teacher's responses: the size of unseen gradients beside the seen ones.

        tr(S^-1 T)     S the second moment of the normalized gradients of nine prompts in ten, its eigenvalues drawn
                       towards their mean by a thousandth; T that of the others' gradients, as they are

    It is small where a student's gradients on the responses are short and point where others of them point, so that
    what is learned from some holds for the rest. Lower is better.

    Args:
        gradients: for each of the N prompts those of its responses, shape (M, D); M may differ.
        num_splits: how often the prompts are split.

    Returns:
        one number for each split, shape (num_splits,); the splits are the same for all teachers with N prompts.

    Raises:
        ValueError: there are fewer than two prompts.
    """
    number = len(gradients)
    if number < 2:
        raise ValueError(f"GRACE splits prompts into two parts, and there are {number}")
    seen = number - max(1, int(number * TEST_SHARE))
    found = []
    for seed in range(num_splits):
        order = np.random.default_rng(seed).permutation(number)
        train, test = (np.concatenate([gradients[place] for place in part]) for part in (order[:seen], order[seen:]))
        values, vectors = np.linalg.eigh(_second_moment(_normalized(train)))
        values = values.clip(SMALLEST)
        values = (1 - SMOOTHING) * values + SMOOTHING * values.mean()
        found.append(float((np.square(test @ vectors) / values).sum(axis=1).mean()))
    return np.array(found)


def gradient_vendi(gradients: Array) -> float:
    """G-Vendi (arXiv 2505.20161): as how many examples at right angles these are as various.

    The exponential of the entropy of the eigenvalues of the second moment of normalized gradients: 1 where all point
    the same way, N where each points elsewhere, and D at most.

    Args:
        gradients: shape (N, D), N at least 1.
    """
    values = np.linalg.eigvalsh(_second_moment(_normalized(gradients))).clip(SMALLEST)
    values = values / values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))


def choose_various(values: Sequence[float], gradients: Array, number: int, redundancy: float) -> list[int]:
    """Choose examples one after the other, by what each is worth and how many chosen ones pull its way.

    The next one has the highest value, in standard deviations of all, minus `redundancy` times the mean cosine of its
    gradient with those of the chosen; of equal ones the first.

    Args:
        values: of N examples.
        gradients: shape (N, D).
        number: how many are chosen, at most N.
        redundancy: how much it counts.

    Returns:
        places, in the order of choice.
    """
    rows = _normalized(gradients)
    worth = np.asarray(values, dtype=np.float64)
    worth = (worth - worth.mean()) / max(worth.std(), SMALLEST)
    chosen: list[int] = []
    pulled = np.zeros(len(worth))
    for taken in range(number):
        gain = worth - redundancy * pulled / max(1, taken)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        pulled = pulled + rows @ rows[chosen[-1]]
    return chosen


def _normalized(rows: Array) -> Array:
    scaled: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(SMALLEST)
    return scaled


def _second_moment(rows: Array) -> Array:
    moment: Array = rows.T @ rows / len(rows)
    return moment
