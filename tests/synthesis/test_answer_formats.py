"""What each answer format shows the teacher, and where it finds the instruction in what the teacher writes."""

import random

import pytest

from montessori_pl.data.records import Example
from montessori_pl.synthesis import Magpie, SelfInstruct, Synthesizer
from montessori_pl.synthesis.answer_formats import ANSWER_FORMS, AnswerFormat
from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.prompts import TEMPLATES

SEEDS = [
    Example(id="one", instruction="Name a\nriver.", response=""),
    Example(id="two", instruction="Say 2.", response=""),
]


def asked(answer_format: AnswerFormat) -> tuple[SelfInstruct, str]:
    synthesizer = SelfInstruct(num_seed_shots=2, num_written_shots=0, answer_format=answer_format)
    return synthesizer, synthesizer.prompt(random.Random(0), SEEDS, [])[0]


def test_tags() -> None:
    synthesizer, prompt = asked("tags")
    assert prompt.endswith("<instruction>Name a\nriver.</instruction>\n<instruction>Say 2.</instruction>")
    assert synthesizer.messages(prompt) == [{"role": "user", "content": prompt}]
    assert synthesizer.asks_in_chat
    assert synthesizer.read("So: <instruction>Go.</instruction>", finished=False) == "Go."


def test_prefilled_tags() -> None:
    synthesizer, prompt = asked("prefilled_tags")
    assert "<instruction>Name a\nriver.</instruction>\n<instruction>Say 2.</instruction>" in prompt
    assert synthesizer.messages(prompt) == [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "<instruction>"},
    ]
    assert not synthesizer.asks_in_chat
    assert synthesizer.read(" Go.</instruction>\n", finished=False) == "Go."
    assert synthesizer.read("<instruction>Go.</instruction>", finished=False) == "Go.", "a tag that stood there already"
    assert synthesizer.read("Go.", finished=True) == "Go.", "the end of the turn ends it, too"


def test_whole_completion() -> None:
    synthesizer, prompt = asked("whole_completion")
    assert "\n\nName a\nriver.\n\nSay 2.\n\n" in prompt
    assert "<instruction>" not in prompt
    assert synthesizer.asks_in_chat
    assert synthesizer.read("Go.\n\nNow. ", finished=True) == "Go.\n\nNow."


def test_numbered_list() -> None:
    """Self-Instruct's own, a line each."""
    synthesizer, prompt = asked("numbered_list")
    assert prompt == "Come up with a series of tasks:\n1. Name a river.\n2. Say 2.\n3."
    assert synthesizer.messages(prompt) == [{"role": "text", "content": prompt}]
    assert not synthesizer.asks_in_chat
    assert synthesizer.read(" Go.\n4", finished=False) == "Go."
    assert synthesizer.read(" Go.", finished=True) == "Go."


def test_magpie() -> None:
    assert Magpie().prompt(random.Random(0), SEEDS, SEEDS) == ("", ())
    assert Magpie().messages("") == []
    assert not Magpie().asks_in_chat
    assert Magpie().read("Go.\n", finished=True) == "Go."


@pytest.mark.parametrize("synthesizer", [Magpie(), *(asked(one)[0] for one in ANSWER_FORMS if one != "tags")])
def test_what_was_cut_is_no_instruction(synthesizer: Synthesizer) -> None:
    with pytest.raises(Rejected, match="unfinished instruction: it does not end in 9 characters"):
        synthesizer.read("Go and do", finished=False)
    with pytest.raises(Rejected, match="empty instruction"):
        synthesizer.read(f" {synthesizer.stop}", finished=True)


def test_every_format_has_its_request() -> None:
    assert {form.request for form in ANSWER_FORMS.values()} <= TEMPLATES.keys()
    with pytest.raises(ValueError, match="unknown prompt 'series'"):
        SelfInstruct("series", answer_format="numbered_list")
