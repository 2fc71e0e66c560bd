"""The gym: tasks that verifiers recognise and solve, sets that are disjoint, names, and a teacher that is made once."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

from montessori_pl.batches.sources import DataSources, source_file
from montessori_pl.data.records import Example, read_records
from montessori_pl.models.loading import ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.run_directory.fingerprint import pinned
from montessori_pl.worlds.gym import tasks, teacher
from montessori_pl.worlds.gym.sets import SET_SIZES
from montessori_pl.worlds.gym.tasks import (
    DISTRACTORS,
    FAMILIES,
    TARGETS,
    Difficulty,
    draw_task,
    family_of,
    is_right,
    solve,
)
from montessori_pl.worlds.names import in_world, locate, locate_backbone, with_versions


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("difficulty", get_args(Difficulty))
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_is_recognised_and_solved(family: str, difficulty: Difficulty) -> None:
    rng = random.Random(0)
    for _ in range(200):
        instruction, answer = draw_task(rng, family, difficulty)
        assert (family_of(instruction), solve(instruction)) == (family, answer)


def test_no_word_is_of_two_kinds() -> None:
    assert max(Counter(tasks.WORDS).values()) == 1


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("How many of these are fruits: plum, bus, pear, hat?", "2"),
        ("Which word does not belong: lion, red, goat, bear?", "red"),
        ("Which word does not belong: lion, red, goat, blue?", None),  # two and two
        ("What is the second word in this list: river, stone, cloud?", "stone"),
        ("What is the fifth word in this list: river, stone, cloud?", None),
        ("Write these words in reverse order: one, two, three.", "three, two, one"),
        ("Ben is older than Tom. Anna is older than Ben. Who is the youngest?", "Tom"),
        ("Ben is older than Tom. Anna is older than Lucy. Who is the youngest?", None),
        ("Ben is older than Tom. Tom is older than Ben. Who is the youngest?", None),
        ("Ben is taller than Tom. Who is the youngest?", None),
        ("Today is Friday. What day is it in 10 days?", "Monday"),
        ("What is the capital of  Norway?", "Oslo"),
        ("What is the capital of Atlantis?", None),
        ("Give me a recipe for soup.", None),
    ],
)
def test_tasks_of_others_are_solved_where_they_have_an_answer(instruction: str, answer: str | None) -> None:
    assert solve(instruction) == answer
    assert (family_of(instruction) is None) == (answer is None)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("Oslo", "Oslo", True),
        (" oslo. ", "Oslo", True),
        ("The capital of Norway is Oslo.", "Oslo", True),
        ("The capital is Oslo. It is cold.", "Oslo", True),
        ("The capital is Oslo and not Bergen.", "Oslo", False),
        ("The answer is 12.", "2", False),
        ("", "2", False),
    ],
)
def test_what_counts_as_the_right_answer(text: str, answer: str, right: bool) -> None:
    assert is_right(text, answer) is right


@pytest.mark.parametrize("world", ["gym", "gym-easy", "gym-hard@3"])
def test_sets_are_disjoint_and_hold_what_they_are_for(world: str) -> None:
    sets = {name: read_records(Path(locate(f"{world}/{name}")), Example) for name in SET_SIZES}
    assert {name: len(examples) for name, examples in sets.items()} == SET_SIZES
    everything = [example for examples in sets.values() for example in examples]
    assert all(solve(one.instruction) == one.response for one in everything)
    for name in ("reference", "test"):
        elsewhere = {one.instruction for other in sets if other != name for one in sets[other]}
        assert not elsewhere & {one.instruction for one in sets[name]}
        families = Counter(str(family_of(one.instruction)) for one in sets[name])
        assert dict.fromkeys(TARGETS, SET_SIZES[name] // len(TARGETS)) == families
    of_seeds = Counter(family_of(one.instruction) in DISTRACTORS for one in sets["seed_tasks"])
    assert of_seeds == {True: 48, False: 48}
    DataSources(f"{world}/seed_tasks", f"{world}/reference", f"{world}/test").check_disjoint()


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("gym/test[:10]").endswith("/test.jsonl[:10]")
    assert locate("gym@1/test") != locate("gym/test") != locate("gym-easy/test")
    assert locate("classroom.jsonl") == "classroom.jsonl"
    for wrong in ("gym/tests", "gym-harder/test", "gym@x/test", "gym/teacher"):
        with pytest.raises(ValueError, match=f"unknown name '{re.escape(wrong)}': the gym has the sets gym/seed_tasks"):
            locate(wrong)
    assert source_file("gym/test[:10]") is None
    assert re.fullmatch(r"gym/test\[:10\] \(version [0-9a-f]{12}\)", with_versions("gym/test[:10]"))
    assert with_versions(["gym/notes", "gym/teacher:a[b].gguf"])[0] == "gym/notes", "a text like any other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gym").mkdir()
    (tmp_path / "gym" / "test.jsonl").touch()
    assert not in_world("gym/test.jsonl[:3]")
    assert locate("gym/test.jsonl[:3]") == "gym/test.jsonl[:3]"


def test_a_teacher_is_made_once_of_its_backbone_and_depends_on_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "NUM_STEPS", 2)
    base = save_tiny_model(tmp_path / "base", max_position_embeddings=400)
    name = f"gym/teacher:{base}"
    state = torch.get_rng_state()
    weights = [one.clone() for one in load_model(ModelSource(name)).parameters()]
    assert torch.equal(torch.get_rng_state(), state)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not all(torch.equal(one, other) for one, other in zip(weights, plain.parameters(), strict=True))
    monkeypatch.setattr(teacher, "build_teacher", lambda *_: pytest.fail("it is made twice"))
    assert locate_backbone(name) == locate_backbone(name)
    monkeypatch.undo()
    monkeypatch.setattr(teacher, "NUM_STEPS", 2)
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "another"))
    torch.manual_seed(7)
    again = load_model(ModelSource(name)).parameters()
    assert all(torch.equal(one, other) for one, other in zip(weights, again, strict=True))


def test_a_teacher_of_another_file_is_another_teacher(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    found = []
    for content in (b"GGUF", b"GGUF of another day"):
        path.write_bytes(content)
        settings = pinned({"backbone": f"gym/teacher:{path}"}, kind=StudentModule)
        found.append(with_versions(settings)["backbone"])
    assert found[0] != found[1]


def test_a_teacher_needs_a_model_on_this_machine() -> None:
    with pytest.raises(ValueError, match="needs a backbone on this machine"):
        load_model(ModelSource("gym/teacher:someone/model"))
