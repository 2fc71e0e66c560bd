"""A guarded Synthesize with scripted teachers: one before alignment, and one that alignment has narrowed.

Batches are of 4 prompts with 4 samples, 16 completions; the guard looks at 32 of them, after two batches for the first
time.
"""

import dataclasses
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_runs import StandIn, stage_context

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example, Message, append_records, read_lines, read_records
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.stages import CollapseGuard, StageError, Synthesize
from montessori_pl.synthesis import SelfInstruct
from montessori_pl.synthesis.collapse import CollapseLimits

ASKED = "Write a new task .\n"
WORDS = ["sun", "moon", "star", "rain", "snow", "wind", "lake", "hill", "tree", "bird", "fish", "wolf", "bear", "corn"]
NOTHING = CollapseLimits(**dict.fromkeys(field.name for field in dataclasses.fields(CollapseLimits)))

Write = Callable[[random.Random], str]


def broad(rng: random.Random) -> str:
    """Six of fourteen words: entropies of about ln 14 = 2.6."""
    return f"<instruction>{' '.join(rng.sample(WORDS, 6))}</instruction>"


def narrow(rng: random.Random) -> str:
    """Six of seven words: entropies of about ln 7 = 1.9, less than .8 times 2.6."""
    return f"<instruction>{' '.join(rng.sample(WORDS[:7], 6))}</instruction>"


def mute(rng: random.Random) -> str:
    """No instruction."""
    return "Let me think."


class Teachers(GenerationBackend):
    """Writes as the loaded teacher does, and answers with that teacher's name; may die at one of its calls."""

    def __init__(self, aligned: Write, dies_at: int | None = None, answer: str = "I, {}: {}") -> None:
        self.aligned, self.dies_at, self.answer = aligned, dies_at, answer
        self.events: list[str] = []
        self.calls = 0
        self._loaded = ""

    def load(self, source: ModelSource) -> None:
        self._loaded = source.weights.parent.name if source.weights else "base"
        self.events.append(self._loaded)

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        assert self._loaded
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        write = self.aligned if self._loaded == "aligned" else broad
        texts = [
            write(random.Random(request.seed))
            if request.messages[0]["content"].startswith(ASKED)
            else self.answer.format(self._loaded, request.messages[0]["content"])
            for request in requests
        ]
        return [Completion(text=text, finished=True, num_tokens=9) for text in texts]

    def close(self) -> None:
        self._loaded = ""


