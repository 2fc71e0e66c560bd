"""Synthesize with a scripted teacher: how much is written, what is rejected and why, and when it gives up.

The teacher is a table from prompts and seeds to completions, so that each test says what is sampled.
"""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_runs import StandIn, stage_context

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example, Message, Rejection, Turn, append_records, read_records
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.journal import Journal
from montessori_pl.run_directory.progress import Progress
from montessori_pl.stages import SelfConsistency, StageError, Synthesize
from montessori_pl.stages.generating.first_look import FirstLook
from montessori_pl.synthesis import SelfInstruct
from montessori_pl.synthesis.contamination import Decontamination
from montessori_pl.synthesis.filters import InstructionFilter, ResponseFilter

ASKED = "Write a new task .\n"
WORDS = ["sun", "moon", "star", "rain", "snow", "wind", "lake", "hill", "tree", "bird", "fish", "wolf", "bear", "corn"]


def tagged(instruction: str) -> str:
    return f"I think of something. <instruction>{instruction}</instruction>"


def varied(rng: random.Random) -> str:
    """A completion with an instruction of six words that hardly ever repeats another."""
    return tagged(" ".join(rng.sample(WORDS, 6)))


@dataclasses.dataclass
class ScriptedTeacher(GenerationBackend):
    """Writes what `write` says of a prompt's own randomness, answers in capitals, and takes short prompts only."""

    write: Callable[[random.Random], str] = varied
    answer: Callable[[str], str] = str.upper
    longest: int = 10_000
    finished: bool = True
    prompts: list[str] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)

    def load(self, source: ModelSource) -> None:
        self.events.append(f"load {source.backbone}")

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return len(messages[0]["content"]) <= self.longest

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return [self._complete(request) for request in requests]

    def close(self) -> None:
        self.events.append("close")

    def _complete(self, request: Request) -> Completion:
        text = request.messages[0]["content"]
        if text.startswith(ASKED):
            self.prompts.append(text)
            return Completion(text=self.write(random.Random(request.seed)), finished=True, num_tokens=9)
        return Completion(text=self.answer(text), finished=self.finished, num_tokens=9)


