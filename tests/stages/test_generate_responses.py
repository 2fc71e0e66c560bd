"""Answer with scripted authors: who answers what, what is counted and paid, what is kept, and going on after a kill."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from stage_runs import Killed, StandIn, stage_context

from montessori_pl.data.records import (
    Example,
    Message,
    PreferencePair,
    Rejection,
    Score,
    Turn,
    append_records,
    read_records,
)
from montessori_pl.generation import Completion, GenerationBackend, Price, Request, Sampling
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.loading import ModelSource
from montessori_pl.pairing import pair_examples
from montessori_pl.routing import ConstantRouter, RouteLimits
from montessori_pl.stages import GenerateResponses, StageError
from montessori_pl.stages.base import ROUTING, WEIGHTS
from montessori_pl.synthesis.filters import ResponseFilter


@dataclasses.dataclass
class Scribe(GenerationBackend):
    """Answers with the name of the model that is loaded and the last word of what it was asked; 7 tokens each."""

    events: list[str]
    longest: int = 1000
    kills_after: int | None = None
    loaded: str = ""
    asked: int = 0
    price: Price | None = None
    prices: dict[str, Price | None] = dataclasses.field(default_factory=dict)
    """What each model's last answer was counted with."""

    def set_cache_dir(self, directory: Path) -> None:
        self.events.append(f"keep {directory.name}")

    def load(self, source: ModelSource) -> None:
        self.loaded = f"{source.backbone}{'+' if source.weights else ''}"
        self.events.append(f"load {self.loaded}")

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return len(messages[-1]["content"]) <= self.longest

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        self.events.append(f"close {self.loaded}")
        self.loaded = ""

    def _answer(self, request: Request) -> Completion:
        if self.asked == self.kills_after:
            raise Killed
        self.asked += 1
        self.prices[self.loaded] = self.price
        system = request.messages[0]["content"] + " " if request.messages[0]["role"] == "system" else ""
        text = f"{system}{self.loaded} {request.messages[-1]['content'].split()[-1]} {request.seed % 97}"
        return Completion(text=text, finished=True, num_tokens=7, num_prompt_tokens=3)


@dataclasses.dataclass
class Room:
    """Runs `GenerateResponses` in one directory."""

    root: Path
    instructions: Sequence[str] = ("say one", "say two", "say three")
    pool: dict[str, PoolTeacher] = dataclasses.field(default_factory=dict)
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    system: str = ""
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        self.events: list[str] = []
        asked = self.root / "asked"
        asked.mkdir(parents=True, exist_ok=True)
        examples = [
            Example(id=f"i{n}", instruction=text, response="unused", system=self.system, history=self.history)
            for n, text in enumerate(self.instructions)
        ]
        if not (asked / "examples.jsonl").exists():
            append_records(asked / "examples.jsonl", examples)

    def run(self, inputs: dict[str, Path | None] | None = None, **settings: Any) -> dict[str, Any]:
        """Run the stage, or go on with it."""
        context = stage_context(
            self.directory,
            inputs={"instructions": self.root / "asked", **(inputs or {})},
            student=lambda: StandIn("the-student"),
            teacher=lambda: StandIn("the-teacher"),
            backend=lambda: Scribe(self.events, **self.engine),
            pool=self.pool,
            requests=self.root / "requests",
        )
        return GenerateResponses(instructions="asked", **settings).run(context)

    @property
    def directory(self) -> Path:
        return self.root / "answers"

    @property
    def examples(self) -> list[Example]:
        return read_records(self.directory / "examples.jsonl", Example)

    @property
    def rejections(self) -> list[Rejection]:
        return read_records(self.directory / "rejections.jsonl", Rejection)


