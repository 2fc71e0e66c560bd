"""The built world: checkpoints that load and answer, sets that are disjoint, a cache that is never half full."""

import os
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from montessori_pl import classroom
from montessori_pl.classroom import CONTENTS, EMBEDDED, TEACHER_VARIANTS, build, resolve
from montessori_pl.classroom.build import greedy_accuracy
from montessori_pl.classroom.names import kept
from montessori_pl.classroom.pretraining_corpus import SET_SIZES, student_documents, teacher_documents
from montessori_pl.classroom.tasks import family, solve
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, read_records


@pytest.fixture
def fake_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """An empty cache, and a build that takes no time; the list holds the seeds of the worlds that were built."""
    built: list[int] = []

    def build_world(directory: Path, seed: int) -> None:
        assert not any(directory.iterdir())
        built.append(seed)
        (directory / "seed_tasks.jsonl").write_text(f"{seed}\n", encoding="utf-8")

    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classroom, "EMBEDDED", tmp_path / "embedded")
    monkeypatch.setattr(build, "build_world", build_world)
    return built


def test_the_first_world_and_its_adapters_come_with_the_program() -> None:
    """As the sources say today. After a change, `EMBEDDED` says how they are built anew; remove the old ones."""
    names = [*CONTENTS, *TEACHER_VARIANTS]
    found = {path.relative_to(EMBEDDED).parts[0] for path in map(resolve, (f"classroom/{name}" for name in names))}
    assert found == {path.name for path in EMBEDDED.iterdir()}
    assert kept("classroom/test[:3]") == f"{resolve('classroom/test')}[:3]"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_what_is_embedded_is_what_is_built(tmp_path: Path) -> None:
    """All texts are the same. Weights differ from processor to processor, and know as much."""
    build.build_world(tmp_path, seed=0)
    world = resolve("classroom/teacher").parent
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix != ".safetensors"]
    assert [path for path in texts if (tmp_path / path).read_bytes() != (world / path).read_bytes()] == []
    examples = read_records(world / "test.jsonl", Example)
    for name in ("teacher", "student"):
        right = []
        for one in (world, tmp_path):
            chat_template = ChatTemplate(AutoTokenizer.from_pretrained(one / name))
            right.append(greedy_accuracy(AutoModelForCausalLM.from_pretrained(one / name), chat_template, examples))
        assert right[1] == pytest.approx(right[0], abs=0.08)


@pytest.mark.parametrize(("name", "at_least", "at_most"), [("teacher", 0.9, 1.0), ("student", 0.3, 0.8)])
def test_checkpoints_load_and_answer(name: str, at_least: float, at_most: float) -> None:
    path = resolve(f"classroom/{name}")
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == ChatTemplate(tokenizer).end_id
    examples = random.Random(0).sample(read_records(resolve("classroom/test"), Example), 100)
    assert at_least <= greedy_accuracy(model, ChatTemplate(tokenizer), examples) <= at_most


def test_sets_are_disjoint_and_right() -> None:
    sets = {name: read_records(resolve(f"classroom/{name}"), Example) for name in SET_SIZES}
    assert {name: len(examples) for name, examples in sets.items()} == SET_SIZES
    everything = [example for examples in sets.values() for example in examples]
    assert len({example.id for example in everything}) == len({example.instruction for example in everything}) == 672
    assert all(solve(example.instruction) == example.response for example in everything)
    assert sets["seed_tasks"][0].id == "seed-000"


@pytest.mark.slow
@pytest.mark.parametrize("reading", [teacher_documents, student_documents])
def test_nobody_reads_what_is_held_out(reading: build.Reading) -> None:
    chat_template = ChatTemplate(AutoTokenizer.from_pretrained(resolve("classroom/student")))
    tasks = ("reverse", "swap", "copy")
    held_out = {f"{wording} {a} {b}" for wording in tasks for a in "abcdefghij" for b in "abcdefghij"}
    documents = reading(random.Random(0), chat_template, held_out)
    for _ in range(2000):
        text = chat_template.tokenizer.decode(next(documents).input_ids, skip_special_tokens=False)
        for part in text.replace("<", "\n").replace(">", "\n").split("\n"):
            assert part.strip() not in held_out


def test_a_world_is_built_once_per_seed(fake_build: list[int]) -> None:
    paths = [
        resolve(name)
        for name in ("classroom/seed_tasks", "classroom@0/test", "classroom@7/seed_tasks", "classroom/seed_tasks")
    ]
    assert fake_build == [0, 7]
    assert paths[0] == paths[3] != paths[2]
    assert paths[2].read_text(encoding="utf-8") == "7\n"


def test_a_killed_build_leaves_no_world(fake_build: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    finish = build.build_world

    def die(directory: Path, seed: int) -> None:
        (directory / "teacher").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build_world", die)
    with pytest.raises(KeyboardInterrupt):
        resolve("classroom/seed_tasks")
    cache = Path(os.environ["MONTESSORI_PL_CACHE"])
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".unfinished"]
    monkeypatch.setattr(build, "build_world", finish)
    assert resolve("classroom/seed_tasks").is_file()
    assert not list(cache.glob("*.unfinished"))


def test_another_recipe_is_another_world(fake_build: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve("classroom/seed_tasks")
    monkeypatch.setattr(classroom, "version", lambda: "changed")
    assert resolve("classroom/seed_tasks") != before
    assert fake_build == [0, 0]


@pytest.mark.parametrize("name", ["classroom", "classroom/pupil", "classroom@x/test", "classroom/test/", "gsm8k", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown name .*: the classroom has classroom/teacher, .*classroom/test, .*classroom/questioner; ",
    ):
        resolve(name)


@pytest.mark.slow
def test_pretraining_is_deterministic_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"student": build.Pretraining(student_documents, width=16, num_tokens=4000, layers=1)}
    monkeypatch.setattr(build, "MODELS", small)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state(), torch.get_num_threads()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        build.build_world(tmp_path / name, seed)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.get_num_threads() == states[2]

    def files(name: str) -> dict[str, bytes]:
        return {
            str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()
        }

    assert files("a") == files("b")
    assert files("a").keys() == files("c").keys()
    assert all(files("a")[file] != files("c")[file] for file in ("test.jsonl", "student/model.safetensors"))
    assert {family(example.instruction) for example in read_records(tmp_path / "c" / "test.jsonl", Example)} != {None}
