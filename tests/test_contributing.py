"""The plug-ins that the documentation shows are code that runs."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from montessori_pl.data.records import Example, append_records, read_records
from montessori_pl.generation import Request, Sampling
from montessori_pl.synthesis.filters import Rejected

HOW_TO = Path(__file__).parents[1] / "docs" / "how_to"
PAGES = ("new_signal", "weak_teacher", "new_engine", "new_stage")
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", (HOW_TO / f"{page}.md").read_text("utf-8"), flags=re.DOTALL)
    if re.search(r"^class ", block, flags=re.MULTILINE)
]
EXAMPLES = [Example(id=f"e{n}", instruction="x" * n, response="yes") for n in (3, 1, 2)]


@pytest.fixture
def shown() -> dict[str, Any]:
    """All classes that the pages show."""
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in BLOCKS:
        exec(compile(block, "documentation", "exec"), namespace)
    return namespace


def test_each_example_is_short() -> None:
    assert len(BLOCKS) == 5
    assert all(len(block.splitlines()) <= 35 for block in BLOCKS)


def test_signal(shown: dict[str, Any]) -> None:
    batch = {"labels": torch.tensor([[-100, 5, 6, 7]])}
    assert shown["ResponseLength"](limit=2).score(None, EXAMPLES[0], batch, torch.zeros(1)).value == 2.0


def test_synthesizer(shown: dict[str, Any]) -> None:
    prompt, seed_task_ids = shown["FirstLine"]().prompt(random.Random(0), EXAMPLES[:1], [])
    assert prompt.endswith("\nxxx")
    assert seed_task_ids == ("e3",)
    assert shown["FirstLine"]().instruction("one\ntwo") == "one"
    with pytest.raises(Rejected, match="empty completion"):
        shown["FirstLine"]().instruction(" ")


def test_engine(shown: dict[str, Any]) -> None:
    request = Request(messages=[{"role": "user", "content": "hello"}], seed=0)
    assert [one.text for one in shown["Parrot"]().generate([request], Sampling())] == ["hello"]


def test_evaluator(shown: dict[str, Any]) -> None:
    class Data:
        def read(self, role: str) -> list[Example]:
            assert role == "test"
            return EXAMPLES

    assert shown["AnswerLength"]().evaluate("student", Data(), shown["Parrot"]) == {"answer_tokens": 1.0}


def test_stage(shown: dict[str, Any], tmp_path: Path) -> None:
    class Context:
        inputs = {"examples": tmp_path}  # noqa: RUF012
        directory = tmp_path / "kept"

    Context.directory.mkdir()
    append_records(tmp_path / "examples.jsonl", EXAMPLES)
    assert shown["Shortest"]("any", num_examples=2).run(Context) == {"kept": 2}
    assert [one.id for one in read_records(Context.directory / "examples.jsonl", Example)] == ["e1", "e2"]