def test_each_teacher_answers_each_instruction(tmp_path: Path) -> None:
    room = Room(tmp_path, pool={"anna": PoolTeacher(backbone="a"), "ben": PoolTeacher(backbone="b")})
    metrics = room.run(teachers=["anna", "ben"], samples=2)
    assert Counter((e.teacher, e.instruction) for e in room.examples) == {
        (name, text): 2 for name in ("anna", "ben") for text in room.instructions
    }
    assert {e.response.split()[0] for e in room.examples if e.teacher == "ben"} == {"b"}
    assert len({e.id for e in room.examples}) == 12
    assert len({e.response for e in room.examples}) == 12, "each sample has a seed of its own"
    assert metrics["accepted"] == 12
    assert metrics["teachers"] == {"anna": 6, "ben": 6}
    # Once each for what fits, and once more for the batch, whoever is loaded first, all in the run's one engine.
    assert room.events == ["load a", "load b", "load a", "close a"]


def test_conversations_that_end_alike_are_answered_and_paired_apart(tmp_path: Path) -> None:
    """Each is asked as a whole, and a pair is between answers to one of them."""
    turns = [(Turn("user", text), Turn("assistant", "yes")) for text in ("cats?", "dogs?")]
    room = Room(tmp_path, instructions=["and why?"], history=turns[0])
    other = Example(id="other", instruction="and why?", response="unused", history=turns[1])
    append_records(tmp_path / "asked" / "examples.jsonl", [other])
    room.run({"teachers.base": None}, teachers="base", samples=2)
    assert Counter(e.history for e in room.examples) == {turns[0]: 2, turns[1]: 2}
    pairs = pair_examples(
        room.examples,
        {e.id: Score(id=e.id, value=float(n % 2)) for n, e in enumerate(room.examples)},
        rule="best_worst",
    )
    assert [pair.history for pair in pairs] == turns
    assert [message["content"] for message in pairs[0].messages()] == ["cats?", "yes", "and why?"]
    assert PreferencePair.from_dict(json.loads(pairs[0].to_json())) == pairs[0]
    asked_for = [dataclasses.replace(e, prompt="write a task") for e in room.examples]
    scores = {e.id: Score(id=e.id, value=float(n % 2)) for n, e in enumerate(asked_for)}
    written = pair_examples(asked_for, scores, rule="best_worst")
    assert [pair.history for pair in written] == [(), ()], "a request for a task is no turn of the conversation"


def test_answers_to_one_instruction_are_paired_with_each_other(tmp_path: Path) -> None:
    """As completions of one prompt: over responses, with the system message that the model has seen."""
    room = Room(tmp_path, system="be brief")
    room.run({"teachers.base": None}, teachers="base", samples=3)
    scores = {e.id: Score(id=e.id, value=float(n % 3)) for n, e in enumerate(room.examples)}
    pairs = pair_examples(room.examples, scores, rule="best_worst")
    assert [pair.prompt for pair in pairs] == list(room.instructions)
    assert {pair.system for pair in pairs} == {"be brief"}
    by_id = {example.id: example for example in room.examples}
    for pair in pairs:
        assert by_id[pair.chosen_id].instruction == by_id[pair.rejected_id].instruction == pair.prompt
        assert pair.chosen == by_id[pair.chosen_id].response
        assert pair.chosen.startswith("be brief the-teacher")


