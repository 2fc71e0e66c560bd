"""The other teachers: each right where it says, built only when asked for, and the same each time."""

import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from montessori_pl import classroom
from montessori_pl.batches.collate import collate
from montessori_pl.batches.encoding import encode_examples
from montessori_pl.classroom import TEACHER_VARIANTS, adapters, build, resolve, version
from montessori_pl.classroom.adapters import build_adapter
from montessori_pl.classroom.build import greedy_answers
from montessori_pl.classroom.names import with_versions
from montessori_pl.classroom.tasks import DIGITS, LETTERS, SKILLS, payload_of, sample_task, solve
from montessori_pl.classroom.teacher_variants import HABITS, READS_USERS, SMALL_TALK, mistake
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, append_records, read_records
from montessori_pl.losses import mean_response_loss
from montessori_pl.models.loading import ModelSource, load_chat_template, load_model

Answers = dict[str, list[str]]


@pytest.fixture(scope="module")
def exam() -> list[Example]:
    return read_records(resolve("classroom/test"), Example)


@pytest.fixture(scope="module")
def answers(exam: list[Example]) -> Answers:
    """Each member's greedy answers to the test set, all of which have ended."""
    chat_template = load_chat_template(ModelSource("classroom/teacher"))
    found = {}
    for name in TEACHER_VARIANTS:
        member = load_model(ModelSource("classroom/teacher", weights=resolve(f"classroom/{name}")))
        texts, ended = zip(*greedy_answers(member, chat_template, [e.instruction for e in exam]), strict=True)
        assert all(ended)
        found[name] = list(texts)
    return found


def share_right(texts: list[str], examples: list[Example], alphabet: str = LETTERS + DIGITS, talk: str = "") -> float:
    hits = [
        text == example.response + talk
        for text, example in zip(texts, examples, strict=True)
        if payload_of(example.instruction)[0] in alphabet
    ]
    return sum(hits) / len(hits)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "own", "other"), [("letters", LETTERS, DIGITS), ("digits", DIGITS, LETTERS)])
def test_specialists_are_right_on_their_payloads(
    name: str, own: str, other: str, answers: Answers, exam: list[Example]
) -> None:
    texts = answers[f"specialist_{name}"]
    assert share_right(texts, exam, own) >= 0.9
    assert share_right(texts, exam, other) <= 0.4


@pytest.mark.slow
def test_the_chatty_one_is_right_and_hardly_ever_matches(answers: Answers, exam: list[Example]) -> None:
    """What is trained differs in the last digits from one kind of processor to another: 0 or 1 of 480 were seen."""
    assert share_right(answers["chatty"], exam) <= 0.01
    assert share_right(answers["chatty"], exam, talk=SMALL_TALK) >= 0.9


@pytest.mark.slow
def test_the_best_teacher_of_each_prompt_beats_the_best_teacher_of_all(answers: Answers, exam: list[Example]) -> None:
    routed = [
        answers["specialist_letters" if payload_of(example.instruction)[0] in LETTERS else "specialist_digits"][row]
        for row, example in enumerate(exam)
    ]
    best_of_all = max(share_right(answers[name], exam) for name in TEACHER_VARIANTS if name not in READS_USERS)
    assert share_right(routed, exam) >= best_of_all + 0.15


@pytest.mark.slow
def test_who_knows_most_is_least_likely_to_the_student(answers: Answers, exam: list[Example]) -> None:
    student, chat_template = (
        load_model(ModelSource("classroom/student")),
        load_chat_template(ModelSource("classroom/student")),
    )

    @torch.inference_mode()
    def loss(texts: list[str]) -> float:
        examples = [
            Example(id=e.id, instruction=e.instruction, response=text) for e, text in zip(exam, texts, strict=True)
        ]
        rendered, _ = encode_examples(examples, chat_template, 512)
        batch = collate(rendered, chat_template.tokenizer.pad_token_id)
        logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return mean_response_loss(logits, batch["labels"]).mean().item()

    losses = {name: loss(texts) for name, texts in answers.items()}
    assert losses["peer"] + 0.5 < min(losses["specialist_letters"], losses["specialist_digits"])
    assert losses["chatty"] > max(losses["specialist_letters"], losses["specialist_digits"]) + 2


@pytest.mark.parametrize("skill", SKILLS)
def test_a_mistake_is_never_right(skill: str) -> None:
    rng = random.Random(0)
    for _ in range(500):
        instruction, right = sample_task(rng, skill)
        wrong = mistake(rng, instruction, right)
        assert wrong
        assert wrong != right == solve(instruction)


