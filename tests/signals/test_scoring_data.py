"""The examples to be scored: in batches of whole prompts that are the same whoever scores them, and when."""

from types import SimpleNamespace
from typing import Any

import pytest

from montessori_pl.data.chat_template import Rendered
from montessori_pl.data.records import Example
from montessori_pl.signals.scoring_data import ScoringData


def example(number: int, prompt_id: str) -> Example:
    return Example(id=f"e{number}", instruction="i", response="r", prompt_id=prompt_id)


def scoring(lengths: list[int], prompts: list[str], **settings: Any) -> ScoringData:
    """Examples of these lengths, each of one response token, for these prompts."""
    examples = [example(number, prompt) for number, prompt in enumerate(prompts)]
    rendered = [Rendered(list(range(1, length + 1)), [False] * (length - 1) + [True]) for length in lengths]
    return ScoringData(examples, rendered, rendered[:1], pad_id=0, **settings)


def dealt(data: ScoringData, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """The rows of the batches that one process gets."""
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return [batch["rows"] for batch in data.predict_dataloader()]


MIXED = ([4, 6, 5, 3, 9, 2, 2, 8], ["p", "q", "p", "q", "r", "r", "", ""])


def test_prompts_stay_together_within_the_bound() -> None:
    """p (0, 2) of width 5 and q (1, 3) of width 6: together 4 * 6 = 24 tokens; r (4, 5) is 18 wide alone and more than
    20 with others; examples without a prompt stand for themselves: 2 and 8 tokens, 16 together."""
    data = scoring(*MIXED, batch_tokens=24)
    assert data.batches() == [[0, 2, 1, 3], [4, 5], [6, 7]]
    assert scoring(*MIXED, batch_tokens=20).batches() == [[0, 2], [1, 3], [4, 5], [6, 7]]
    assert scoring(*MIXED, batch_tokens=1).batches() == [[0, 2], [1, 3], [4, 5], [6], [7]], "a prompt is never divided"
    assert data.groups(range(8)) == ["p", "q", "p", "q", "r", "r", "e6", "e7"]


def test_batches_are_dealt_out_without_repeats() -> None:
    lengths, prompts = [5] * 14, [f"p{number // 2}" for number in range(14)]
    parts = [dealt(scoring(lengths, prompts, batch_tokens=10), rank, 3) for rank in range(3)]
    assert parts == [[[0, 1], [6, 7], [12, 13]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_was_scored_is_left_out_and_changes_no_batch(world_size: int) -> None:
    """A batch of which a part was scored is scored again, as it was."""
    for done in range(len(MIXED[0]) + 1):
        scored = [f"e{number}" for number in range(done)]
        data = scoring(*MIXED, batch_tokens=24, scored=scored)
        found = [batch for rank in range(world_size) for batch in dealt(data, rank, world_size)]
        assert data.batches() == scoring(*MIXED, batch_tokens=24).batches()
        left = [batch for batch in data.batches() if not {f"e{row}" for row in batch} <= set(scored)]
        # A process for which there is none scores the last one too.
        assert sorted(found) == sorted(left + left[-1:] * (world_size - len(left)))


def test_sample_holds_whole_prompts() -> None:
    data = scoring([5] * 30, [f"p{number // 3}" for number in range(30)], batch_tokens=20)
    for wanted, size in ((1, 3), (3, 3), (4, 6), (29, 30), (100, 30)):
        rows = [row for batch in data.sample(wanted, seed=0) for row in batch]
        assert len(rows) == len(set(rows)) == size
        assert all({row // 3 * 3 + n for n in range(3)} <= set(rows) for row in rows)
        assert all(len(batch) * 5 <= 20 for batch in data.sample(wanted, seed=0))
    assert data.sample(9, seed=0) == data.sample(9, seed=0) != data.sample(9, seed=1)


def test_what_the_student_does_not_see_stands_last_and_apart() -> None:
    """Rows 1 and 4 end before their responses, and row 4 is of the prompt of row 3: the others' batches stay."""
    lengths, prompts = [5, 9, 5, 4, 4, 3], ["p", "q", "p", "r", "r", "s"]
    fitting = [0, 2, 3, 5]
    without = scoring([lengths[n] for n in fitting], [prompts[n] for n in fitting], batch_tokens=10)
    data = scoring(lengths, prompts, batch_tokens=10)
    for row in (1, 4):
        example, rendered = data.items[row]
        data.items[row] = (example, Rendered(rendered.input_ids, [False] * len(rendered.completion_mask)))
    assert [[fitting[row] for row in batch] for batch in without.batches()] == [[0, 2], [3, 5]]
    assert data.batches() == [[0, 2], [3, 5], [1], [4]]


def test_batches_are_padded_tensors_with_their_rows() -> None:
    batch = scoring(*MIXED).collate([3, 5])
    assert batch["rows"] == [3, 5]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3], [-100, 2, -100]]
    assert scoring(*MIXED).reference_batch()["input_ids"].tolist() == [[1, 2, 3, 4]]
