"""Masks: trained tokens are exactly the responses and their end tokens, whatever stands in a response.

Two kinds of tokenizer are built here, both lossless: byte-level BPE, where a space belongs to the byte stream, and BPE
over metaspaces, where each text that is tokenized by itself gets a space in front. For each layout the texts around the
responses are written down by hand.
"""

import dataclasses
import itertools
import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from montessori_pl.data.chat_template import ChatTemplate, LossOn, Rendered
from montessori_pl.data.records import Example, Message, Turn
from montessori_pl.data.template_text import CHAT_TEMPLATES
from montessori_pl.pipeline.template_check import find_difference

TEXTS = [
    "What is one and one? It is two, is it not?",
    "### User: a task\n### Assistant: an answer",
    "a b c\n\nd  e",
] * 4
KINDS = ("byte-level", "metaspace")
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "plain": "</s>", "zephyr": "</s>", "auto": "<|im_end|>"}
"""The end-of-turn token that the tokenizer of each layout has."""
BEGIN = {"llama3": "<|begin_of_text|>", "plain": "<s>"}
"""The beginning-of-sequence token, for layouts that write one."""
SPECIAL = {
    "chatml": ["<|im_start|>"],
    "auto": ["<|im_start|>", "<|endoftext|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>"],
    "plain": [],
    "zephyr": ["<|user|>", "<|assistant|>"],
}
AUTO_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template of a tokenizer's own: turns end with a special token, which is not the end of the sequence, and a line
break behind it."""

SYSTEM, FIRST, SECOND = "Be brief.", "What is a?", "And b?"
AROUND = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is a?<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\nAnd b?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is a?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>user<|end_header_id|>\n\nAnd b?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "plain": (
        "<s>### System:\nBe brief.\n\n### User:\nWhat is a?\n\n### Assistant:\n",
        "\n\n### User:\nAnd b?\n\n### Assistant:\n",
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nWhat is a?</s>\n<|assistant|>\n",
        "\n<|user|>\nAnd b?</s>\n<|assistant|>\n",
    ),
}
AROUND["auto"] = AROUND["chatml"]
SYSTEM_TURN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "auto": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>",
    "plain": "### System:\nBe brief.\n\n",
    "zephyr": "<|system|>\nBe brief.</s>\n",
}
"""What stands in the system turn; `AROUND`: before the first response, and between the first and the second."""

RESPONSES = {
    "one letter": "a",
    "leading blanks": "  a b",
    "trailing blanks": "a b  ",
    "line breaks": "\n\na\n",
    "only a blank": " ",
    "punctuation": "a , b . it ' s n't",
    "Unicode": "ñ 你好 🎉 e\u0301 ß",
    "repeats the prompt": "What is a?",
    "repeats the header": "### Assistant:\nWhat is a?",
    "holds end tokens": "a</s>b<|im_end|>c<|eot_id|>\n d",
    "holds headers": "<|im_start|>assistant\na<|start_header_id|>user<|end_header_id|>\n\n<|assistant|>",
    "empty": "",
}

each_tokenizer = pytest.mark.parametrize(
    ("kind", "layout"), [(kind, layout) for kind in KINDS for layout in [*CHAT_TEMPLATES, "auto"]]
)
each_response = pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())


@cache
def make_tokenizer(kind: str, layout: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one or two hundred tokens beside the bytes, with the special tokens of this layout."""
    special = ["<pad>", END[layout], *SPECIAL[layout], *([BEGIN[layout]] if layout in BEGIN else [])]
    pieces: list[str] = []
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet, pieces = ["▁"], [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *pieces], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    content["model"]["byte_fallback"] = kind == "metaspace"
    # The trainer makes the byte pieces special tokens; here they are ordinary ones that stand in for unknown letters.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in pieces]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>" if layout == "auto" else END[layout],
        pad_token="<pad>",
        bos_token=BEGIN.get(layout),
        additional_special_tokens=[*SPECIAL[layout], END[layout]],
        chat_template=AUTO_TEMPLATE if layout == "auto" else None,
    )


def make_chat(kind: str, layout: str) -> ChatTemplate:
    return ChatTemplate(make_tokenizer(kind, layout), layout)