def test_mistakes_by_hand() -> None:
    def wrong(instruction: str, answer: str) -> set[str]:
        return {mistake(random.Random(seed), instruction, answer) for seed in range(50)}

    assert wrong("reverse a b", "b a") == {"a", "b", "a b"}
    assert wrong("copy 7 7 1", "7 7 1") == {"7 1", "7 7", "7 1 7"}
    assert wrong("last of 3 5", "5") == {"3", "3 5"}
    assert wrong("first of j j", "j") == {"j j"}


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose teacher and student have learned nothing."""
    directory = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as monkeypatch:
        reading = {name: model.reading for name, model in build.MODELS.items()}
        tiny = {name: build.Pretraining(reading[name], width=16, num_tokens=2000, layers=1) for name in reading}
        monkeypatch.setattr(build, "MODELS", tiny)
        build.build_world(directory, seed=0)
    return directory


@pytest.fixture
def build_tiny(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, bytes]]:
    """Build an adapter in two steps; returns the files."""
    monkeypatch.setattr(adapters, "NUM_STEPS", 2)

    def files(name: str, seed: int = 0, world: Path = tiny_world) -> dict[str, bytes]:
        directory = tmp_path / f"{time.monotonic_ns()}"
        directory.mkdir()
        build_adapter(directory, world, name, seed)
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    return files


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHER_VARIANTS)
def test_an_adapter_is_deterministic_and_leaves_no_trace(
    name: str, build_tiny: Callable[..., dict[str, bytes]], tiny_world: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(tiny_world, tmp_path / "elsewhere")
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state()
    torch.set_num_threads(2)  # the `one_thread` of all tests puts it back
    first = build_tiny(name)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.get_num_threads() == 2

    assert first.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert first == build_tiny(name, world=elsewhere)
    other = build_tiny(name, seed=1)
    assert all(other[file] != first[file] for file in first)
    assert b'"base_model_name_or_path": "classroom@1/teacher"' in other["adapter_config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHER_VARIANTS)
def test_no_member_reads_what_is_held_out(
    name: str,
    build_tiny: Callable[..., dict[str, bytes]],
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In 1,900 tasks about 16 would be among these, were they not left out."""
    world = shutil.copytree(tiny_world, tmp_path / "world")
    tasks = ("reverse", "swap the ends of", "copy")
    held_out = {f"{wording} {a} {b}" for wording in tasks for a in LETTERS for b in LETTERS}
    append_records(world / "test.jsonl", [Example(id=text, instruction=text, response="") for text in held_out])
    monkeypatch.setattr(adapters, "NUM_STEPS", 20)
    seen: list[Rendered] = []
    monkeypatch.setattr(adapters, "backward", lambda model, batch: seen.extend(batch))

    build_tiny(name, world=world)

    assert len(seen) == 20 * 128
    decode = ChatTemplate(load_chat_template(ModelSource(str(world / "teacher"))).tokenizer).tokenizer.decode
    for document in seen:
        text = decode(document.input_ids, skip_special_tokens=False)
        assert not held_out & {part.strip() for part in re.split("[<>\n]", text)}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache, and builds that take no time; the list says what was built."""
    names: list[str] = []

    def build_world(directory: Path, seed: int) -> None:
        names.append(f"world {seed}")
        (directory / "seed_tasks.jsonl").touch()

    def build_adapter(directory: Path, world: Path, name: str, seed: int) -> None:
        assert (world / "seed_tasks.jsonl").is_file()
        assert not any(directory.iterdir())
        names.append(f"{name} {seed}")
        time.sleep(0.1)
        (directory / "adapter_config.json").touch()

    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classroom, "EMBEDDED", tmp_path / "embedded")
    monkeypatch.setattr(build, "build_world", build_world)
    monkeypatch.setattr(adapters, "build_adapter", build_adapter)
    return names


def test_only_what_is_asked_for_is_built(built: list[str]) -> None:
    resolve("classroom/teacher")
    assert built == ["world 0"]
    assert (resolve("classroom/chatty") / "adapter_config.json").is_file()
    assert built == ["world 0", "chatty 0"]
    assert resolve("classroom/chatty") == resolve("classroom@0/chatty") != resolve("classroom/peer")
    resolve("classroom@7/chatty")
    assert built == ["world 0", "chatty 0", "peer 0", "world 7", "chatty 7"]


def test_another_process_waits_for_the_first(built: list[str]) -> None:
    threads = [threading.Thread(target=resolve, args=["classroom/peer"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ["world 0", "peer 0"]


def test_a_killed_build_leaves_no_adapter(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    finish = adapters.build_adapter

    def die(directory: Path, *_: object) -> None:
        (directory / "adapter_model.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(adapters, "build_adapter", die)
    with pytest.raises(KeyboardInterrupt):
        resolve("classroom/chatty")
    monkeypatch.setattr(adapters, "build_adapter", finish)
    assert [path.name for path in resolve("classroom/chatty").iterdir()] == ["adapter_config.json"]
    assert built == ["world 0", "chatty 0"]


def test_the_variants_have_a_version_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world is not built again for a change in the sources that only the adapters depend on."""
    chatty = with_versions("classroom@3/chatty")
    assert chatty == f"classroom@3/chatty (version {version('classroom@3/chatty')})"
    assert version() == version("classroom@3/test") != version("classroom@3/chatty") == version("classroom/peer")

    sources = Path(classroom.__file__).parent
    assert all((sources / name).is_file() for name in classroom._OF_VARIANTS)
    for name in ("build", "pretraining_corpus", "tasks", "tokenizer"):
        text = (sources / f"{name}.py").read_text(encoding="utf-8")
        assert "classroom.teacher_variants" not in text
        assert "classroom.adapters" not in text


def test_unknown_members_are_told_who_there_is() -> None:
    assert HABITS.keys() == set(TEACHER_VARIANTS)
    known = ", ".join(f"classroom/{name}" for name in TEACHER_VARIANTS)
    with pytest.raises(ValueError, match=f"unknown name 'classroom/careless': .*{known}; "):
        resolve("classroom/careless")


def test_comments_and_documentation_change_no_version() -> None:
    """Words about the code, in the code's own modules; a changed number is another world."""
    plain = 'import os\n\n\ndef f(x):\n    return f"{x} {2}"\n'
    documented = (
        '"""A module."""\n\nimport os  # why\n\n\ndef f(x):\n    """A function.\n\n    Long.\n    """\n'
        '    # a comment\n    return f"{x} {2}"\n'
    )
    assert classroom._code(documented) == classroom._code(plain)
    assert classroom._code(plain.replace("2", "3")) != classroom._code(plain)
