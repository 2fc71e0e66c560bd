"""Augment with a scripted teacher: how much is asked for, what is kept, when it stops, and what it says then."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_runs import StandIn, stage_context

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example, Message, Rejection, append_records, read_records
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.stages import Augment
from montessori_pl.synthesis import SelfInstruct

ASKED = "Write a new task .\n<instruction>"
WORDS = ["sun", "moon", "star", "rain", "snow", "wind", "lake", "hill", "tree", "bird", "fish", "wolf", "bear", "corn"]


def tagged(instruction: str) -> str:
    return f"I think of something. <instruction>{instruction}</instruction>"


def varied(rng: random.Random, shot: str) -> str:
    """Something of six words like the shot: it begins with the same word and hardly ever repeats another."""
    return tagged(" ".join([shot.split()[0], *rng.sample(WORDS, 6)]))


class Power(Exception):
    """The power is cut."""


@dataclasses.dataclass
class ScriptedTeacher(GenerationBackend):
    """Writes what `write` says of the shot and a prompt's own randomness; fails at one call of `generate`."""

    write: Callable[[random.Random, str], str] = varied
    answer: Callable[[str], str] = str.upper
    fails_at: int | None = None
    asked: list[list[str]] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)
    calls: int = 0

    def load(self, source: ModelSource) -> None:
        self.events.append(f"load {source.backbone}")

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise Power
        prompts = [request.messages[0]["content"] for request in requests]
        if prompts and prompts[0].startswith(ASKED):
            self.asked.append([prompt.removeprefix(ASKED).removesuffix("</instruction>") for prompt in prompts])
        return [self._complete(prompt, request.seed) for prompt, request in zip(prompts, requests, strict=True)]

    def close(self) -> None:
        self.events.append("close")

    def _complete(self, prompt: str, seed: int) -> Completion:
        if not prompt.startswith(ASKED):
            return Completion(text=self.answer(prompt), finished=True, num_tokens=9)
        shot = prompt.removeprefix(ASKED).removesuffix("</instruction>")
        return Completion(text=self.write(random.Random(seed), shot), finished=True, num_tokens=9)


@dataclasses.dataclass
class Workshop:
    """Runs `Augment` in one directory with scripted teachers."""

    root: Path
    iteration: int = 1
    mistakes: Sequence[str] = ("alpha is a task", "beta is a task", "gamma is a task")

    def __post_init__(self) -> None:
        sources = [
            self._write(role, [f"{role} task number {n}" for n in range(3)]) for role in ("seed_tasks", "ref", "test")
        ]
        self.data = DataSources(*map(str, sources))
        self._write("mistakes/examples", self.mistakes)

    def _write(self, name: str, instructions: Sequence[str]) -> Path:
        path = self.root / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        stem = name.split("/")[0]
        append_records(
            path, [Example(id=f"{stem}-{n}", instruction=one, response="r") for n, one in enumerate(instructions)]
        )
        return path

    def known(self, *instructions: str) -> Path:
        """A stage whose examples must not be repeated."""
        return self._write("known/examples", instructions).parent

    def run(self, teacher: ScriptedTeacher, inputs: dict[str, Path | None] | None = None, **settings: Any) -> Any:
        """Run `Augment`, or go on with it."""
        context = stage_context(
            self.directory,
            key=f"iteration_{self.iteration}/more",
            iteration=self.iteration,
            inputs={"examples": self.root / "mistakes", "teacher": None, **(inputs or {})},
            data=self.data,
            teacher=lambda: StandIn("the-teacher"),
            backend=lambda: teacher,
        )
        return Augment("mistakes", **{"synthesizer": SelfInstruct("classroom", 1, 0), **settings}).run(context)

    @property
    def directory(self) -> Path:
        return self.root / f"iteration_{self.iteration}" / "more"

    @property
    def examples(self) -> list[Example]:
        return read_records(self.directory / "examples.jsonl", Example)

    @property
    def rejections(self) -> list[Rejection]:
        return read_records(self.directory / "rejections.jsonl", Rejection)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.directory.iterdir())}


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def counts(workshop: Workshop) -> dict[str, int]:
    """How many examples each mistake has got."""
    return dict(Counter(id_ for example in workshop.examples for id_ in example.seed_task_ids))