def test_student_and_stages_answer_with_their_weights(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    (trained / WEIGHTS).mkdir(parents=True)
    room = Room(tmp_path / "a")
    room.run({"student": trained}, student="trained")
    assert {(e.teacher, e.response.split()[0]) for e in room.examples} == {("the-student + trained", "the-student+")}
    other = Room(tmp_path / "b")
    other.run({"teachers.aligned": trained, "teachers.base": None}, teachers=["aligned", "base"])
    assert {e.teacher for e in other.examples} == {"the-teacher + trained", "the-teacher"}
    # Two adapters of one backbone share its context: nothing is loaded only to see what fits.
    assert other.events == ["load the-teacher+", "load the-teacher", "close the-teacher"]


def test_a_teacher_of_the_pool_has_its_own_engine_and_price(tmp_path: Path) -> None:
    """Of two engines one at a time has a model loaded."""
    events: list[str] = []
    pool = {
        "dear": PoolTeacher(backbone="d", generation=lambda: Scribe(events), price=Price(input=10, output=30)),
        "free": PoolTeacher(backbone="f"),
    }
    room = Room(tmp_path, pool=pool)
    metrics = room.run(teachers=["dear", "free"])
    assert events == ["keep dear", "load d", "close d", "load d", "close d"]
    assert (metrics["prompt_tokens"], metrics["generated_tokens"]) == (6 * 3, 6 * 7)
    assert metrics["cost"] == pytest.approx(3 * (10 * 3 + 30 * 7) / 1e6)


def test_a_teacher_of_the_pool_brings_its_price_to_the_engine_of_the_run(tmp_path: Path) -> None:
    """The engine's budget counts what the metrics do, and the engine has its own price back for the others."""
    own, dear = Price(input=1, output=2), Price(input=10, output=30)
    prices: dict[str, Price | None] = {}
    pool = {"dear": PoolTeacher(backbone="d", price=dear), "plain": PoolTeacher(backbone="p")}
    room = Room(tmp_path, pool=pool, engine={"price": own, "prices": prices})
    metrics = room.run(teachers=["dear", "plain"])
    assert prices == {"d": dear, "p": own}
    assert metrics["cost"] == pytest.approx(3 * (dear.cost(3, 7) + own.cost(3, 7)))


def test_nothing_is_said_of_cost_where_nobody_has_a_price(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert "cost" not in room.run({"teachers.base": None}, teachers="base")


def test_each_instruction_is_asked_once(tmp_path: Path) -> None:
    """What is answered may itself be a pool of responses."""
    room = Room(tmp_path, instructions=("say one", "say two", "say one"))
    metrics = room.run({"teachers.base": None}, teachers="base")
    assert [e.prompt_id for e in room.examples] == ["i0", "i1"]
    assert metrics["diversity"]["distinct_rate"] == 1


def test_what_is_not_kept_is_said(tmp_path: Path) -> None:
    room = Room(tmp_path, instructions=("say one", "say something longer"), engine={"longest": 10})
    metrics = room.run({"teachers.base": None}, teachers="base", response_filter=ResponseFilter(min_characters=100))
    assert [(r.id, r.reason) for r in room.rejections] == [
        ("i0-base-0", "too short"),
        ("i1-base-0", "too long for the context"),
    ]
    assert metrics["rejected"] == {"too short": 1, "too long for the context": 1}


def test_teacher_that_thinks(tmp_path: Path) -> None:
    """The student sees the answer; the completion, from which a teacher is aligned, is as it was sampled."""
    room = Room(tmp_path, instructions=("say why</think>4",))
    room.run({"teachers.base": None}, teachers="base")
    (example,) = room.examples
    assert "</think>" in example.completion
    assert example.response == example.completion.partition("</think>")[2].strip()
    assert example.response.startswith("4 ")


def route(tmp_path: Path, teachers: Sequence[str], values: Sequence[float]) -> Path:
    """The directory of a stage that has chosen among teachers."""
    directory = tmp_path / "chosen"
    (directory / ROUTING).mkdir(parents=True)
    ConstantRouter(teachers, values).save(directory / ROUTING)
    return directory


class TestRouting:
    POOL: ClassVar = {"anna": PoolTeacher(backbone="a"), "ben": PoolTeacher(backbone="b")}

    def test_each_instruction_goes_to_one_teacher(self, tmp_path: Path) -> None:
        room = Room(tmp_path, pool=self.POOL)
        metrics = room.run({"routing": route(tmp_path, ["ben", "anna"], [2, 1])}, teachers=["anna", "ben"], routing="r")
        assert metrics["teachers"] == {"ben": 3}
        assert [event for event in room.events if event.startswith("load")] == ["load b"], "nobody else is loaded"

    def test_limits_are_kept_over_all_instructions(self, tmp_path: Path) -> None:
        room = Room(tmp_path, [f"say {number}" for number in range(8)], pool=self.POOL)
        metrics = room.run(
            {"routing": route(tmp_path, ["ben", "anna"], [2, 1])},
            teachers=["anna", "ben"],
            routing="r",
            limits=RouteLimits(max_share={"ben": 0.25}),
            instructions_per_batch=3,
        )
        assert metrics["teachers"] == {"anna": 6, "ben": 2}

    def test_teachers_of_stages_are_known_by_what_examples_call_them(self, tmp_path: Path) -> None:
        chosen = route(tmp_path, ["the-teacher"], [1])
        metrics = Room(tmp_path).run({"teachers.base": None, "routing": chosen}, teachers="base", routing="r")
        assert metrics["teachers"] == {"the-teacher": 3}

    def test_router_that_chooses_among_others(self, tmp_path: Path) -> None:
        chosen = route(tmp_path, ["ben", "carl"], [1, 2])
        with pytest.raises(StageError) as error:
            Room(tmp_path, pool=self.POOL).run({"routing": chosen}, teachers=["anna", "ben"], routing="r")
        assert str(error.value) == (
            "iteration_1/answers: stage 'r' chooses among ben, carl, and `teachers` lacks carl; name all of them"
        )


@pytest.mark.parametrize("kills_after", [0, 1, 5, 6, 7, 11])
def test_killed_in_any_round_it_goes_on(tmp_path: Path, kills_after: int) -> None:
    words = [f"say {number}" for number in range(6)]
    inputs = {"teachers.base": None, "teachers.latest": None}
    settings = {"teachers": ["base", "latest"], "instructions_per_batch": 2}
    whole = Room(tmp_path / "whole", words)
    expected = whole.run(inputs, **settings)
    killed = Room(tmp_path / "killed", words, engine={"kills_after": kills_after})
    with pytest.raises(Killed):
        killed.run(inputs, **settings)
    resumed = Room(tmp_path / "killed", words)
    assert resumed.run(inputs, **settings) == expected
    for path in sorted(whole.directory.iterdir()):
        assert (resumed.directory / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "either teachers or a student, found teachers None and student None"),
        ({"teachers": "base", "student": "base"}, "either teachers or a student"),
        ({"teachers": ["base", "base"]}, "teachers: expected list, not empty, none twice, found"),
        ({"teachers": "base", "samples": 0}, "samples: expected int >= 1 "),
        ({"student": "base", "routing": "r"}, "routing needs the teachers it chooses from"),
        ({"teachers": "base", "limits": RouteLimits(max_share=0.5)}, "limits need a routing"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GenerateResponses(instructions="asked", **settings)


def test_a_teacher_who_always_says_the_same_is_named(tmp_path: Path) -> None:
    """Of 30 instructions one is answered otherwise; how varied the responses are stands apart from the instructions."""

    class Parrot(Scribe):
        def _answer(self, request: Request) -> Completion:
            one = super()._answer(request)
            same = self.loaded == "b" and not request.messages[-1]["content"].endswith("x7")
            return dataclasses.replace(one, text="Five points!") if same else one

    instructions = [f"say x{n}" for n in range(30)]
    room = Room(tmp_path, instructions, pool={name: PoolTeacher(backbone=name[0]) for name in ("anna", "ben")})
    context = stage_context(
        room.directory,
        inputs={"instructions": tmp_path / "asked"},
        teacher=lambda: StandIn("the-teacher"),
        backend=lambda: Parrot(room.events),
        pool=room.pool,
        requests=tmp_path / "requests",
    )
    metrics = GenerateResponses(instructions="asked", teachers=["anna", "ben"]).run(context)
    assert metrics["warnings"] == [
        "ben gives the same text to 97% of 30 prompts ('Five points!'); look at its responses, unless this is the "
        "right one"
    ]
    assert metrics["repetition"]["ben"] == {
        "distinct_rate": 2 / 30,
        "repeated_rate": 29 / 30,
        "most_common_rate": 29 / 30,
    }
    assert metrics["repetition"]["anna"]["most_common_rate"] < 0.5
    assert metrics["diversity"]["distinct_rate"] == 1
    assert metrics["response_diversity"]["distinct_rate"] == 32 / 60