@dataclasses.dataclass
class Workshop:
    """Runs stages in one directory with scripted teachers."""

    root: Path
    num_seed_tasks: int = 4
    inputs: dict[str, Path | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        for role in ("seed_tasks", "reference", "test"):
            path, word = self.root / f"{role}.jsonl", role.replace("seed_tasks", "seeds")
            examples = [
                Example(id=f"{word}-{n}", instruction=f"{word} task number {n}", response="r")
                for n in range(self.num_seed_tasks)
            ]
            if not path.exists():
                append_records(path, examples)
        self.data = DataSources(*(str(self.root / f"{role}.jsonl") for role in ("seed_tasks", "reference", "test")))
        self.shown: list[float] = []
        self.said: list[str] = []

    def run(self, teacher: ScriptedTeacher, seed: int = 5, **settings: Any) -> dict[str, Any]:
        """Run `Synthesize`, or go on with it."""
        settings = {
            "synthesizer": SelfInstruct("classroom", 2, 1),
            "prompts_per_batch": 4,
            "min_acceptance": 0,
            **settings,
        }

        context = stage_context(
            self.root / "iteration_1" / "data",
            seed=seed,
            inputs={"teacher": None, **self.inputs},
            data=self.data,
            teacher=lambda: StandIn("the-teacher"),
            backend=lambda: teacher,
            progress=Progress(lambda progress: self.shown.append(progress.done)),
            say=self.said.append,
        )
        return Synthesize(**settings).run(context)

    @property
    def examples(self) -> list[Example]:
        return read_records(self.root / "iteration_1" / "data" / "examples.jsonl", Example)

    @property
    def rejections(self) -> list[Rejection]:
        return read_records(self.root / "iteration_1" / "data" / "rejections.jsonl", Rejection)

    def files(self) -> dict[str, bytes]:
        directory = self.root / "iteration_1" / "data"
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def hash_is_even(text: str) -> bool:
    """For half of all texts."""
    return sum(text.encode()) % 2 == 0


def one_of(*completions: str) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(completions)


class TestHowMuch:
    @pytest.mark.parametrize("wanted", [1, 15, 16, 17, 30])
    def test_exactly_so_many_examples(self, workshop: Workshop, wanted: int) -> None:
        """Batches are of 4 prompts with 4 samples; what a batch has too much is surplus, and recorded."""
        teacher = ScriptedTeacher()
        metrics = workshop.run(teacher, num_examples=wanted)
        assert metrics["accepted"] == len(workshop.examples) == wanted
        candidates = len(workshop.examples) + len(workshop.rejections)
        assert candidates % 16 == 0
        assert metrics["rejected"] == dict(Counter(rejection.reason for rejection in workshop.rejections))
        assert candidates - wanted == metrics["rejected"].get("surplus", 0) + metrics["rejected"].get(
            "near duplicate", 0
        )
        assert teacher.events == ["load the-teacher", "close"]
        assert workshop.shown[0] == 0
        assert workshop.shown[-1] == wanted

    def test_exactly_so_many_prompts(self, workshop: Workshop) -> None:
        """Six prompts with three samples: eighteen completions, all kept, grouped by prompt, in their order."""
        metrics = workshop.run(ScriptedTeacher(), num_prompts=6, samples_per_prompt=3, max_similarity=None)
        assert metrics["accepted"] == 18
        assert metrics["rejected"] == {}
        expected = [f"data-1-{prompt:05d}-{sample}" for prompt in range(6) for sample in range(3)]
        assert [example.id for example in workshop.examples] == expected
        assert [example.prompt_id for example in workshop.examples] == [id_[:-2] for id_ in expected]
        assert [example.batch for example in workshop.examples] == [0] * 12 + [1] * 6
        for prompt_id, count in Counter(example.prompt_id for example in workshop.examples).items():
            assert count == 3
            prompts = {(e.prompt, e.seed_task_ids) for e in workshop.examples if e.prompt_id == prompt_id}
            assert len(prompts) == 1, "samples of one prompt answer one and the same prompt"

    def test_more_prompts_asked_for_later(self, workshop: Workshop) -> None:
        """Every prompt is asked once, also behind a last batch that was not full."""
        for number in (5, 10):
            metrics = workshop.run(ScriptedTeacher(), num_prompts=number, samples_per_prompt=1, max_similarity=None)
            assert metrics["accepted"] == number
        assert [example.id for example in workshop.examples] == [f"data-1-{prompt:05d}-0" for prompt in range(10)]
        assert [example.batch for example in workshop.examples] == [0] * 4 + [1] + [2] * 4 + [3]
        assert (workshop.shown[0], workshop.shown[-1]) == (0, 10)

    def test_examples_say_where_they_come_from(self, workshop: Workshop) -> None:
        workshop.run(ScriptedTeacher(finished=False), num_examples=3)
        for example in workshop.examples:
            assert example.completion == tagged(example.instruction)
            assert example.completion_finished
            assert example.response == example.instruction.upper()
            assert example.teacher == "the-teacher"
            assert example.prompt.startswith(ASKED)
            assert len(example.seed_task_ids) == 3
            for id_ in example.seed_task_ids:
                assert f"<instruction>seeds task number {id_[-1]}</instruction>" in example.prompt

    def test_instructions_alone(self, workshop: Workshop) -> None:
        """Somebody else may answer them: nobody pays for responses that are not used."""
        metrics = workshop.run(ScriptedTeacher(), num_examples=20, answered=False)
        assert metrics["accepted"] == 20
        assert {example.response for example in workshop.examples} == {""}
        written = metrics["generated_tokens"]
        other = Workshop(workshop.root / "other")
        assert other.run(ScriptedTeacher(), num_examples=20)["generated_tokens"] == written + 20 * 9
        assert [e.instruction for e in other.examples] == [e.instruction for e in workshop.examples]

    def test_later_prompts_show_what_was_written_before(self, workshop: Workshop) -> None:
        """Two seeds and one of our own; in the first batch a third seed stands in."""
        workshop.run(ScriptedTeacher(), num_examples=20)
        ids = {example.id for example in workshop.examples}
        for example in workshop.examples:
            written = [id_ for id_ in example.seed_task_ids if id_ in ids]
            assert len(written) == (1 if example.batch else 0)
            assert all(id_ < example.id for id_ in written)

    def test_needs_either_examples_or_prompts(self) -> None:
        for settings in ({}, {"num_examples": 1, "num_prompts": 1}):
            with pytest.raises(ValueError, match="Synthesize needs either num_examples or num_prompts, found"):
                Synthesize(**settings)
        with pytest.raises(ValueError, match="samples_per_prompt: expected int >= 1 "):
            Synthesize(num_examples=1, samples_per_prompt=0)


class TestRejections:
    def test_each_candidate_is_kept_or_rejected_with_its_reason(self, workshop: Workshop) -> None:
        """One completion of each kind, at random; all are accounted for, with the text that was rejected."""
        reasons = {
            "no tags at all": "no instruction tag",
            tagged("  "): "empty instruction",
            tagged("ab"): "too short",
            tagged("a" * 50): "too long",
            tagged("draw the moon please"): "keyword",
            tagged("- list the planets"): "starts with punctuation",
            tagged("Reference  TASK number 1"): "held out",
            tagged("test task number 3"): "held out",
            tagged("seeds task number 0"): "near duplicate",
            tagged("say nothing to me"): "empty response",
        }
        teacher = ScriptedTeacher(
            write=one_of(*reasons), answer=lambda instruction: "" if instruction == "say nothing to me" else "A"
        )
        workshop.run(teacher, num_prompts=40, instruction_filter=InstructionFilter(max_characters=40))
        assert len(workshop.examples) == 0
        assert len(workshop.rejections) == 160
        assert {rejection.reason for rejection in workshop.rejections} == set(reasons.values())
        repeated = 0
        for rejection in workshop.rejections:
            if rejection.reason == "empty response":
                assert rejection.text == "say nothing to me"
            elif "say nothing" in rejection.text:
                repeated += rejection.reason == "near duplicate"
            else:
                assert reasons[rejection.text] == rejection.reason
            assert rejection.id.startswith(rejection.prompt_id)
            assert rejection.batch == int(rejection.prompt_id[-5:]) // 4
        details = {rejection.reason: rejection.detail for rejection in workshop.rejections}
        assert details["keyword"] == "draw"
        assert details["held out"] in (
            "the same instruction as reference example reference-1",
            "the same instruction as test example test-3",
        )

    def test_near_duplicates_of_seeds_and_of_what_was_accepted(self, workshop: Workshop) -> None:
        """Six of seven words in common, in order: F1 = 2 * 6 / (7 + 7) = .857, more than .7."""
        base = "sun moon star rain snow wind lake"
        near = "sun moon star rain snow wind hill"
        workshop.run(ScriptedTeacher(write=one_of(tagged(base), tagged(near))), num_prompts=4)
        assert len(workshop.examples) == 1
        (kept,) = workshop.examples
        other = near if kept.instruction == base else base
        details = {rejection.detail for rejection in workshop.rejections}
        assert f"ROUGE-L 0.857 with {kept.id}: {kept.instruction}" in details
        assert f"ROUGE-L 1.000 with {kept.id}: {kept.instruction}" in details
        assert any(other in rejection.text for rejection in workshop.rejections)

    def test_what_other_stages_have_written_is_not_repeated(self, tmp_path: Path) -> None:
        """Nor is it shown; a stage that has not run yet has written nothing."""
        first, second = Workshop(tmp_path / "first"), Workshop(tmp_path / "second")
        first.run(ScriptedTeacher(), num_prompts=6)
        known = {example.instruction for example in first.examples}
        second.inputs = {
            "deduplicate_against.data": first.root / "iteration_1" / "data",
            "deduplicate_against.later": None,
        }
        teacher = ScriptedTeacher()
        metrics = second.run(teacher, num_prompts=6, deduplicate_against=["data", "later"])
        assert len(known) > 1
        assert metrics["accepted"] == 0
        assert {rejection.reason for rejection in second.rejections} == {"near duplicate"}
        assert not any(instruction in prompt for instruction in known for prompt in teacher.prompts)
        names = [
            (one.setting, one.name, one.optional)
            for one in Synthesize(1, deduplicate_against=["data", "later"]).reads()
        ]
        assert names[1:] == [("deduplicate_against.data", "data", True), ("deduplicate_against.later", "later", True)]

    @pytest.mark.parametrize("max_similarity", [None, 1.0])
    def test_near_duplicates_are_kept_on_demand_but_not_exact_ones(
        self, workshop: Workshop, max_similarity: float | None
    ) -> None:
        near = [tagged(f"sun moon star rain snow wind {word}") for word in ("lake", "hill")]
        workshop.run(ScriptedTeacher(write=one_of(*near)), num_prompts=4, max_similarity=max_similarity)
        assert len(workshop.examples) == 2
        assert {rejection.reason for rejection in workshop.rejections} == {"near duplicate"}

    @pytest.mark.parametrize(("ngram", "rejected"), [(2, 8), (13, 0)])
    def test_passages_of_held_out_examples_are_rejected_too(
        self, workshop: Workshop, ngram: int, rejected: int
    ) -> None:
        """A response that holds two words in a row of an item, whatever it answers."""
        teacher = ScriptedTeacher(answer=lambda text: f"as in TEST task: {text}")
        metrics = workshop.run(
            teacher, num_prompts=2, max_similarity=None, decontaminate=Decontamination(ngram=ngram, max_overlap=0.3)
        )
        assert metrics["rejected"] == ({"held out": rejected} if rejected else {})

    def test_decontamination_can_be_switched_off(self, workshop: Workshop) -> None:
        teacher = ScriptedTeacher(write=one_of(tagged("test task number 3")))
        workshop.run(teacher, num_prompts=1, decontaminate=False, max_similarity=1.0)
        assert [example.instruction for example in workshop.examples] == ["test task number 3"]

    def test_unfinished_responses(self, tmp_path: Path) -> None:
        """Kept as the original code does, or dropped, as the filter says."""
        kept, dropped = Workshop(tmp_path / "kept"), Workshop(tmp_path / "dropped")
        assert kept.run(ScriptedTeacher(finished=False), num_prompts=1)["accepted"] > 0
        metrics = dropped.run(
            ScriptedTeacher(finished=False), num_prompts=1, response_filter=ResponseFilter(allow_unfinished=False)
        )
        assert metrics["accepted"] == 0
        assert metrics["rejected"]["unfinished response"] > 0

    def test_teacher_that_thinks(self, workshop: Workshop) -> None:
        """A draft in its reasoning is no instruction; the student sees the answer, alignment the whole completion."""
        draft = "<think><instruction>a draft</instruction></think>"
        teacher = ScriptedTeacher(
            write=lambda rng: draft + varied(rng), answer=lambda text: f"<think>how?</think>\n\n{text.upper()}"
        )
        workshop.run(teacher, num_prompts=2)
        assert workshop.examples
        for example in workshop.examples:
            assert "draft" not in example.instruction
            assert example.response == example.instruction.upper()
            assert example.completion.startswith(draft)
        unfinished = ScriptedTeacher(write=lambda rng: "<think>" + varied(rng))
        other = Workshop(workshop.root / "unfinished")
        assert other.run(unfinished, num_prompts=1)["rejected"] == {"unfinished reasoning": 4}


class TestLongPrompts:
    def test_shots_are_dropped_until_the_prompt_fits(self, workshop: Workshop) -> None:
        """A prompt is 19 characters and 47 for each shot, and line breaks between: two fit in 120, three do not."""
        workshop.run(ScriptedTeacher(longest=120), num_examples=8)
        for example in workshop.examples:
            assert len(example.prompt) <= 120
            assert len(example.seed_task_ids) == example.prompt.count("<instruction>") == 2

    def test_prompt_that_never_fits_is_recorded(self, workshop: Workshop) -> None:
        metrics = workshop.run(ScriptedTeacher(longest=30), num_prompts=5)
        assert metrics["rejected"] == {"prompt too long": 5}
        assert [rejection.id for rejection in workshop.rejections] == [f"data-1-{n:05d}" for n in range(5)]

    def test_instruction_without_room_for_a_response(self, workshop: Workshop) -> None:
        """Instructions of six words have 29 or 30 characters; one of 56 words has no room."""
        long = " ".join(WORDS * 4)
        teacher = ScriptedTeacher(write=one_of(tagged(long)), longest=200)
        metrics = workshop.run(teacher, num_prompts=1)
        assert metrics["rejected"] == {"near duplicate": 3, "too long for the context": 1}


class TestSeveralTurns:
    def later(self, workshop: Workshop, number: int) -> Example:
        history = (Turn("user", "begin"), Turn("assistant", "begun"))
        return Example(id=f"later-{number}", instruction=f"later task number {number}", response="r", history=history)

    def test_a_later_turn_is_no_shot(self, workshop: Workshop) -> None:
        append_records(workshop.root / "seed_tasks.jsonl", [self.later(workshop, n) for n in range(40)])
        teacher = ScriptedTeacher()
        workshop.run(teacher, num_prompts=8)
        assert "seeds task" in "".join(teacher.prompts)
        assert "later task" not in "".join(teacher.prompts)

    def test_nothing_but_later_turns(self, workshop: Workshop) -> None:
        (workshop.root / "seed_tasks.jsonl").unlink()
        append_records(workshop.root / "seed_tasks.jsonl", [self.later(workshop, 0)])
        with pytest.raises(StageError, match="has no shots: all 1 seed tasks are conversations of several turns; give"):
            workshop.run(ScriptedTeacher(), num_prompts=1)


class TestFirstLook:
    """Batches of sixteen: after the fourth, 64 completions have been written."""

    def test_a_line_after_the_first_batches(self, workshop: Workshop) -> None:
        workshop.run(
            ScriptedTeacher(write=lambda rng: varied(rng) if rng.random() < 0.5 else "\x1b no"), num_examples=60
        )
        first = [one for one in workshop.rejections if one.batch < 4]
        bad = Counter(one.reason for one in first)["no instruction tag"]
        assert 16 < bad < 48
        kept = workshop.examples[0].instruction
        repeated = len(first) - bad
        also = f", near duplicate {repeated}" if repeated else ""
        assert workshop.said == [
            f"of the first 64 completions {64 - len(first)} were accepted ({1 - len(first) / 64:.0%}), most others "
            f"rejected: no instruction tag {bad}{also}; for example {kept!r}"
        ]

    def test_too_few_accepted(self, workshop: Workshop, tmp_path: Path) -> None:
        """It stops after these batches, and says what to try; who wants to, goes on, to the same bytes."""

        def write(rng: random.Random) -> str:
            return varied(rng) if rng.random() < 0.1 else "\x1b no"

        with pytest.raises(StageError) as error:
            workshop.run(ScriptedTeacher(write=write), num_examples=12, min_acceptance=0.5)
        assert workshop.said[0] in str(error.value)
        assert str(error.value).startswith("iteration_1/data stopped early: of the first 64 completions ")
        assert "less than min_acceptance 0.5: try another way of asking: SelfInstruct with answer_format " in str(
            error.value
        )
        assert "--preview 8 shows what comes of it" in str(error.value)
        assert len(workshop.examples) + len(workshop.rejections) == 64
        with pytest.raises(StageError, match="stopped early: of the first 64"):
            workshop.run(ScriptedTeacher(write=write), num_examples=12, min_acceptance=0.5)
        workshop.run(ScriptedTeacher(write=write), num_examples=12)
        assert len(workshop.said) == 1, "it is said once"
        straight = Workshop(tmp_path / "straight")
        straight.run(ScriptedTeacher(write=write), num_examples=12)
        assert workshop.files() == straight.files()

    def test_reads_no_more_than_the_first_batches(self, workshop: Workshop) -> None:
        """It is taken after each batch: reading all that is there would make long stages slower and slower."""
        workshop.run(ScriptedTeacher(), num_prompts=24)
        directory = workshop.root / "iteration_1" / "data"
        commits = Journal(directory, ["examples.jsonl", "rejections.jsonl"]).commits
        look = FirstLook.of(commits, directory)
        for name in ("examples.jsonl", "rejections.jsonl"):
            path = directory / name
            lines = path.read_bytes().splitlines(keepends=True)
            later = next((n for n, line in enumerate(lines) if json.loads(line)["batch"] >= 4), len(lines))
            path.write_bytes(b"".join(lines[: later + 1]) + b"no record\n")
        assert FirstLook.of(commits, directory) == look

    def test_advice_for_what_the_filters_reject(self, workshop: Workshop) -> None:
        with pytest.raises(
            StageError, match=r"near duplicate 6\d; .*: mend the request, the sampling or the filters; --pre"
        ):
            workshop.run(ScriptedTeacher(write=one_of(tagged("first thing to do"))), num_prompts=20, min_acceptance=0.1)

    def test_what_is_one_too_many_counts_as_accepted(self, workshop: Workshop) -> None:
        workshop.run(ScriptedTeacher(), num_examples=1, prompts_per_batch=32, min_acceptance=0.5)
        assert workshop.said[0].startswith("of the first 128 completions ")

    def test_is_a_part(self) -> None:
        with pytest.raises(ValueError, match="min_acceptance: expected float >= 0 and <= 1, found 5"):
            Synthesize(num_examples=1, min_acceptance=5)


class TestGivingUp:
    def test_patience(self, workshop: Workshop) -> None:
        """Batches of sixteen: after 32 in a row without one that is accepted, no other batch is begun."""
        teacher = ScriptedTeacher(write=one_of("Let me think.", "No."))
        with pytest.raises(StageError) as error:
            workshop.run(teacher, num_examples=10, patience=32)
        said = str(error.value)
        assert said.startswith(
            "iteration_1/data gave up with 0 of 10 wanted, after 32 completions: none of the last 32 completions was "
            "accepted (patience 32). Rejected: no instruction tag: 32. The last ones were: (no instruction tag) '"
        )
        assert said.endswith(
            "What was accepted is kept: raise the limit to go on, ask for 0 to go on without the rest, or mend the "
            "prompt, the sampling or the filters under another --run"
        )
        assert "'Let me think.'" in said or "'No.'" in said
        assert len(workshop.rejections) == 32
        assert teacher.events == ["load the-teacher", "close"], "also then the memory is given back"

    def test_less_is_enough_after_all(self, workshop: Workshop) -> None:
        """What is there is taken, and nobody is asked for more."""
        with pytest.raises(StageError):
            workshop.run(ScriptedTeacher(), num_examples=100, max_candidates_per_example=0.3)
        there = len(workshop.examples)
        assert 0 < there < 100
        teacher = ScriptedTeacher()
        assert workshop.run(teacher, num_examples=there - 1)["accepted"] == there
        assert not teacher.events

    def test_limit_of_candidates(self, workshop: Workshop) -> None:
        """Forty wanted at two completions each: 80 in five batches, of which only three instructions are different."""
        completions = [tagged(text) for text in ("first thing to do", "another one here", "third and last idea")]
        with pytest.raises(StageError) as error:
            workshop.run(ScriptedTeacher(write=one_of(*completions)), num_examples=40, max_candidates_per_example=2)
        said = str(error.value)
        assert "gave up with 3 of 40 wanted, after 80 completions: the limit of 80 completions is reached" in said
        assert (
            "(max_candidates_per_example). Rejected: near duplicate: 77. The last ones were: (near duplicate) " in said
        )
        assert len(workshop.examples) == 3

    def test_raised_limit_goes_on_from_what_is_there(self, workshop: Workshop, tmp_path: Path) -> None:
        """The same bytes as a run that had the higher limit from the start."""
        with pytest.raises(StageError):
            workshop.run(ScriptedTeacher(), num_examples=60, max_candidates_per_example=0.5)
        before = workshop.examples
        assert 0 < len(before) < 60
        workshop.run(ScriptedTeacher(), num_examples=60, max_candidates_per_example=20)
        assert workshop.examples[: len(before)] == before
        straight = Workshop(tmp_path / "straight")
        straight.run(ScriptedTeacher(), num_examples=60)
        assert workshop.files() == straight.files()


class Undecided(ScriptedTeacher):
    """Answers half of all instructions in capitals, and the others each time with another number."""

    def _complete(self, request: Request) -> Completion:
        text = request.messages[0]["content"]
        if text.startswith(ASKED) or hash_is_even(text):
            return super()._complete(request)
        return Completion(text=str(request.seed), finished=True, num_tokens=9)


class TestSelfConsistency:
    def test_instructions_are_kept_whose_answers_agree(self, workshop: Workshop) -> None:
        rule = SelfConsistency(samples=4, min_agreement=0.75)
        metrics = workshop.run(Undecided(), num_examples=24, self_consistency=rule)
        assert metrics["accepted"] == 24
        assert all(hash_is_even(one.instruction) for one in workshop.examples)
        assert all(one.response == one.instruction.upper() for one in workshop.examples)
        undecided = [one for one in workshop.rejections if one.reason == "inconsistent answers"]
        assert len(undecided) == metrics["rejected"]["inconsistent answers"] > 4
        assert not any(hash_is_even(one.text) for one in undecided)
        assert undecided[0].detail.startswith("1 of 4 agree, and min_agreement is 0.75: ")

    def test_each_answer_is_drawn_anew_and_as_it_is_said(self, workshop: Workshop) -> None:
        drawn: list[tuple[int, float]] = []

        class Recorder(ScriptedTeacher):
            def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
                asked = [one for one in requests if not one.messages[0]["content"].startswith(ASKED)]
                drawn.extend((one.seed, sampling.temperature) for one in asked)
                return super().generate(requests, sampling)

        rule = SelfConsistency(samples=3, sampling=Sampling(temperature=1.5, max_tokens=8))
        metrics = workshop.run(Recorder(), num_prompts=4, self_consistency=rule)
        assert metrics["accepted"] == 16
        assert len({seed for seed, _ in drawn}) == 48
        assert Counter(temperature for _, temperature in drawn) == {0.6: 16, 1.5: 32}

    def test_the_first_answer_is_what_it_is_without(self, tmp_path: Path) -> None:
        """So that two recipes that differ in this alone write the same, but for what is rejected."""
        plain, agreed = Workshop(tmp_path / "plain"), Workshop(tmp_path / "agreed")
        plain.run(ScriptedTeacher(), num_prompts=6)
        agreed.run(ScriptedTeacher(), num_prompts=6, self_consistency=SelfConsistency(samples=3))
        assert agreed.files()["examples.jsonl"] == plain.files()["examples.jsonl"]

    def test_an_instruction_that_was_rejected_may_come_again(self, workshop: Workshop) -> None:
        """Within a batch it is a repetition; after a kill nobody would know of it."""
        words = [tagged(f"{one} {two} and so on") for one in WORDS[:4] for two in WORDS[:4]]
        rule = SelfConsistency(samples=2, min_agreement=1.0)
        workshop.run(Undecided(write=one_of(*words)), num_prompts=32, max_similarity=None, self_consistency=rule)
        texts = [(one.batch, one.text) for one in workshop.rejections if one.reason == "inconsistent answers"]
        assert len(set(texts)) == len(texts)
        assert max(Counter(text for _, text in texts).values()) > 1

    def test_answers_that_cannot_differ_are_refused(self) -> None:
        greedy = Sampling(temperature=0.0)
        with pytest.raises(ValueError, match="above 0 in response_sampling, or a sampling of its own"):
            Synthesize(num_examples=1, response_sampling=greedy, self_consistency=SelfConsistency())
        Synthesize(num_examples=1, response_sampling=greedy, self_consistency=SelfConsistency(sampling=Sampling()))
        with pytest.raises(ValueError, match="above 0 in its sampling"):
            Synthesize(num_examples=1, self_consistency=SelfConsistency(sampling=greedy))

    def test_it_needs_answers(self) -> None:
        with pytest.raises(ValueError, match="self_consistency compares answers, and answered is false"):
            Synthesize(num_examples=1, answered=False, self_consistency=SelfConsistency())


class TestDeterminism:
    def test_two_runs_write_the_same_bytes(self, tmp_path: Path) -> None:
        one, two, other = (Workshop(tmp_path / name) for name in ("one", "two", "other"))
        metrics = [one.run(ScriptedTeacher(), num_examples=30), two.run(ScriptedTeacher(), num_examples=30)]
        assert metrics[0] == metrics[1]
        assert one.files() == two.files()
        other.run(ScriptedTeacher(), num_examples=30, seed=6)
        assert other.files()["examples.jsonl"] != one.files()["examples.jsonl"]

    def test_finished_stage_has_nothing_left_to_do(self, workshop: Workshop) -> None:
        metrics = workshop.run(ScriptedTeacher(), num_examples=10)
        before = workshop.files()
        teacher = ScriptedTeacher()
        assert workshop.run(teacher, num_examples=10) == metrics
        assert teacher.events == [], "no model is loaded"
        assert workshop.files() == before

    def test_killed_after_answers_that_were_rejected(self, tmp_path: Path) -> None:
        """Only what was accepted is known after a kill: an instruction without an answer may be written again."""

        class Power(Exception):
            """The power is cut."""

        class Fragile(ScriptedTeacher):
            calls = 0

            def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
                self.calls += 1
                if self.calls == 4:  # the responses of the second batch
                    raise Power
                return super().generate(requests, sampling)

        script: dict[str, Any] = {
            "write": one_of(*(tagged(f"{one} {two} and so on") for one in WORDS for two in WORDS)),
            "answer": lambda instruction: "" if hash_is_even(instruction) else "yes",
        }
        straight, killed = Workshop(tmp_path / "straight"), Workshop(tmp_path / "killed")
        metrics = straight.run(ScriptedTeacher(**script), num_prompts=24, max_similarity=None)
        assert metrics["rejected"]["empty response"] > metrics["rejected"]["near duplicate"] > 0
        with pytest.raises(Power):
            killed.run(Fragile(**script), num_prompts=24, max_similarity=None)
        assert killed.run(ScriptedTeacher(**script), num_prompts=24, max_similarity=None) == metrics
        assert killed.files() == straight.files()

    def test_samples_of_a_prompt_differ_and_seeds_are_never_shared(self, workshop: Workshop) -> None:
        seed_tasks: list[int] = []

        class Recorder(ScriptedTeacher):
            def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
                seed_tasks.extend(request.seed for request in requests)
                return super().generate(requests, sampling)

        workshop.run(Recorder(), num_examples=30)
        assert len(set(seed_tasks)) == len(seed_tasks)