class TestHowMuch:
    def test_so_many_for_each_example(self, workshop: Workshop) -> None:
        """Each prompt shows one mistake and nothing else, and the teacher answers what it has written."""
        teacher = ScriptedTeacher()
        metrics = workshop.run(teacher, per_example=4)
        assert counts(workshop) == {"mistakes-0": 4, "mistakes-1": 4, "mistakes-2": 4}
        for example in workshop.examples:
            (seed_id,) = example.seed_task_ids
            mistake = workshop.mistakes[int(seed_id[-1])]
            assert example.prompt == f"Write a new task .\n<instruction>{mistake}</instruction>"
            assert example.instruction.startswith(mistake.split()[0])
            assert example.response == example.instruction.upper()
            assert example.id.startswith(f"more-1-{seed_id}-0-")
        assert (metrics["accepted"], metrics["rejected"]) == (12, {})
        assert (metrics["lacking"], metrics["missing"], metrics["why"]) == (0, 0, {})
        assert "warnings" not in metrics
        assert metrics["generated_tokens"] == 2 * 12 * 9
        assert teacher.events == ["load the-teacher", "close"]

    def test_so_many_in_all(self, workshop: Workshop) -> None:
        """Seven among three."""
        workshop.run(ScriptedTeacher(), num_examples=7)
        assert counts(workshop) == {"mistakes-0": 3, "mistakes-1": 2, "mistakes-2": 2}

    def test_fewer_than_there_are_examples(self, workshop: Workshop) -> None:
        """One for each of the first two; nobody asks for more of the third."""
        teacher = ScriptedTeacher()
        workshop.run(teacher, num_examples=2)
        assert counts(workshop) == {"mistakes-0": 1, "mistakes-1": 1}
        assert teacher.asked == [list(workshop.mistakes[:2])]

    def test_without_examples_nothing_is_written(self, tmp_path: Path) -> None:
        """What a student without a mistake leaves; no model is loaded."""
        workshop, teacher = Workshop(tmp_path, mistakes=()), ScriptedTeacher()
        for settings in ({"per_example": 3}, {"num_examples": 10}):
            metrics = workshop.run(teacher, **settings)
            assert (metrics["accepted"], metrics["missing"]) == (0, 0)
            assert metrics["warnings"] == ["there was no example to augment"]
        assert workshop.examples == workshop.rejections == []
        assert teacher.events == []

    def test_ids_of_iterations_differ(self, tmp_path: Path) -> None:
        first, second = Workshop(tmp_path), Workshop(tmp_path / "second", iteration=2)
        for workshop in (first, second):
            workshop.run(ScriptedTeacher(), per_example=3)
        ids = [example.id for workshop in (first, second) for example in workshop.examples]
        assert len(set(ids)) == len(ids) == 18

    @pytest.mark.parametrize("settings", [{}, {"per_example": 1, "num_examples": 3}])
    def test_needs_either_number(self, settings: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="Augment needs either per_example or num_examples, found per_example"):
            Augment("mistakes", **settings)

    @pytest.mark.parametrize("settings", [{"per_example": 0}, {"per_example": 1, "max_attempts": 0}])
    def test_numbers_are_at_least_one(self, settings: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"expected int >= 1.*, found 0"):
            Augment("mistakes", **settings)


