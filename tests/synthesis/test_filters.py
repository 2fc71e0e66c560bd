import pickle

import pytest

from montessori_pl.synthesis.filters import InstructionFilter, Rejected, ResponseFilter


@pytest.mark.parametrize(
    "instruction",
    [
        "Name 3 rivers.",
        "What is NASA?\n\nAnswer in two lines.",
        "Écris un poème sur la mer.",
        "请写一首关于海的诗。",
        "नमस्ते कैसे कहें?",
        "¿Qué es una hormiga?",
        '"To be or not to be": who wrote it?',
        "„Sein oder Nichtsein“ - wer schrieb das?",
        "»So«, sagte er. Was meint er?",
        "(a) Name a river. (b) Name a lake.",
        "$5 are how many euros?",
        "12 + 30 = ?",
        "Explain how profiles and mapping differ from filesystems.",
    ],
)
def test_good_instructions_pass(instruction: str) -> None:
    InstructionFilter().check(instruction)


@pytest.mark.parametrize(
    ("instruction", "reason", "detail"),
    [
        ("", "too short", "0 characters"),
        ("  Why?  ", "too short", "4 characters, at least 6"),
        ("a" * 4001, "too long", "4001 characters, at most 4000"),
        ("Describe this Image in a sentence.", "keyword", "Image"),
        ("Where shall I go\nto in summer?", "keyword", "go\nto"),
        ("List all files.", "keyword", "files"),
        ("- Name a river.", "starts with punctuation", "-"),
        (": Name a river.", "starts with punctuation", ":"),
        ("。请写一首诗。请写一首诗。", "starts with punctuation", "。"),
        ("• Name a river.", "starts with punctuation", "•"),
    ],
)
def test_bad_instructions_are_rejected_with_reason_and_detail(instruction: str, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as rejected:
        InstructionFilter().check(instruction)
    assert rejected.value.reason == reason
    assert detail in rejected.value.detail
    assert str(rejected.value) == f"{reason}: {rejected.value.detail}"


def test_lengths_are_inclusive() -> None:
    rule = InstructionFilter(min_characters=3, max_characters=5)
    rule.check("abc")
    rule.check(" abcde\n")


def test_keywords_are_whole_words_even_with_signs() -> None:
    rule = InstructionFilter(keywords=("c++", "übung"))
    rule.check("Write the c+ grade and many Übungen.")
    with pytest.raises(Rejected, match=r"keyword: C\+\+"):
        rule.check("Translate this into C++, please.")
    with pytest.raises(Rejected, match="keyword: ÜBUNG"):
        rule.check("EINE ÜBUNG!")


def test_every_rule_can_be_turned_off() -> None:
    rule = InstructionFilter(min_characters=0, keywords=(), allow_leading_punctuation=True)
    for instruction in ("", "-", "draw a map"):
        rule.check(instruction)


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="min_characters=9 and max_characters=3 keep nothing"):
        InstructionFilter(min_characters=9, max_characters=3)
    with pytest.raises(ValueError, match=r"keywords\[1\]: expected str, not empty"):
        InstructionFilter(keywords=("map", " "))


def test_responses() -> None:
    ResponseFilter().kept("4", finished=False)
    ResponseFilter(allow_unfinished=False).kept("4", finished=True)
    ResponseFilter(min_characters=0).kept("", finished=True)
    with pytest.raises(Rejected, match="empty response: 0 characters"):
        ResponseFilter().kept(" \n", finished=True)
    with pytest.raises(Rejected, match="too short: 1 characters, at least 2"):
        ResponseFilter(min_characters=2).kept("4", finished=True)
    with pytest.raises(Rejected, match="unfinished response: cut after 8 characters"):
        ResponseFilter(allow_unfinished=False).kept("The answ", finished=False)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>\nwhy\n</think>\n\nIt is 4.", "It is 4."),
        ("why</think>4", "4"),  # the prompt has opened it
        ("<think></think>4", "4"),
        ("So: <think>a</think>4<think>b</think> or 5", "So: 4or 5"),
        ("<think>a <think>b</think> c</think> 4", "4"),
        ("2 < 4 and 5 > 4, thinks <b>he</b>", "2 < 4 and 5 > 4, thinks <b>he</b>"),
    ],
)
def test_reasoning_is_taken_out_of_a_response(response: str, answer: str) -> None:
    assert ResponseFilter().kept(response, finished=True) == answer
    assert ResponseFilter(reasoning="keep").kept(response, finished=True) == response
    if response == answer:
        assert ResponseFilter(reasoning="refuse").kept(response, finished=True) == response
    else:
        with pytest.raises(Rejected, match=rf"reasoning: {len(response) - len(answer)} of {len(response)} characters"):
            ResponseFilter(reasoning="refuse").kept(response, finished=True)


def test_reasoning_that_never_ends_is_no_response() -> None:
    for response in ("<think>I wonder", "<think>a</think>4<think>I"):
        with pytest.raises(Rejected, match=rf"unfinished reasoning: no </think> in {len(response)} characters"):
            ResponseFilter().kept(response, finished=False)
    with pytest.raises(Rejected, match="empty response"):
        ResponseFilter().kept("<think>a</think>\n", finished=True)


def test_a_rejection_survives_a_worker_process() -> None:
    copy = pickle.loads(pickle.dumps(Rejected("too short", "4 characters")))
    assert (copy.reason, copy.detail) == ("too short", "4 characters")
