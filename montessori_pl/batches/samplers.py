"""Which examples make a batch: bounds of examples or tokens, length grouping, and loaders that go on amid an epoch."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Sampler

T = TypeVar("T")


class EpochBatches(Sampler[list[int]]):
    """Batches of similar length, reshuffled each epoch, that can go on from the middle of one.

    Each epoch's plan depends on the seed and the epoch alone. Examples are shuffled, sorted by length within windows of
    several batches, cut into batches, and the batches shuffled: little padding, and still a random order.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch of one process.
        seed: of all epochs.
        rank: which process this is.
        world_size: how many processes share the work. All get the same number of batches; the few examples that this
            takes more are the plan's first ones again.
    """

    window = 32  # batches that are sorted together: wide enough for little padding, narrow enough to stay random

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.next_batch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        if self.next_batch >= len(self):
            self.epoch, self.next_batch = self.epoch + 1, 0
        batches = self.batches_of(self.epoch)
        while self.next_batch < len(batches):
            self.next_batch += 1  # before the batch is handed out: who holds it will have trained on it when saving
            yield batches[self.next_batch - 1]

    def state_dict(self) -> dict[str, int]:
        """Where the batches go on: the epoch, and the next batch of it."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there; an iterator that has given no batch yet follows."""
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]

    def batches_of(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch for this process, as indices of examples."""
        rng = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        together = self.batch_size * self.world_size
        if self.world_size > 1:  # round and round, where there are fewer examples than one step of all processes takes
            order = list(itertools.islice(itertools.cycle(order), len(self) * together))
        batches = []
        for start in range(0, len(order), self.window * together):
            window = sorted(order[start : start + self.window * together], key=lambda index: self.lengths[index])
            batches += chunks(window, together)
        rng.shuffle(batches)
        return [batch[self.rank :: self.world_size] for batch in batches]


class ResumableLoader(DataLoader[Any]):
    """A loader over `EpochBatches` that tells its position; Lightning takes one that does not for not resumable.

    The position that counts after a restart is the data module's (`stages/training/fit.py` says why).
    """

    def __init__(self, dataset: Sequence[Any], batches: EpochBatches, collate_fn: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, collate_fn=collate_fn)  # type: ignore[arg-type]
        self.batches = batches

    def state_dict(self) -> dict[str, int]:
        """Where the batches go on."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.batches.load_state_dict(state)


class FixedBatches(Sampler[list[int]]):
    """Batches that were decided beforehand; Lightning wants a sampler, not a list."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def chunks(items: Sequence[T], size: int) -> list[list[T]]:
    """The items in their order, `size` at a time; the last chunk may have fewer."""
    return [list(items[at : at + size]) for at in range(0, len(items), size)]


def group_batches(groups: Iterable[Sequence[int]], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Whole groups in their order, in batches of at most `max_tokens` tokens with padding (and at least one group).

    Args:
        groups: indices of the examples that stay together.
        lengths: tokens of each example.
        max_tokens: most tokens of a batch; a group with more is a batch of its own.
    """
    batches: list[list[int]] = []
    width = 0
    for group in groups:
        longest = max(lengths[index] for index in group)
        wider = max(width, longest)
        if batches and (len(batches[-1]) + len(group)) * wider <= max_tokens:
            batches[-1] += group
            width = wider
        else:
            batches.append(list(group))
            width = longest
    return batches


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices sorted by length, in batches of at most `max_tokens` tokens with padding (and at least one example)."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return group_batches(([index] for index in order), lengths, max_tokens)