class TestAttempts:
    def test_a_teacher_that_never_writes_one(self, workshop: Workshop) -> None:
        """Three examples, two of each: six completions, then twelve, then eighteen, and then it is over."""
        teacher = ScriptedTeacher(write=lambda rng, shot: "No.")
        metrics = workshop.run(teacher, per_example=2, max_attempts=3)
        assert [len(asked) for asked in teacher.asked] == [6, 12, 18]
        assert workshop.examples == []
        assert metrics["rejected"] == metrics["why"] == {"no instruction tag": 36}
        assert (metrics["lacking"], metrics["missing"]) == (3, 6)
        assert metrics["warnings"] == [
            "3 of 3 examples got fewer than they should, 6 are missing after 3 attempts; rejected of theirs: "
            "no instruction tag 36"
        ]
        idle = ScriptedTeacher()
        assert workshop.run(idle, per_example=2, max_attempts=3) == metrics
        assert idle.asked == [], "the attempts are used up"

    def test_only_those_that_lack_some_are_asked_again(self, workshop: Workshop) -> None:
        """Nothing like beta: it is asked for two, four and six times; what the others got is enough at once."""
        teacher = ScriptedTeacher(write=lambda rng, shot: "No." if "beta" in shot else varied(rng, shot))
        metrics = workshop.run(teacher, per_example=2, max_attempts=3)
        assert [Counter(shot.split()[0] for shot in asked) for asked in teacher.asked] == [
            {"alpha": 2, "beta": 2, "gamma": 2},
            {"beta": 4},
            {"beta": 6},
        ]
        assert counts(workshop) == {"mistakes-0": 2, "mistakes-2": 2}
        assert metrics["warnings"] == [
            "1 of 3 examples got fewer than they should, 2 are missing after 3 attempts; rejected of theirs: "
            "no instruction tag 12"
        ]

    def test_a_later_attempt_fills_up_and_no_more(self, workshop: Workshop) -> None:
        """A third of the completions is usable: the missing ones are written later, and what is too much is surplus."""
        teacher = ScriptedTeacher(write=lambda rng, shot: varied(rng, shot) if rng.random() < 1 / 3 else "No.")
        metrics = workshop.run(teacher, per_example=6, max_attempts=9)
        assert counts(workshop) == {"mistakes-0": 6, "mistakes-1": 6, "mistakes-2": 6}
        assert metrics["missing"] == 0
        assert metrics["rejected"]["surplus"] > 0
        assert 1 < len(teacher.asked) < 9, "no attempt is made without need"
        accepted: Counter[str] = Counter()
        for number, asked in enumerate(teacher.asked):
            expected = {
                mistake: (6 - accepted[f"mistakes-{n}"]) * (number + 1) for n, mistake in enumerate(workshop.mistakes)
            }
            assert Counter(asked) == Counter(expected)
            accepted.update(example.seed_task_ids[0] for example in workshop.examples if example.batch == number)

    def test_what_was_written_is_never_shown(self, workshop: Workshop) -> None:
        teacher = ScriptedTeacher(write=lambda rng, shot: varied(rng, shot) if rng.random() < 1 / 3 else "No.")
        workshop.run(teacher, per_example=6, max_attempts=9)
        assert len(teacher.asked) > 1
        assert {shot for asked in teacher.asked for shot in asked} == set(workshop.mistakes)


