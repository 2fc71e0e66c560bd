"""Examples and pairs as batches: encoding, padding, length grouping, and loaders that go on amid an epoch.

Legend: B batch, T tokens.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from montessori_pl.chat import ChatFormat, Rendered
from montessori_pl.contents import Files
from montessori_pl.locations import in_classroom, locate
from montessori_pl.readers import read_examples, source_path
from montessori_pl.records import Example, PreferencePair
from montessori_pl.synthesis.contamination import ContaminationIndex, normalized

IGNORED = -100
"""Label of a token that is not trained on."""
NEARLY_THE_SAME = 0.8
"""Share of common n-grams above which two instructions are one in two frames. Below it, two benchmark items may as well
have a template in common, and nothing stops the run; synthesis is stricter, because it can write another example."""


def source_file(source: str) -> Path | None:
    """The file or directory that a source of examples names; none for a set of the classroom, which has a version."""
    return None if in_classroom(source) else source_path(source)


@dataclasses.dataclass(frozen=True)
class DataSources:
    """Where the examples come from that nobody has to synthesize."""

    files: ClassVar[Files] = {"seeds": source_file, "reference": source_file, "test": source_file}
    seeds: str
    """Examples whose instructions are shown to the teacher as shots: a name of the classroom, a file of JSON lines, or
    a directory of a Hugging Face dataset; `[a:b]` behind it takes rows a to b."""
    reference: str
    """The reference set, on which influence is measured."""
    test: str | None = None
    """Held-out examples for evaluation; must not share an instruction with the reference set."""

    def read(self, role: str) -> list[Example]:
        """The examples of one role: `seeds`, `reference` or `test`.

        Raises:
            ValueError: there is none; the sentence names the setting.
        """
        source = getattr(self, role)
        if source is None:
            raise ValueError(f"data.{role} is not set, and a stage of the recipe needs it")
        try:
            examples = read_examples(locate(source))
        except (ValueError, OSError) as error:
            raise ValueError(f"data.{role}: {error}") from error
        return examples

    def check_disjoint(self) -> None:
        """Refuse a reference set that holds test items: influence would be measured on the exam.

        Raises:
            ValueError: instructions stand in both, or nearly so.
        """
        if self.test is None:
            return
        tests = self.read("test")
        ids = {normalized(example.instruction): example.id for example in tests}
        index = ContaminationIndex((example.id, example.instruction) for example in tests)
        same, alike = [], []
        for example in self.read("reference"):
            id = ids.get(normalized(example.instruction))
            overlap = index.find(example.instruction)
            if id is not None:
                same.append(f"{example.id} = {id}")
            elif overlap is not None and overlap.share > NEARLY_THE_SAME:
                alike.append(
                    f"{example.id} and {overlap.name} with {overlap.share:.0%} of the {index.ngram}-grams in common"
                )
        clauses = []
        if same:
            clauses.append(f"share {_instructions(same)}, for example {same[0]}")
        if alike:
            clauses.append(f"have {_instructions(alike)} nearly in common, for example {alike[0]}")
        if clauses:
            raise ValueError(
                f"data.reference ({self.reference}) and data.test ({self.test}) {' and '.join(clauses)}; "
                "take disjoint rows, for example FILE[:64] and FILE[64:]"
            )


def _instructions(found: Sequence[str]) -> str:
    return f"{len(found)} instruction{'s' if len(found) > 1 else ''}"


def encode_examples(
    examples: Sequence[Example], chat: ChatFormat, max_length: int
) -> tuple[list[Rendered], list[Example]]:
    """Render examples; those whose response does not fit are left out and returned beside the others.

    Returns:
        the rendered examples, and the examples that have no response token within `max_length`.
    """
    rendered, too_long = [], []
    for example in examples:
        conversation = chat.render(example.messages(), max_length)
        if any(conversation.trained):
            rendered.append(conversation)
        else:
            too_long.append(example)
    return rendered, too_long


class EncodedPair(NamedTuple):
    """A preference pair in tokens."""

    chosen: Rendered
    """Prompt and preferred completion."""
    rejected: Rendered
    """Prompt and the other completion."""
    weight: float = 1.0
    """How much the pair counts."""


def encode_pairs(pairs: Sequence[PreferencePair], chat: ChatFormat, max_length: int) -> list[EncodedPair]:
    """Render both whole completions of each pair exactly as they were sampled; pairs that do not fit are left out."""
    encoded = []
    for pair in pairs:
        ids = chat.prompt_ids(pair.messages())
        sides = [
            chat.cut(Rendered(ids + response, [False] * len(ids) + [True] * len(response)), max_length)
            for response in (
                chat.response_ids(pair.chosen, pair.chosen_finished),
                chat.response_ids(pair.rejected, pair.rejected_finished),
            )
        ]
        if all(any(side.trained) for side in sides):
            encoded.append(EncodedPair(sides[0], sides[1], pair.weight))
    return encoded


def collate(rendered: Sequence[Rendered], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest of this batch: `input_ids`, `attention_mask` and `labels`, each (B, T)."""
    length = max(len(one.input_ids) for one in rendered)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for one in rendered:
        padding = length - len(one.input_ids)
        rows["input_ids"].append(one.input_ids + [pad_id] * padding)
        rows["attention_mask"].append([1] * len(one.input_ids) + [0] * padding)
        labels = [token if trained else IGNORED for token, trained in zip(one.input_ids, one.trained, strict=True)]
        rows["labels"].append(labels + [IGNORED] * padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


def collate_pairs(pairs: Sequence[EncodedPair], pad_id: int) -> dict[str, Tensor]:
    """One batch of 2B sequences, the chosen ones, then the rejected ones, and the pairs' `weights`, shape (B,)."""
    batch = collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id)
    return {**batch, "weights": torch.tensor([pair.weight for pair in pairs])}


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
        batches = self.plan(self.epoch)
        while self.next_batch < len(batches):
            self.next_batch += 1  # before the batch is handed out: who holds it will have trained on it when saving
            yield batches[self.next_batch - 1]

    def state_dict(self) -> dict[str, int]:
        """Where the batches go on: the epoch, and the next batch of it."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there; an iterator that has given no batch yet follows."""
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]

    def plan(self, epoch: int) -> list[list[int]]:
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
            batches += [window[at : at + together] for at in range(0, len(window), together)]
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


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices sorted by length, in batches of at most `max_tokens` tokens with padding (and at least one example)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
