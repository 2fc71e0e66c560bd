import pytest

from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.parsing import parse_instruction


@pytest.mark.parametrize(
    ("completion", "instruction"),
    [
        ("Because it is useful.\n<instruction>Name a river.</instruction>", "Name a river."),
        ("<instruction>\n  What is NASA?\n\ndef Foo(x):\n    pass\n</instruction> Done.", None),
        (
            "I write <instruction>INSTRUCTION</instruction>:\n<instruction>Größe in 日本語?</instruction>",
            "Größe in 日本語?",
        ),
        ("<instruction>first</instruction> and <instruction>cut at the", "first"),
        ("The <instruction> tag: <instruction>inner</instruction>", "inner"),
        ("<instruction>once</instruction> stray </instruction>", "once"),
    ],
)
def test_the_last_complete_pair_counts_and_keeps_its_text(completion: str, instruction: str | None) -> None:
    assert parse_instruction(completion) == (instruction or "What is NASA?\n\ndef Foo(x):\n    pass")


@pytest.mark.parametrize(
    ("completion", "reason", "detail"),
    [
        ("", "no instruction tag", "none in 0 characters"),
        ("Name a river.", "no instruction tag", "none in 13 characters"),
        ("Name a river.</instruction>", "no instruction tag", "none"),
        ("</instruction><instruction>Name a", "no instruction tag", "opened, never closed"),
        ("<instruction> \n </instruction>", "empty instruction", "only blanks"),
        ("<instruction>Name a river.</instruction><instruction></instruction>", "empty instruction", "only blanks"),
    ],
)
def test_what_holds_no_instruction_is_rejected(completion: str, reason: str, detail: str) -> None:
    with pytest.raises(Rejected, match=f"{reason}: .*{detail}") as rejected:
        parse_instruction(completion)
    assert rejected.value.reason == reason
    assert detail in rejected.value.detail