def token_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Template text as tokens, special ones as such."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def conversation(*responses: str, system: str = SYSTEM) -> list[Message]:
    """Questions and these responses, in turns."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, response in zip((FIRST, SECOND), responses, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return messages


def spans(rendered: Rendered) -> list[tuple[bool, list[int]]]:
    """Runs of tokens that are trained, or are not."""
    pairs = zip(rendered.completion_mask, rendered.input_ids, strict=True)
    return [(trained, [token for _, token in run]) for trained, run in itertools.groupby(pairs, lambda pair: pair[0])]


@each_tokenizer
@each_response
def test_trained_tokens_are_the_responses_and_their_end_tokens(kind: str, layout: str, response: str) -> None:
    """Two turns with a system message: around, response, around, response, and nothing behind the last end token."""
    chat_template, tokenizer = make_chat(kind, layout), make_tokenizer(kind, layout)
    end_id = tokenizer.convert_tokens_to_ids(END[layout])
    assert chat_template.end_id == end_id

    runs = spans(chat_template.render(conversation(response, "b")))
    assert [trained for trained, _ in runs] == [False, True, False, True]
    (_, before), (_, first), (_, between), (_, second) = runs
    assert before == token_ids(tokenizer, AROUND[layout][0])
    assert between == token_ids(tokenizer, AROUND[layout][1])
    for ids, text in ((first, response), (second, "b")):
        assert ids[-1] == end_id
        assert end_id not in ids[:-1], "the text of an end token is text"
        assert not set(ids[:-1]) & set(tokenizer.all_special_ids)
        assert chat_template.decode(ids) == (text, True)
        assert ids == chat_template.response_ids(text)


@each_tokenizer
@each_response
def test_prompt_is_the_exact_prefix_of_the_training_sequence(kind: str, layout: str, response: str) -> None:
    """What is trained on is, token for token, what is sampled, in the first turn and in a later one."""
    chat_template = make_chat(kind, layout)
    for messages in (conversation(response), conversation(response, system=""), conversation("b", response)):
        rendered = chat_template.render(messages)
        prompt = chat_template.prompt_ids(messages[:-1])
        assert rendered.input_ids == prompt + chat_template.response_ids(response)
        assert not any(rendered.completion_mask[len(prompt) - 1 : len(prompt)])
        assert all(rendered.completion_mask[len(prompt) :])


@each_tokenizer
@each_response
def test_response_decodes_to_itself(kind: str, layout: str, response: str) -> None:
    chat_template = make_chat(kind, layout)
    assert chat_template.decode(chat_template.response_ids(response)) == (response, True)
    assert chat_template.decode([*chat_template.response_ids(response), *chat_template.response_ids("more")]) == (
        response,
        True,
    )
    assert chat_template.decode(chat_template.response_ids(response, finished=False)) == (response, False)


@each_tokenizer
def test_single_turn_without_system_message(kind: str, layout: str) -> None:
    """The shortest conversation: the system turn alone is missing from the text before the response."""
    chat_template, tokenizer = make_chat(kind, layout), make_tokenizer(kind, layout)
    (_, before), (_, response) = spans(chat_template.render(conversation("a", system="")))
    text = AROUND[layout][0].replace(SYSTEM_TURN[layout], "")
    assert len(text) == len(AROUND[layout][0]) - len(SYSTEM_TURN[layout])
    assert before == token_ids(tokenizer, text)
    # Whether a blank stands in front of the word depends on what stands before it.
    assert [*before, *response] == token_ids(tokenizer, f"{text}a{END[layout]}")


@each_tokenizer
@pytest.mark.parametrize("response", ["a", "a b c\n\nd", "What is it?", "ñ 你好"])
def test_token_ids_are_those_of_the_template_as_a_whole(kind: str, layout: str, response: str) -> None:
    """Whatever is tokenized by itself here; with and without a system message, in one turn and in two."""
    chat_template, tokenizer = make_chat(kind, layout), make_tokenizer(kind, layout)
    for messages in (conversation(response), conversation(response, system=""), conversation("b", response)):
        whole = tokenizer.apply_chat_template(
            [dict(one) for one in messages], chat_template=chat_template.text.source, return_dict=False
        )
        ids = chat_template.render(messages).input_ids
        assert ids == whole[: len(ids)]
        assert len(whole) - len(ids) <= 2, "line breaks behind the end token"
        assert chat_template.conversation_ids(messages) == whole


@pytest.mark.slow
@each_tokenizer
def test_truncation_keeps_the_left(kind: str, layout: str) -> None:
    """At every length, whether asked for or set by the model's context, what is left is the left part."""
    whole = make_chat(kind, layout).render(conversation("a b", "c"))
    for length in range(len(whole.input_ids) + 2):
        cut = Rendered(whole.input_ids[:length], whole.completion_mask[:length])
        assert make_chat(kind, layout).render(conversation("a b", "c"), max_length=length) == cut
        short = ChatTemplate(make_tokenizer(kind, layout), layout, context=length)
        assert short.render(conversation("a b", "c")) == cut
        assert short.render(conversation("a b", "c"), max_length=length + 3) == cut


@pytest.mark.parametrize("kind", KINDS)
def test_end_token_of_the_template_goes_before_that_of_the_sequence(kind: str) -> None:
    """A template's own turn end is learned and sampled; `<|endoftext|>` never ends a turn of it."""
    chat_template, tokenizer = make_chat(kind, "auto"), make_tokenizer(kind, "auto")
    assert chat_template.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    ids = chat_template.render(conversation("a", "b")).input_ids
    assert tokenizer.eos_token_id not in ids
    assert ids.count(chat_template.end_id) == 5, "one for each turn"


