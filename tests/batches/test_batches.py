"""Encoding, padding, and loaders that give every example once an epoch and go on from the middle of one."""

import itertools
import json
import random
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from montessori_pl.batches.collate import collate, collate_pairs
from montessori_pl.batches.encoding import encode_examples, encode_pairs
from montessori_pl.batches.samplers import EpochBatches, FixedBatches, ResumableLoader, Sharing, length_batches
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, PreferencePair, Turn, append_records

LENGTHS = [random.Random(index).randint(1, 100) for index in range(1003)]


@pytest.fixture
def chat_template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer())


def pair(chosen: str, rejected: str, chosen_finished: bool = True, rejected_finished: bool = True) -> PreferencePair:
    return PreferencePair(
        id="p",
        prompt="ask",
        chosen=chosen,
        rejected=rejected,
        chosen_id="c",
        rejected_id="r",
        margin=1.0,
        chosen_finished=chosen_finished,
        rejected_finished=rejected_finished,
    )


class TestEncoding:
    def test_collate_pads_on_the_right(self) -> None:
        """Padding is not attended to and not trained on; a prompt is attended to and not trained on."""
        batch = collate([Rendered([5, 6, 7], [False, True, True]), Rendered([8], [True])], pad_id=9)
        assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]

    def test_examples_without_room_for_a_response_are_left_out(self, chat_template: ChatTemplate) -> None:
        """`<user>ab<assistant>` are four tokens: within five, one token of the response is left; within four, none."""
        examples = [Example(id=str(n), instruction="ab" * n, response="cd") for n in (1, 2)]
        rendered, too_long = encode_examples(examples, chat_template, max_length=5)
        assert [sum(one.completion_mask) for one in rendered] == [1]
        assert [one.id for one in too_long] == ["2"]
        assert encode_examples(examples, chat_template, max_length=4) == ([], examples)

    def test_pairs_keep_whole_completions_and_their_ends(self, chat_template: ChatTemplate) -> None:
        """What was sampled is learned: no end token behind a completion that was cut, no text lost."""
        ((chosen, rejected, *_),) = encode_pairs([pair("think. a", "b", True, False)], chat_template, max_length=64)
        prompt = chat_template.prompt_ids([{"role": "user", "content": "ask"}])
        for side, text, finished in ((chosen, "think. a", True), (rejected, "b", False)):
            assert list(side.input_ids[: len(prompt)]) == prompt
            assert list(side.completion_mask) == [False] * len(prompt) + [True] * (len(side.input_ids) - len(prompt))
            assert chat_template.decode(side.input_ids[len(prompt) :]) == (text, finished)
            assert len(side.input_ids) == len(prompt) + len(text) + finished

    def test_pairs_are_cut_and_left_out_on_both_sides(self, chat_template: ChatTemplate) -> None:
        """The prompt has five tokens: with six, one token of each side is left; with five, none, and the pair goes."""
        pairs = [pair("abc", "d")]
        ((chosen, rejected, *_),) = encode_pairs(pairs, chat_template, max_length=6)
        assert [sum(side.completion_mask) for side in (chosen, rejected)] == [1, 1]
        assert encode_pairs(pairs, chat_template, max_length=5) == []
        assert encode_pairs([pair("", "d", chosen_finished=False)], chat_template, 64) == [], (
            "an empty side has nothing to learn"
        )

    def test_batch_of_pairs_holds_the_chosen_ones_first(self, chat_template: ChatTemplate) -> None:
        encoded = encode_pairs([pair("a", "b"), pair("c", "d")], chat_template, 64)
        batch = collate_pairs(encoded, pad_id=0)
        texts = [chat_template.decode([token for token in row if token >= 0])[0] for row in batch["labels"].tolist()]
        assert texts == ["a", "c", "b", "d"]