class TestRejections:
    LONG = " ".join(f"word{n}" for n in range(21))
    """Twenty-two words with another one behind them; if that differs, F1 = 21 / 22 = .9545."""
    SHORT = " ".join(f"term{n}" for n in range(17))
    """Eighteen words with another one; F1 = 17 / 18 = .9444."""

    @pytest.mark.parametrize("where", ["seed_tasks", "mistakes", "known", "written"])
    def test_near_duplicates(self, tmp_path: Path, where: str) -> None:
        """Of a seed, of a mistake, of what an earlier iteration wrote, and of what was written just now."""
        kept = [f"{self.LONG} one", f"{self.SHORT} one"]
        workshop = Workshop(tmp_path, mistakes=["alpha is a task", *(kept if where == "mistakes" else [])])
        inputs: dict[str, Path | None] = {}
        if where == "seed_tasks":
            append_records(
                Path(workshop.data.seed_tasks),
                [Example(id=f"long-{n}", instruction=text, response="r") for n, text in enumerate(kept)],
            )
        elif where == "known":
            inputs = {"deduplicate_against.known": workshop.known(*kept)}
        elif where == "written":
            first = ScriptedTeacher(write=lambda rng, shot: tagged(rng.choice(kept)))
            workshop.run(first, per_example=3, max_attempts=3)
            assert sorted(example.instruction for example in workshop.examples) == sorted(kept)
        teacher = ScriptedTeacher(
            write=lambda rng, shot: tagged(f"{rng.choice([self.LONG, self.SHORT])} two" if "alpha" in shot else "-")
        )
        deduplicate_against = ["known"] if where == "known" else None
        number = 3 if where == "written" else 1
        metrics = workshop.run(
            teacher, inputs, per_example=number, max_attempts=6, deduplicate_against=deduplicate_against
        )
        new = [example.instruction for example in workshop.examples if example.instruction.endswith("two")]
        assert new == [f"{self.SHORT} two"]
        details = [one.detail for one in workshop.rejections if one.reason == "near duplicate"]
        assert [detail for detail in details if detail.startswith("ROUGE-L 0.955 with") and detail.endswith(kept[0])]
        assert metrics["rejected"]["near duplicate"] == len(details)

    def test_held_out_instructions_are_refused(self, workshop: Workshop) -> None:
        teacher = ScriptedTeacher(
            write=lambda rng, shot: tagged(rng.choice(["Test TASK number 1", "ref task number 2"]))
        )
        metrics = workshop.run(teacher, per_example=1, max_attempts=2)
        assert metrics["rejected"] == {"held out": 9}
        assert workshop.examples == []

    def test_what_stands_later_in_the_recipe_is_not_there_in_the_first_iteration(self, workshop: Workshop) -> None:
        known = Augment("mistakes", per_example=1, deduplicate_against=["training_set"]).reads()[-1]
        assert (known.setting, known.name, known.optional) == ("deduplicate_against.training_set", "training_set", True)
        metrics = workshop.run(
            ScriptedTeacher(), {"deduplicate_against.known": None}, per_example=1, deduplicate_against=["known"]
        )
        assert metrics["accepted"] == 3


class TestKilled:
    @staticmethod
    def teacher(fails_at: int | None = None) -> ScriptedTeacher:
        """Half of what it writes is usable, it repeats itself, and it does not answer everything."""
        tasks = [f"{word} {number} times" for word in WORDS for number in range(2)]
        return ScriptedTeacher(
            write=lambda rng, shot: tagged(f"{shot.split()[0]} {rng.choice(tasks)}") if rng.random() < 0.5 else "No.",
            answer=lambda instruction: "" if "1 times" in instruction else instruction.upper(),
            fails_at=fails_at,
        )

    def test_at_every_call(self, tmp_path: Path) -> None:
        """A resumed run writes the same bytes as an undisturbed one, wherever the power was cut."""
        settings: dict[str, Any] = {"per_example": 5, "max_attempts": 4, "prompts_per_batch": 2}
        straight, undisturbed = Workshop(tmp_path / "straight"), self.teacher()
        expected = straight.run(undisturbed, **settings)
        assert expected["rejected"].keys() >= {"near duplicate", "empty response", "no instruction tag"}
        assert undisturbed.calls > 6
        for call in range(1, undisturbed.calls + 1):
            workshop = Workshop(tmp_path / str(call))
            with pytest.raises(Power):
                workshop.run(self.teacher(fails_at=call), **settings)
            with open(workshop.directory / "examples.jsonl", "a") as file:
                file.write('{"id": "never committed')
            assert workshop.run(self.teacher(), **settings) == expected
            assert workshop.files() == straight.files()


def test_the_default_request_shows_one_example(tmp_path: Path) -> None:
    """Our own words for any teacher; the example stands last in them, and nothing else is shown."""
    prompt, shown = Augment("mistakes", per_example=1).rules.synthesizer.prompt(
        random.Random(0),
        [Example(id="m", instruction="Add {2} and 3.", response="5")],
        [Example(id="w", instruction="Add 4 and 5.", response="9")],
    )
    assert shown == ("m",)
    assert prompt.endswith("\nThe instruction:\n<instruction>Add {2} and 3.</instruction>")
    assert "Add 4 and 5." not in prompt