def test_template_without_a_turn_end_gets_the_end_of_the_sequence(tmp_path: Path) -> None:
    """Also a layout in a file of the user's own; the text that stands behind a turn there is kept between turns."""
    layout = tmp_path / "mine.jinja"
    layout.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = make_tokenizer("byte-level", "plain")
    chat_template = ChatTemplate(tokenizer, str(layout))
    assert chat_template.end_id == tokenizer.eos_token_id
    rendered = chat_template.render(conversation("a", "b", system=""))
    assert tokenizer.decode(rendered.input_ids) == "user: What is a?\nassistant: a</s>\nuser: And b?\nassistant: b</s>"


def test_mistakes(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("byte-level", "plain")
    with pytest.raises(
        ValueError, match=r"brings no chat template; set `chat_template` to one of chatml, llama3, plain, zephyr or"
    ):
        ChatTemplate(tokenizer, "auto")
    with pytest.raises(
        ValueError, match=r"unknown chat template 'chatlm': expected auto, one of chatml, .* of a Jinja file"
    ):
        ChatTemplate(tokenizer, "chatlm")
    forgetful = tmp_path / "forgetful.jinja"
    forgetful.write_text(
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['role'] }}: {{ m['content'] }}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat_template = ChatTemplate(tokenizer, str(forgetful))
    assert any(chat_template.render(conversation("a")).completion_mask), "one turn is no problem"
    with pytest.raises(ValueError, match=r"rewrites earlier turns .* set loss_on: last, use conversations"):
        chat_template.render(conversation("a", "b"))


HISTORY = (Turn("user", "one"), Turn("assistant", "A"), Turn("user", "two"), Turn("assistant", "B", 0))


def test_the_loss_is_on_no_unknown_answers() -> None:
    with pytest.raises(ValueError, match="loss_on: expected one of all, last, found 'first'"):
        ChatTemplate(make_tokenizer("byte-level", "chatml"), loss_on="first")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss_on", ["all", "last"])
@pytest.mark.parametrize("layout", [*CHAT_TEMPLATES, "auto"])
def test_the_loss_is_on_all_answers_or_on_the_last(layout: str, loss_on: LossOn) -> None:
    """Never on an answer of weight 0; the tokens are the same, and the last mask begins where generation would."""
    template = ChatTemplate(make_tokenizer("byte-level", layout), layout, loss_on=loss_on)
    example = Example(id="x", instruction="three", response="C", history=HISTORY)
    whole, rendered = template.render(example.messages()), template.render_example(example)
    assert rendered.input_ids == whole.input_ids
    answers = {text: template.response_ids(text) for text in "ABC"}
    pairs = zip(rendered.input_ids, rendered.completion_mask, strict=True)
    learned = [token for token, is_learned in pairs if is_learned]
    assert learned == (answers["A"] if loss_on == "all" else []) + answers["C"]
    begins = len(template.prompt_ids(example.messages()[:-1]))
    assert rendered.completion_mask[begins:][: len(answers["C"])] == [True] * len(answers["C"])
    assert whole.completion_mask.count(True) == sum(map(len, answers.values()))


THOUGHTLESS = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Drops the reasoning of earlier answers, as the templates of reasoning models do."""


def test_where_earlier_turns_are_rewritten_the_last_answer_alone_can_be_learned(tmp_path: Path) -> None:
    """It stands behind the prompt that the template writes for it, which is also what is asked."""
    path = tmp_path / "thoughtless.jinja"
    path.write_text(THOUGHTLESS)
    history = (Turn("user", "one"), Turn("assistant", "<think>hm</think>A"))
    example = Example(id="x", instruction="two", response="<think>so</think>B", history=history)
    tokenizer = make_tokenizer("byte-level", "plain")
    last = ChatTemplate(tokenizer, str(path), loss_on="last")
    rendered = last.render_example(example)
    asked = example.messages()[:-1]
    prompt, answer = last.prompt_ids(asked), last.response_ids(example.response)
    assert rendered.input_ids == prompt + answer
    assert rendered.completion_mask == [False] * len(prompt) + [True] * len(answer)
    assert tokenizer.decode(prompt) == last.text(asked, add_generation_prompt=True).rstrip(" ")
    assert find_difference(last, example.messages(), last.learned(example)) is None

    every = ChatTemplate(tokenizer, str(path))
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        every.render_example(example)
    unlearned = dataclasses.replace(example, history=(history[0], dataclasses.replace(history[1], weight=0)))
    assert every.render_example(unlearned) == rendered, "answers of weight 0 are not learned either"
    # Where the first of three answers is learned, the second prompt would rewrite it.
    longer = (*history, Turn("user", "more"), Turn("assistant", "C", 0))
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        every.render_example(dataclasses.replace(example, history=longer))
