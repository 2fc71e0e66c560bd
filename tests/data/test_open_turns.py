"""Turns that a model goes on with: a prefilled answer, a user's turn, and a text without a template.

What stands before them is written down by hand for the templates of real families; tokens are those of two kinds of
tokenizer, of which one puts a blank before every text.
"""

from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message, SampledTokens, teacher_messages

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "[INST]", "[/INST]"]
TEXTS = ["Name a river in France, or two.\n<instruction>It is so.</instruction>\nCome up with a series of tasks:"] * 3

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
LLAMA_3 = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
OPENINGS = {
    "chatml": (CHATML, "<|im_start|>user\n", "<|im_end|>"),
    "smollm": (SMOLLM, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n", "<|im_end|>"),
    "llama3": (LLAMA_3, "<s><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "gemma": (GEMMA, "<s><start_of_turn>user\n", "<end_of_turn>"),
    "zephyr": (ZEPHYR, "<|user|>\n", "</s>"),
    "mistral": (MISTRAL, "<s>[INST]", "[/INST]"),
}
"""Template, what stands before a user's first word, and what ends the turn."""
WRITTEN = ["Name a river.", "two\n\nlines", "a</s>b", "<instruction>x", ""]
ASKED: list[list[Message]] = [
    teacher_messages("Write."),
    teacher_messages("Write.", prefill="<instruction>"),
    teacher_messages("", "user_turn"),
    teacher_messages("Come up with a series of tasks:\n1.", "text"),
]


@cache
def make_chat(family: str, kind: str, special: tuple[str, ...] = tuple(SPECIAL)) -> ChatTemplate:
    backend = Tokenizer(models.BPE(unk_token=None))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "byte-level":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = sorted({*map(chr, range(32, 127)), "\n", "▁"})
    trainer = trainers.BpeTrainer(
        special_tokens=list(special), initial_alphabet=alphabet, vocab_size=400, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=OPENINGS[family][0]
    )
    return ChatTemplate(tokenizer)


@pytest.fixture(params=["byte-level", "metaspace"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("family", OPENINGS)
def test_a_user_turn_is_open_and_ends_as_the_template_ends_it(family: str, kind: str) -> None:
    chat_template = make_chat(family, kind)
    _, opening, end = OPENINGS[family]
    end_id = chat_template.tokenizer.convert_tokens_to_ids(end)
    prompt, turn = chat_template.prompt_ids([]), chat_template.open_turn([])
    assert turn.end_id == end_id
    said = chat_template.response_ids("Name a river.", turn=turn)
    assert said[-1] == end_id
    asked = chat_template.prompt_ids([{"role": "user", "content": "Name a river."}])
    assert asked[: len(prompt) + len(said)] == prompt + said, "as if a user had said it"
    assert chat_template.tokenizer.decode(prompt).replace(" ", "") == opening.replace(" ", "")


@pytest.mark.parametrize("family", OPENINGS)
@pytest.mark.parametrize("messages", ASKED, ids=["answer", "prefilled", "user", "text"])
def test_texts_come_back(family: str, kind: str, messages: list[Message]) -> None:
    """Whole and cut ones, and special tokens in a text stay text."""
    chat_template = make_chat(family, kind)
    turn = chat_template.open_turn(messages)
    for text in WRITTEN:
        for finished in (True, False):
            ids = chat_template.response_ids(text, finished, turn=turn)
            assert chat_template.decode(ids, turn) == (text, finished)
            assert (turn.end_id in ids) == finished
            assert chat_template.sampled_tokens(ids, turn) is None


@pytest.mark.parametrize("family", OPENINGS)
@pytest.mark.parametrize("messages", ASKED, ids=["answer", "prefilled", "user", "text"])
def test_another_split_is_trained_on_as_it_was_sampled(family: str, kind: str, messages: list[Message]) -> None:
    chat_template = make_chat(family, kind)
    turn = chat_template.open_turn(messages)
    letters = chat_template.tokenizer.convert_tokens_to_ids(list("river"))
    assert isinstance(letters, list)
    text, _ = chat_template.decode(letters, turn)
    tokens = chat_template.sampled_tokens(letters, turn)
    assert text == "river"
    assert tokens == SampledTokens(tuple(letters), chat_template.fingerprint)
    assert chat_template.response_ids(text, False, tokens, turn) == letters
    assert chat_template.response_ids("a river", False, tokens, turn) != letters, "they stand for their text alone"


@pytest.mark.parametrize("family", OPENINGS)
def test_a_prefilled_answer_stands_where_an_answer_does(family: str, kind: str) -> None:
    chat_template = make_chat(family, kind)
    prompt: list[Message] = [{"role": "user", "content": "Write."}]
    messages: list[Message] = [*prompt, {"role": "assistant", "content": "<instruction>"}]
    ids = chat_template.prompt_ids(messages)
    assert ids == chat_template.prompt_ids(prompt) + chat_template.response_ids("<instruction>", finished=False)
    rest = chat_template.response_ids("Go.", turn=chat_template.open_turn(messages))
    whole = chat_template.render([*prompt, {"role": "assistant", "content": "<instruction>Go."}]).input_ids
    assert chat_template.tokenizer.decode(ids + rest) == chat_template.tokenizer.decode(whole)


def test_a_text_stands_alone() -> None:
    """Special tokens in it stay text, and it begins as the tokenizer begins a text."""
    chat_template = make_chat("chatml", "byte-level")
    ids = chat_template.prompt_ids(teacher_messages("1. a</s>\n2.", "text"))
    assert chat_template.tokenizer.decode(ids) == "1. a</s>\n2."
    assert chat_template.tokenizer.eos_token_id not in ids
    assert chat_template.open_turn(teacher_messages("1.", "text")).end_id == chat_template.tokenizer.eos_token_id


def test_a_user_turn_without_an_end_of_one_token_is_refused() -> None:
    special = tuple(one for one in SPECIAL if "INST" not in one)
    chat_template = make_chat("mistral", "byte-level", special)
    with pytest.raises(ValueError, match=r"ends a user turn by '\[/INST\]', which is no single token"):
        chat_template.open_turn([])


def test_tokens_that_hold_a_text() -> None:
    chat_template = make_chat("chatml", "byte-level")
    ids = chat_template.ids_holding("\n")
    assert chat_template.tokenizer.convert_tokens_to_ids("Ċ") in ids
    assert all("\n" in chat_template.tokenizer.decode([id]) for id in ids)
