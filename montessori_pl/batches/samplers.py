"""Which examples make a batch: bounds of examples or tokens, length grouping, and loaders that go on amid an epoch."""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Sampler

T = TypeVar("T")


@dataclass(frozen=True)
class Sharing:
    """How the examples of an optimizer step are dealt out."""

    batch_size: int
    """Examples in a batch of one process, at most."""
    accumulate_grad_batches: int = 1
    """Batches of a process in one step."""
    world_size: int = 1
    """Processes."""

    @property
    def batches_per_step(self) -> int:
        """Batches of all processes."""
        return self.accumulate_grad_batches * self.world_size

    @property
    def examples_per_step(self) -> int:
        """Of all batches and processes."""
        return self.batch_size * self.batches_per_step

    def num_batches(self, num_examples: int) -> int:
        """Batches of each process in a step on so many examples: as many as all processes have an example for."""
        at_least = -(-num_examples // (self.batch_size * self.world_size))
        return min(self.accumulate_grad_batches, max(num_examples // self.world_size, at_least))

    def filled(self, step: list[int]) -> list[int]:
        """The examples of a step, the first ones again where a process would have none in one of its batches."""
        cells = self.num_batches(len(step)) * self.world_size
        return step if len(step) >= cells else list(itertools.islice(itertools.cycle(step), cells))

    def among(self, world_size: int) -> "Sharing":
        """The same steps among another number of processes, in batches that are no larger.

        Raises:
            ValueError: they cannot be dealt out evenly.
        """
        accumulate, left = divmod(self.batches_per_step, world_size)
        if not left:
            return Sharing(self.batch_size, accumulate, world_size)
        size, left = divmod(self.examples_per_step, world_size)
        if accumulate or left:
            raise ValueError(
                f"its steps are of {self.examples_per_step} examples in {self.batches_per_step} "
                f"batch{'es' if self.batches_per_step > 1 else ''}, which {world_size} processes cannot share evenly"
            )
        return Sharing(size, 1, world_size)


class EpochBatches(Sampler[list[int]]):
    """Batches of similar length, reshuffled each epoch, that can go on from the middle of one.

    Each epoch's plan depends on the seed and the epoch alone. Examples are shuffled, sorted by length within windows of
    several steps, cut into optimizer steps, and the steps shuffled: little padding, and still a random order. A step's
    examples are then dealt out among its batches and processes. So the steps are the same however many batches and
    processes share one: 8 examples at once, 4 in each of two batches, or 4 in each of two processes.

    Examples that are left over make a short step. Where there is not one for each batch and process, the step has
    fewer batches and comes last in its epoch, because Lightning ends a step early only there; and where that leaves a
    process without an example, the step's first ones are taken again.

    Args:
        lengths: tokens of each example.
        sharing: how a step is dealt out.
        seed: of all epochs.
        rank: which process this is. All get the same number of batches.
    """

    window = 32  # steps that are sorted together: wide enough for little padding, narrow enough to stay random

    def __init__(self, lengths: Sequence[int], sharing: Sharing, seed: int, rank: int = 0) -> None:
        self.lengths, self.sharing, self.seed, self.rank = lengths, sharing, seed, rank
        self.begun = sharing
        """How steps were dealt out when the training began: which steps there are, and their order, come from that."""
        self.epoch = 0
        self.next_batch = 0
        self.step: list[int] = []
        """All examples, of all batches and processes, in the step of the batch that was handed out last."""

    def __len__(self) -> int:
        return self.num_batches(self.sharing)

    def num_batches(self, sharing: Sharing) -> int:
        """Batches of a process in an epoch, where steps are dealt out so."""
        full, left = divmod(len(self.lengths), self.begun.examples_per_step)
        number = full * sharing.accumulate_grad_batches
        return number + sharing.num_batches(len(self.begun.filled([0] * left))) if left else number

    def __iter__(self) -> Iterator[list[int]]:
        if self.next_batch >= len(self):
            self.epoch, self.next_batch = self.epoch + 1, 0
        batches = [(batch, step) for step in self.steps_of(self.epoch) for batch in self._dealt(step)]
        while self.next_batch < len(batches):
            self.next_batch += 1  # before the batch is handed out: who holds it will have trained on it when saving
            batch, self.step = batches[self.next_batch - 1]
            yield batch

    def share(self, sharing: Sharing, begun: Sharing | None = None) -> None:
        """Deal out steps in this way.

        Args:
            sharing: how.
            begun: how they were dealt out when the training began; none for one that begins here.
        """
        self.sharing, self.begun = sharing, begun or sharing

    def state_dict(self) -> dict[str, Any]:
        """Where the batches go on: the epoch and its next batch; and how they are dealt out, now and at first."""
        shares = {"sharing": asdict(self.sharing), "begun": asdict(self.begun)}
        return {"epoch": self.epoch, "next_batch": self.next_batch, **shares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; an iterator that has given no batch yet follows."""
        then = Sharing(**state["sharing"])
        self.epoch, self.next_batch = state["epoch"], self.same_place(state["next_batch"], then)

    def same_place(self, batch: int, then: Sharing) -> int:
        """The batch of an epoch before which as many steps are done as before this one, when they were dealt out so.

        Args:
            batch: the first of a step, or the number of all batches.
            then: how steps were dealt out.
        """
        if then == self.sharing:
            return batch
        if batch >= self.num_batches(then):
            return len(self)
        return batch // then.accumulate_grad_batches * self.sharing.accumulate_grad_batches

    def in_step(self, counts: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """How much there is in the whole step of the batch that was handed out last.

        Args:
            counts: how much each example holds of what losses are means over, for example its `tokens`.

        Returns:
            the sums, over all batches and processes of the step, and as `averaged_batches` the number of batches over
            which a step's gradients are averaged.
        """
        sums = {unit: sum(held[index] for index in self.step) for unit, held in counts.items()}
        return {**sums, "averaged_batches": self.sharing.batches_per_step}

    def batches_of(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch for this process, as indices of examples."""
        return [batch for step in self.steps_of(epoch) for batch in self._dealt(step)]

    def steps_of(self, epoch: int) -> list[list[int]]:
        """The optimizer steps of one epoch, each with the examples of all its batches and processes."""
        rng, size = random.Random(f"{self.seed}/{epoch}"), self.begun.examples_per_step
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        steps = []
        for start in range(0, len(order), self.window * size):
            window = order[start : start + self.window * size]
            steps += chunks(sorted(window, key=lambda index: self.lengths[index]), size)
        rng.shuffle(steps)
        steps.sort(key=lambda step: self.begun.num_batches(len(step)) < self.begun.accumulate_grad_batches)
        return [self.sharing.filled(self.begun.filled(step)) for step in steps]

    def _dealt(self, step: list[int]) -> list[list[int]]:
        """The step's batches of this process: neighbours in length together, and the processes' shares alike."""
        number, every = self.sharing.num_batches(len(step)), self.sharing.world_size
        bounds = [len(step) * place // number for place in range(number + 1)]
        return [step[start:end][self.rank :: every] for start, end in itertools.pairwise(bounds)]


class ResumableLoader(DataLoader[Any]):
    """A loader over `EpochBatches` that tells its position; Lightning takes one that does not for not resumable.

    The position that counts after a restart is the data module's (`stages/training/fit.py` says why).
    """

    def __init__(self, dataset: Sequence[Any], batches: EpochBatches, collate_fn: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, collate_fn=collate_fn)  # type: ignore[arg-type]
        self.batches = batches

    def state_dict(self) -> dict[str, Any]:
        """Where the batches go on."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
