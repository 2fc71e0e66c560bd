"""The tokenizer: text comes back unchanged, one token for each item, one token for the end."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.classroom.tokenizer import EOS, train_tokenizer
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message


def sample_texts(num_tasks: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [text for _ in range(num_tasks) for text in sample_task(rng, rng.choice(FAMILIES))]


@pytest.fixture(scope="module", params=["trained", "loaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    trained = train_tokenizer(sample_texts(2000, seed=0))
    if request.param == "trained":
        return trained
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_classroom_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerBase) -> None:
    chat_template = ChatTemplate(tokenizer)
    for text in sample_texts(300, seed=1):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
        assert chat_template.decode(chat_template.response_ids(text)) == (text, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "\n\na\n b",
        "<instruction>copy a b</instruction>",
        "because\n<instruction> copy a b </instruction> .",
        "{[(~!@#$%^&*)]} ABC xyz",
        "</s> <s> <pad> <|user|>",
    ],
)
def test_printable_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    chat_template = ChatTemplate(tokenizer)
    assert chat_template.decode(chat_template.response_ids(text)) == (text, True)
    assert chat_template.decode(chat_template.response_ids(text, finished=False)) == (text, False)


@pytest.mark.parametrize(
    "text", ["h\u00e9 \u6f22\u5b57 \U0001f600 \u200d", "\x00\t\r\x0b", "\ufffd\u2581 \ud7ff", "a\u0301"]
)
def test_any_unicode_is_taken(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    chat_template = ChatTemplate(tokenizer)
    ids = chat_template.response_ids(text)
    assert ids[-1] == chat_template.end_id
    assert chat_template.end_id not in ids[:-1]
    assert isinstance(chat_template.decode(ids)[0], str)


def test_an_item_is_the_same_token_everywhere(tokenizer: PreTrainedTokenizerBase) -> None:
    chat_template = ChatTemplate(tokenizer)
    for item in "abcdefghij0123456789":
        (alone,) = chat_template.response_ids(item, finished=False)
        assert chat_template.response_ids(f"reverse {item} {item}", finished=False)[-2:] == [alone, alone]
        assert alone in chat_template.prompt_ids([{"role": "user", "content": f"{item} is the first word"}])


def test_conversations_have_marks_and_one_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "copy"},
        {"role": "user", "content": "reverse a b"},
        {"role": "assistant", "content": "b a"},
        {"role": "user", "content": "copy a b"},
        {"role": "assistant", "content": "a b"},
    ]
    chat_template = ChatTemplate(tokenizer)
    rendered = chat_template.render(messages)
    assert chat_template.end_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(EOS)
    assert rendered.input_ids.count(chat_template.end_id) == 2
    assert sum(rendered.completion_mask) == 6
    for mark in ("<s>", "<|system|>", "<|user|>", "<|assistant|>"):
        assert rendered.input_ids.count(tokenizer.convert_tokens_to_ids(mark)) == (
            2 if mark in ("<|user|>", "<|assistant|>") else 1
        )
    assert rendered.input_ids[: len(chat_template.prompt_ids(messages[:2]))] == chat_template.prompt_ids(messages[:2])


def test_tags_and_line_breaks_are_ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("<instruction>\n</instruction>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    assert not set(ids) & set(tokenizer.all_special_ids)