class TestEpochBatches:
    def test_every_example_once_an_epoch_in_another_order(self) -> None:
        batches = EpochBatches(LENGTHS, Sharing(8), seed=3)
        epochs = [list(batches) for _ in range(3)]
        for epoch in epochs:
            assert len(epoch) == len(batches) == 126
            assert sorted(index for batch in epoch for index in batch) == list(range(1003))
        assert epochs[0] != epochs[1] != epochs[2]

    def test_order_depends_on_seed_and_epoch_alone(self) -> None:
        one, same, other = (EpochBatches(LENGTHS, Sharing(8), seed=seed) for seed in (3, 3, 4))
        assert [list(one), list(one)] == [list(same), list(same)]
        assert EpochBatches(LENGTHS, Sharing(8), seed=3).batches_of(1) == one.batches_of(1)
        assert other.batches_of(0) != one.batches_of(0)

    def test_grouping_lowers_padding(self) -> None:
        """Padding as a share of all tokens, batches of 8, uniform lengths: near half without, below a tenth with."""

        def padding(batches: list[list[int]]) -> float:
            padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
            return 1 - sum(LENGTHS) / padded

        order = random.Random(0).sample(range(1003), 1003)
        assert padding([order[at : at + 8] for at in range(0, 1003, 8)]) > 0.35
        assert padding(EpochBatches(LENGTHS, Sharing(8), seed=3).batches_of(0)) < 0.1

    def test_lengths_of_following_batches_are_unrelated(self) -> None:
        """Batches are shuffled after grouping: long ones are spread over the epoch."""
        batches = EpochBatches(LENGTHS, Sharing(8), seed=3).batches_of(0)
        means = [sum(LENGTHS[i] for i in batch) / len(batch) for batch in batches]
        half = len(means) // 2
        assert abs(sum(means[:half]) / half - sum(means[half:]) / (len(means) - half)) < 10

    @pytest.mark.parametrize("taken", [0, 1, 7, 125, 126, 130])
    def test_state_goes_on_amid_an_epoch(self, taken: int) -> None:
        """Handed out before and after the restart is what an uninterrupted loader hands out."""
        whole = EpochBatches(LENGTHS, Sharing(8), seed=3)
        expected = [batch for _ in range(3) for batch in whole]
        first = EpochBatches(LENGTHS, Sharing(8), seed=3)
        stream = (batch for _ in range(3) for batch in first)
        got = [next(stream) for _ in range(taken)]
        second = EpochBatches(LENGTHS, Sharing(8), seed=3)
        second.load_state_dict(first.state_dict())
        while len(got) < len(expected):
            got += list(second)
        assert got == expected

    def test_state_of_a_loader(self) -> None:
        loaders = [ResumableLoader(LENGTHS, EpochBatches(LENGTHS, Sharing(8), seed=3), list) for _ in range(2)]
        stream = iter(loaders[0])
        first = [next(stream) for _ in range(5)]
        loaders[1].load_state_dict(loaders[0].state_dict())
        assert first + list(loaders[1]) == list(
            ResumableLoader(LENGTHS, EpochBatches(LENGTHS, Sharing(8), seed=3), list)
        )

    @pytest.mark.parametrize(("batch_size", "accumulate", "world_size"), [(4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)])
    @pytest.mark.parametrize("num_examples", [1000, 1003, 22, 12, 8])
    def test_steps_are_the_same_however_they_are_shared(
        self, num_examples: int, batch_size: int, accumulate: int, world_size: int
    ) -> None:
        """Those of batches of 8 in one process, in the same order unless there is not one example for each batch.

        Grouped as Lightning groups them: so many batches make a step, or fewer at the end of an epoch.
        """
        lengths = LENGTHS[:num_examples]
        whole = [sorted(batch) for batch in EpochBatches(lengths, Sharing(8), seed=3).batches_of(1)]
        ranks = [
            EpochBatches(lengths, Sharing(batch_size, accumulate, world_size), 3, rank) for rank in range(world_size)
        ]
        parts = [batches.batches_of(1) for batches in ranks]
        assert [len(part) for part in parts] == [len(ranks[0])] * world_size
        assert all(1 <= len(batch) <= batch_size for part in parts for batch in part)
        steps = [
            sorted(index for part in parts for batch in part[at : at + accumulate] for index in batch)
            for at in range(0, len(parts[0]), accumulate)
        ]
        assert steps == sorted(whole, key=lambda step: len(step) < accumulate * world_size)
        assert [sorted(step) for step in ranks[0].steps_of(1)] == steps

    def test_fewer_examples_than_processes_need(self) -> None:
        """Of nine examples the last step has one, which both processes take: the mean over it is what it was.

        Of eleven it has three, and with batches of one example, one of the three is taken twice.
        """
        for num_examples, size, expected in ((9, 4, [1, 1]), (9, 1, [1, 1]), (11, 2, [2, 1]), (11, 1, [1, 1, 1, 1])):
            ranks = [EpochBatches(LENGTHS[:num_examples], Sharing(size, 4 // size, 2), 0, rank) for rank in (0, 1)]
            parts = [batches.batches_of(0) for batches in ranks]
            short = min(ranks[0].steps_of(0), key=len)
            number = len(expected) // 2
            at = [index for index, batch in enumerate(parts[0]) if set(batch) <= set(short)]
            assert len(at) == number
            assert [len(part[index]) for index in at for part in parts] == expected
            assert len({index for part in parts for batch in part for index in batch}) == num_examples

    @pytest.mark.parametrize("num_examples", [1000, 1003, 22, 17])
    @pytest.mark.parametrize(
        ("begun", "then"),
        [
            (Sharing(4, 1, 2), [4, 2]),  # batches of two, then again those of four
            (Sharing(4, 1, 4), [2, 1, 4]),
            (Sharing(2, 4, 1), [4, 8]),
            (Sharing(2, 2, 2), [1, 2, 4, 8]),
            (Sharing(8, 1, 1), [8]),
        ],
    )
    def test_steps_go_on_among_another_number_of_processes(
        self, num_examples: int, begun: Sharing, then: list[int]
    ) -> None:
        """Every few steps, and at the end of an epoch, others take over: the same examples in the same steps."""
        lengths = LENGTHS[:num_examples]
        whole = EpochBatches(lengths, begun, seed=3)
        expected = [sorted(step) for epoch in range(3) for step in whole.steps_of(epoch)]
        per_epoch = len(whole.steps_of(0))
        state, found, shares = whole.state_dict(), [], itertools.cycle([begun.world_size, *then])
        for stop in sorted({*range(3, len(expected), 3), per_epoch, 2 * per_epoch, len(expected)}):
            sharing = begun.among(next(shares))
            assert sharing.examples_per_step == begun.examples_per_step
            ranks = [EpochBatches(lengths, sharing, 3, rank) for rank in range(sharing.world_size)]
            for batches in ranks:
                batches.share(sharing, begun)
                batches.load_state_dict(state)
            streams = [itertools.chain.from_iterable([batches] * 3) for batches in ranks]
            while len(found) < stop:
                # As Lightning groups them: so many batches make a step, or fewer at the end of an epoch.
                step = []
                for _ in range(sharing.accumulate_grad_batches):
                    step += [index for stream in streams for index in next(stream)]
                    if ranks[0].next_batch == len(ranks[0]):
                        break
                assert len(step) == len(ranks[0].step)
                found.append(sorted(set(step)))
            state = ranks[0].state_dict()
            assert all(batches.state_dict() == state for batches in ranks)
        assert found == [sorted(set(step)) for step in expected]

    @pytest.mark.parametrize(
        ("begun", "processes"), [(Sharing(4, 1, 2), 3), (Sharing(4, 3, 1), 2), (Sharing(1, 1, 2), 4)]
    )
    def test_steps_that_cannot_be_shared_evenly(self, begun: Sharing, processes: int) -> None:
        with pytest.raises(ValueError, match=f"which {processes} processes cannot share evenly"):
            begun.among(processes)

    def test_what_the_step_of_a_batch_holds(self) -> None:
        """Over its batches and processes, and over how many batches Lightning and DDP will average."""
        tokens = [index + 1 for index in range(12)]
        ranks = [EpochBatches(LENGTHS[:12], Sharing(2, 2, 2), 3, rank) for rank in (0, 1)]
        parts = [[(batch, batches.in_step({"tokens": tokens})) for batch in batches] for batches in ranks]
        assert [len(part) for part in parts] == [4, 4]
        for at in (0, 2):
            step = [one for part in parts for one in part[at : at + 2]]
            total = sum(tokens[index] for batch, _ in step for index in batch)
            assert [found for _, found in step] == [{"tokens": total, "averaged_batches": 4}] * 4


def test_fixed_batches_are_given_as_they_are() -> None:
    batches = FixedBatches([[3, 0], [1]])
    assert list(batches) == list(batches) == [[3, 0], [1]]
    assert len(batches) == 2


def test_length_batches_stay_within_their_bound() -> None:
    """Padded to the longest, no batch holds more tokens than allowed, unless one example alone does."""
    for limit in (1, 50, 150, 4000):
        batches = length_batches(LENGTHS, limit)
        assert sorted(index for batch in batches for index in batch) == list(range(1003))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(LENGTHS[index] for index in batch) <= limit
    assert length_batches([], 10) == []
    assert length_batches([3, 1, 2, 1], 4) == [[1, 3], [2], [0]], "the shortest first, ties in their order"


class TestDataSources:
    def write(self, path: Path, *instructions: str) -> str:
        examples = [
            Example(id=f"{path.stem}-{n}", instruction=text, response="r") for n, text in enumerate(instructions)
        ]
        append_records(path, examples)
        return str(path)

    def test_disjoint_sets_pass(self, tmp_path: Path) -> None:
        reference, test = self.write(tmp_path / "ref.jsonl", "a", "b"), self.write(tmp_path / "test.jsonl", "c")
        DataSources("none", reference, test).check_disjoint()
        DataSources("none", reference).check_disjoint()

    def test_overlap_is_found_whatever_the_case_and_blanks(self, tmp_path: Path) -> None:
        reference = self.write(tmp_path / "ref.jsonl", "a", " What IS\n it? ")
        test = self.write(tmp_path / "test.jsonl", "what is it?", "c")
        with pytest.raises(
            ValueError, match=r"data\.reference .* share 1 instruction, for example ref-1 = test-0; take"
        ):
            DataSources("none", reference, test).check_disjoint()

    def test_instructions_that_are_nearly_the_same_are_found(self, tmp_path: Path) -> None:
        """Fifteen words, alone and in another frame: all three 13-grams of the shorter one are common."""
        question = "how many apples are left when anna gives two of five apples to ben today"
        reference = self.write(tmp_path / "ref.jsonl", "c", f"Please tell me: {question}?", "what is it")
        test = self.write(tmp_path / "test.jsonl", "What IS it", question)
        with pytest.raises(
            ValueError,
            match=r"share 1 instruction, for example ref-2 = test-0 and have 1 instruction nearly in common, "
            r"for example ref-1 and test-1 with 100% of the 13-grams in common; take disjoint rows",
        ):
            DataSources("none", reference, test).check_disjoint()

    def test_a_common_template_passes(self, tmp_path: Path) -> None:
        """15 words at the beginning of 28 each: 3 of 16 different 13-grams."""
        template = "first repeat the request word for word and then give your answer in two paragraphs"
        ends = [" ".join(f"{word}{number}" for number in range(13)) for word in ("a", "b")]
        reference = self.write(tmp_path / "ref.jsonl", f"{template} {ends[0]}")
        test = self.write(tmp_path / "test.jsonl", f"{template} {ends[1]}")
        DataSources("none", reference, test).check_disjoint()

    def test_conversations_are_compared_by_all_that_the_user_says(self, tmp_path: Path) -> None:
        """Two may end, or begin, in the same words; one that stands in both sets is found."""
        asks = [("what is a cat?", "shorter, please"), ("what is a dog?", "shorter, please")]
        one, other = (
            Example(id=first, instruction=last, response="r", history=(Turn("user", first), Turn("assistant", "x")))
            for first, last in asks
        )
        for name, examples in {"ref": [one], "test": [other], "both": [other, one]}.items():
            append_records(tmp_path / f"{name}.jsonl", examples)
        ref, test, both = (str(tmp_path / f"{name}.jsonl") for name in ("ref", "test", "both"))
        DataSources("none", ref, test).check_disjoint()
        with pytest.raises(ValueError, match="share 1 instruction, for example what is a cat\\? = what is a cat\\?"):
            DataSources("none", ref, both).check_disjoint()

    def test_the_account_says_what_was_left_out_and_why(self, tmp_path: Path) -> None:
        path = tmp_path / "ref.jsonl"
        rows = [{"question": "Q", "answer": "A", "topic": "t"}, {"question": "R", "answer": ""}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert DataSources(f"{path}[:1]", str(path)).account() == {
            "seed_tasks": {
                "source": f"{path}[:1]",
                "examples": 1,
                "left_out": {},
                "unread_columns": {"topic": 1},
                "notes": ["data.seed_tasks: columns that are not read: topic (1 row)"],
            },
            "reference": {
                "source": str(path),
                "examples": 1,
                "left_out": {"empty response": 1},
                "unread_columns": {"topic": 1},
                "notes": [
                    f"data.reference: 1 of 2 rows are left out: 1 empty response; the first is row 2 of {path}: the "
                    "response is blank",
                    "data.reference: columns that are not read: topic (1 row)",
                ],
            },
        }

    def test_missing_set_is_named(self, tmp_path: Path) -> None:
        sources = DataSources(str(tmp_path / "seeds.jsonl"), "none")
        with pytest.raises(ValueError, match=r"data\.test is not set, and a stage of the recipe needs it"):
            sources.read("test")
        with pytest.raises(ValueError, match=r"data\.seed_tasks: no file .*seeds\.jsonl"):
            sources.read("seed_tasks")