class School:
    """Runs `Synthesize` in directories of its own; what the teacher before alignment wrote lies in `before`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for role in ("seed_tasks", "reference"):
            examples = [Example(id=f"{role}-{n}", instruction=f"{role} number {n}", response="r") for n in range(4)]
            append_records(root / f"{role}.jsonl", examples)
        self.data = DataSources(str(root / "seed_tasks.jsonl"), str(root / "reference.jsonl"))
        self.run("before", Teachers(broad), teacher=None, num_prompts=12)

    def run(self, name: str, teachers: Teachers, teacher: str | None = "aligned", **settings: Any) -> dict[str, Any]:
        """Run a stage, or go on with it; `fallback` and what else belongs to the guard goes to the guard."""
        inputs: dict[str, Path | None] = {"teacher": self.root / teacher if teacher else None}
        guard: CollapseGuard | None = settings.get("guard")
        if guard is not None:
            inputs["guard.baseline"] = self.root / guard.baseline
        if guard is not None and guard.fallback != "none":
            base = guard.fallback_teacher == "base"
            inputs["guard.fallback_teacher"] = None if base else self.root / guard.fallback_teacher

        context = stage_context(
            self.root / name,
            name="data",
            inputs=inputs,
            data=self.data,
            teacher=lambda: StandIn("the-teacher"),
            backend=lambda: teachers,
        )
        synthesizer = SelfInstruct("classroom", 2, 1)
        settings = {"synthesizer": synthesizer, "prompts_per_batch": 4, "max_similarity": None, **settings}
        return Synthesize(**settings).run(context)

    def examples(self, name: str) -> list[Example]:
        return read_records(self.root / name / "examples.jsonl", Example)

    def alarms(self, name: str) -> list[int]:
        """The batches that the journal remembers for an alarm."""
        commits = read_lines(self.root / name / "journal.jsonl")
        return [number for number, commit in enumerate(commits) if "alarm" in commit]

    def files(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.root / name).iterdir())}


@pytest.fixture
def school(tmp_path: Path) -> School:
    return School(tmp_path)


def guard(**settings: Any) -> CollapseGuard:
    return CollapseGuard(**{"baseline": "before", "window": 32, **settings})


class TestAlarm:
    def test_narrowed_teacher(self, school: School) -> None:
        """As soon as there are 32 completions, and once."""
        (said,) = school.run("data", Teachers(narrow), num_prompts=20, guard=guard())["warnings"]
        assert said.startswith("after 32 completions the writing had moved beyond the limits (entropy of the words 1.9")
        assert said.endswith("); the same teacher wrote the rest")
        assert school.alarms("data") == [1]
        assert {example.teacher for example in school.examples("data")} == {"the-teacher + aligned"}

    @pytest.mark.parametrize("fallback", ["none", "mixture", "unaligned"])
    def test_same_teacher(self, school: School, fallback: str) -> None:
        teachers = Teachers(broad)
        metrics = school.run("data", teachers, num_prompts=20, guard=guard(fallback=fallback))
        assert metrics["warnings"] == []
        assert school.alarms("data") == []
        assert teachers.events == ["aligned"]

    def test_guard_that_sees_nothing_changes_nothing(self, school: School) -> None:
        """The same bytes as without one, but for what the summary says."""
        guarded = school.run("guarded", Teachers(narrow), num_prompts=20, guard=guard(limits=NOTHING))
        alone = school.run("alone", Teachers(narrow), num_prompts=20)
        assert guarded == {**alone, "warnings": []}
        assert school.files("guarded") == school.files("alone")

    def test_completions_without_instructions(self, school: School) -> None:
        """The whole sentence; before the alarm nothing was accepted, and the patience is not at its end."""
        limits = dataclasses.replace(NOTHING, parsed_rate=0.8)
        metrics = school.run("data", Teachers(mute), num_examples=20, guard=guard(limits=limits, fallback="unaligned"))
        assert metrics["warnings"] == [
            "after 32 completions the writing had moved beyond the limits (share of usable completions "
            "0.00, before 1.00, limit 0.80); the rest was written by the teacher before alignment, base"
        ]
        assert metrics["accepted"] == 20

    def test_near_duplicates_are_counted_within_the_window(self, school: School) -> None:
        """One instruction again and again: of 32 completions 31 repeat the first; before, none did."""

        def same(rng: random.Random) -> str:
            return "<instruction>sun moon star rain</instruction>"

        limits = dataclasses.replace(NOTHING, near_duplicate_rate=0.3)
        metrics = school.run("data", Teachers(same), num_prompts=20, min_acceptance=0.0, guard=guard(limits=limits))
        (said,) = metrics["warnings"]
        assert "(share of near duplicates 0.97, before 0.00, limit 0.30)" in said

    def test_one_response_to_everything(self, school: School) -> None:
        """Instructions vary as before; of 32 responses 31 repeat the first, where before none did."""
        limits = dataclasses.replace(NOTHING, near_duplicate_rate=0.3)
        said = school.run("data", Teachers(broad, answer="Five points!"), num_prompts=20, guard=guard(limits=limits))
        assert said["warnings"] == [
            "after 32 completions the writing had moved beyond the limits (of the responses: share of near duplicates "
            "0.97, before 0.00, limit 0.30); the same teacher wrote the rest",
            "the-teacher + aligned gives the same text to 100% of 80 prompts ('Five points!'); look at its responses, "
            "unless this is the right one",
        ]

    def test_few_responses_that_were_as_few_before(self, school: School) -> None:
        """As where the answer is a label."""
        school.run("labels", Teachers(broad, answer="yes"), teacher=None, num_prompts=12)
        metrics = school.run("data", Teachers(broad, answer="no"), num_prompts=20, guard=guard(baseline="labels"))
        assert [sentence.split(" gives")[0] for sentence in metrics["warnings"]] == ["the-teacher + aligned"]
        assert school.alarms("data") == []

    def test_exhausted_pool_is_no_collapse(self, school: School) -> None:
        """Both teachers draw from 32 instructions. At the end nearly every completion repeats an accepted one, and
        still the teacher varies as much as it ever did."""

        def small(rng: random.Random) -> str:
            return f"<instruction>{rng.choice(WORDS[:8])} and {rng.choice(WORDS[8:12])}</instruction>"

        school.run("small", Teachers(small), num_prompts=12)
        metrics = school.run("data", Teachers(small), num_prompts=40, guard=guard(baseline="small"))
        assert metrics["rejected"]["near duplicate"] >= 128
        assert metrics["warnings"] == []

    def test_rejected_response_is_no_missing_instruction(self, school: School) -> None:
        """What is kept of it is the instruction alone, without tags."""
        limits = dataclasses.replace(NOTHING, parsed_rate=1.0, token_entropy=0.8)
        metrics = school.run("data", Teachers(broad, answer=""), num_prompts=8, guard=guard(limits=limits))
        assert metrics["rejected"] == {"empty response": 32}
        assert metrics["warnings"] == []

    def test_short_stage_is_judged_at_its_end(self, school: School) -> None:
        """Sixteen completions, compared with as many; nothing is left for anybody else to write."""
        teachers = Teachers(narrow)
        (said,) = school.run("data", teachers, num_prompts=4, guard=guard(fallback="unaligned"))["warnings"]
        assert said.startswith("after 16 completions ")
        assert said.endswith("; nothing was left to be written")
        assert teachers.events == ["aligned"]

    def test_short_baseline_is_compared_as_a_whole(self, school: School) -> None:
        school.run("short", Teachers(broad), num_prompts=4)
        (said,) = school.run("data", Teachers(narrow), num_prompts=12, guard=guard(baseline="short"))["warnings"]
        assert said.startswith("after 16 completions ")
        assert school.alarms("data") == [0]

    def test_prompts_without_completions_do_not_count(self, school: School) -> None:
        """A stage whose prompts fit no context has written nothing that could be judged."""

        class Full(Teachers):
            def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
                return False

        metrics = school.run("data", Full(narrow), num_prompts=12, guard=guard(window=1))
        assert metrics["rejected"] == {"prompt too long": 12}
        assert metrics["warnings"] == []


class TestFallback:
    def test_mixture(self, school: School) -> None:
        """From the batch after the alarm on, odd prompts are written and answered by the teacher before alignment.

        Each batch the two change places twice, and are never in memory together.
        """
        teachers = Teachers(narrow)
        metrics = school.run("data", teachers, num_prompts=20, guard=guard(fallback="mixture"))
        (said,) = metrics["warnings"]
        assert said.endswith("; every second prompt of the rest was written by the teacher before alignment, base")
        for example in school.examples("data"):
            unaligned = example.batch >= 2 and int(example.prompt_id[-5:]) % 2 == 1
            assert example.teacher == ("the-teacher" if unaligned else "the-teacher + aligned")
            assert example.response.startswith("I, base: " if unaligned else "I, aligned: ")
        assert {example.batch for example in school.examples("data")} == {0, 1, 2, 3, 4}
        ids = [example.id for example in school.examples("data")]
        assert ids == sorted(ids), "in the order of the prompts, whoever wrote them"
        assert teachers.events == ["aligned", *["base", "aligned"] * 3]

    def test_unaligned(self, school: School) -> None:
        teachers = Teachers(narrow)
        school.run("data", teachers, num_prompts=20, guard=guard(fallback="unaligned"))
        for example in school.examples("data"):
            assert example.teacher == ("the-teacher" if example.batch >= 2 else "the-teacher + aligned")
        assert teachers.events == ["aligned", "base"]

    def test_stage_that_trained_the_teacher_before(self, school: School) -> None:
        fallback = guard(fallback="unaligned", fallback_teacher="earlier")
        (said,) = school.run("data", Teachers(narrow), num_prompts=20, guard=fallback)["warnings"]
        assert said.endswith("the teacher before alignment, earlier")
        assert {one.teacher for one in school.examples("data") if one.batch >= 2} == {"the-teacher + earlier"}

    def test_once_fired_it_stays_on(self, school: School) -> None:
        """The teacher before alignment writes broadly again; the aligned one does not come back for that."""
        school.run("data", Teachers(narrow), num_prompts=60, guard=guard(fallback="unaligned"))
        assert school.alarms("data") == [1]
        assert {one.teacher for one in school.examples("data") if one.batch >= 2} == {"the-teacher"}


class TestResume:
    @pytest.mark.parametrize("fallback", ["none", "mixture", "unaligned"])
    def test_killed_between_rounds(self, school: School, fallback: str) -> None:
        """With the journal cut after each of its lines: before the alarm batch, right after it, and to the end."""
        settings = {"num_prompts": 20, "guard": guard(fallback=fallback)}
        metrics = school.run("data", Teachers(narrow), **settings)
        lines = (school.root / "data" / "journal.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == 5
        for kept in range(6):
            shutil.copytree(school.root / "data", school.root / f"killed{kept}")
            (school.root / f"killed{kept}" / "journal.jsonl").write_bytes(b"".join(lines[:kept]))
            assert school.run(f"killed{kept}", Teachers(narrow), **settings) == metrics
            assert school.files(f"killed{kept}") == school.files("data")

    def test_killed_at_each_call(self, school: School) -> None:
        """A batch of a mixture is four calls, one of a single teacher two."""
        settings = {"num_examples": 50, "guard": guard(fallback="mixture")}
        teachers = Teachers(narrow)
        metrics = school.run("data", teachers, **settings)
        assert teachers.calls > 8
        for call in range(1, teachers.calls + 1):
            with pytest.raises(KeyboardInterrupt):
                school.run(f"killed{call}", Teachers(narrow, dies_at=call), **settings)
            assert school.run(f"killed{call}", Teachers(narrow), **settings) == metrics
            assert school.files(f"killed{call}") == school.files("data")


class TestMistakes:
    def test_baseline_that_nobody_was_prompted_for(self, school: School) -> None:
        """Recorded examples, and a stage of a stranger that keeps no rejections: said before a model is loaded."""
        recorded, strange = school.root / "recorded", school.root / "strange"
        for directory in (recorded, strange):
            directory.mkdir()
            append_records(directory / "examples.jsonl", [Example(id="1", instruction="i", response="r")])
        (recorded / "rejections.jsonl").touch()
        for name in ("recorded", "strange"):
            teachers = Teachers(broad)
            with pytest.raises(StageError) as error:
                school.run("data", teachers, num_prompts=4, guard=guard(baseline=name))
            assert str(error.value) == (
                f"iteration_1/data: guard.baseline names '{name}', which holds no completions of a teacher to compare "
                "with; name a Synthesize stage that the teacher before alignment wrote"
            )
            assert teachers.events == []

    def test_settings_that_make_no_sense(self) -> None:
        with pytest.raises(ValueError, match=r"CollapseGuard.window: expected int >= 1, found 0"):
            guard(window=0)
        with pytest.raises(ValueError, match="the guard's fallback_teacher cannot be 'latest', which is the teacher"):
            guard(fallback_teacher="latest")
