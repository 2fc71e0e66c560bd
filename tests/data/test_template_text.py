"""Which template writes, and what it is told: several named ones, contents in parts, variables, the clock."""

import time
from pathlib import Path
from typing import Any

import pytest
from test_special_tokens import MARKERS, SPECIAL, TEMPLATE, make_tokenizer
from transformers import PreTrainedTokenizerFast

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.data.template_text import TemplateText, chat_template_file

QUESTION: list[Message] = [{"role": "user", "content": "What is it?"}]
ANSWERED: list[Message] = [*QUESTION, {"role": "assistant", "content": "a b"}]
OTHER = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}tools")


def tokenizer_with(template: Any) -> PreTrainedTokenizerFast:
    backend = make_tokenizer("byte-level").backend_tokenizer  # type: ignore[attr-defined]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, additional_special_tokens=MARKERS, **SPECIAL
    )


def text_of(template: Any, layout: str = "auto", **variables: Any) -> str:
    return ChatTemplate(tokenizer_with(template), layout, variables=variables).render_text(ANSWERED)


def test_several_named_templates(tmp_path: Path) -> None:
    """As a mapping and, saved and loaded, in files of their own; the default is taken, or the one that is named."""
    plain = text_of(TEMPLATE)
    named = {"default": TEMPLATE, "tool_use": OTHER}
    assert text_of(named) == plain
    assert text_of(named, "tool_use") == plain.replace("<s>", "<s>tools")
    tokenizer_with(named).save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert isinstance(loaded.chat_template, dict)
    assert ChatTemplate(loaded).render_text(ANSWERED) == plain
    with pytest.raises(ValueError, match=r"brings the chat templates rag, tool_use and none .* to one of these names"):
        text_of({"tool_use": TEMPLATE, "rag": TEMPLATE})
    with pytest.raises(ValueError, match=r"unknown chat template 'tools': .* own \(default, tool_use\), or the path"):
        text_of(named, "tools")
    assert chat_template_file("tool_use") is None
    assert chat_template_file("mine.jinja") == Path("mine.jinja")


def test_a_template_that_says_by_itself_what_it_is_told() -> None:
    """Written as before, with the blanks at its beginning, and whatever values are told."""
    told = {"thinking": False, "note": 'it\'s "%}" \\ \n é', "nobody": None, "many": [1, {"a": -0.5}]}
    source = "\n  {% if not thinking %}off {% endif %}{{ note }} {{ nobody }} {{ many }} " + TEMPLATE
    written = ChatTemplate(tokenizer_with(source), variables=told).text
    alone = TemplateText(tokenizer_with(written.self_contained()))
    assert alone(ANSWERED) == written(ANSWERED)
    assert "off it's" in alone(ANSWERED)


def test_content_in_parts() -> None:
    """As multimodal models have it; a text would be gone through letter by letter, and nothing written of it."""
    parts = TEMPLATE.replace(
        "{{ m['content'] }}",
        "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}",
    )
    assert parts != TEMPLATE
    assert text_of(parts) == text_of(TEMPLATE)


def test_template_that_writes_nothing_of_a_turn() -> None:
    with pytest.raises(ValueError, match="does not write what a user says; set `chat_template` to one of chatml"):
        TemplateText(tokenizer_with("{{ bos_token }}"))
    only_questions = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="does not write what the assistant says; set `chat_template`"):
        ChatTemplate(tokenizer_with(only_questions))


def test_variables() -> None:
    """They reach the template; one that it does not read is a mistake and not passed over."""
    thinking = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{% if enable_thinking is false %}fast{% endif %}")
    assert text_of(thinking, enable_thinking=False) == text_of(TEMPLATE).replace("<s>", "<s>fast")
    assert text_of(thinking) == text_of(thinking, enable_thinking=True) == text_of(TEMPLATE)
    with pytest.raises(ValueError, match="does not read enable_thinkin, found in chat_template_kwargs; correct the"):
        text_of(thinking, enable_thinkin=False)
    with pytest.raises(ValueError, match="chat_template_kwargs must not hold tokenize, which the program sets itself"):
        text_of(thinking, tokenize=True)


def test_every_day_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that asks for the date gets the one that Llama 3.1's falls back to, or what it is told."""
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + TEMPLATE
    assert text_of(dated) == "26 Jul 2024" + text_of(TEMPLATE)
    assert text_of(dated, date_string="1 May 2030") == "1 May 2030" + text_of(TEMPLATE)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert text_of(dated) == "26 Jul 2024" + text_of(TEMPLATE)


def test_refusals_say_what_was_refused() -> None:
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}" + TEMPLATE
    )
    chat_template = ChatTemplate(tokenizer_with(strict))
    with pytest.raises(ValueError, match=r"refuses a conversation with the turns system, user: no system turn, please"):
        chat_template.prompt_ids([{"role": "system", "content": "Be brief."}, *QUESTION])


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        # Adds a generation prompt whatever is asked for.
        (
            TEMPLATE.replace("{% if add_generation_prompt %}", "{% if true %}"),
            "<s><|user|>What is it?<|assistant|>",
            "a b",
        ),
        # Never adds one.
        (
            TEMPLATE.replace("{% if add_generation_prompt %}", "{% if false %}"),
            "<s><|user|>What is it?<|assistant|>",
            "a b",
        ),
        # Blanks around the answer belong to its words, as in Mistral's and Llama 2's templates.
        (
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}"
            "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}",
            "<s>[INST] What is it? [/INST]",
            " a b ",
        ),
        # A generation prompt that ends with a blank.
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "user: What is it?</s>assistant:",
            " a b",
        ),
        # What stands at the ends of a text is taken away.
        (TEMPLATE.replace("m['content']", "m['content'] | trim"), "<s><|user|>What is it?<|assistant|>", "a b"),
        # Two end tokens: the first one ends the answer.
        (TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}<pad>"), "<s><|user|>What is it?<|assistant|>", "a b"),
    ],
    ids=["always", "never", "blanks", "blank prompt", "trim", "two ends"],
)
def test_forms_of_turns(template: str, prompt: str, answer: str) -> None:
    """Prompt and answer are together, token for token, what the template writes; two turns are one after the other."""
    given = " a b\n" if "trim" in template else "a b"
    tokenizer = tokenizer_with(template)
    chat_template = ChatTemplate(tokenizer)
    messages: list[Message] = [*QUESTION, {"role": "assistant", "content": given}]
    rendered = chat_template.render(messages)
    length = rendered.completion_mask.index(True)
    assert rendered.input_ids[:length] == chat_template.prompt_ids(QUESTION)
    assert tokenizer.decode(rendered.input_ids[:length]) == prompt
    assert tokenizer.decode(rendered.input_ids[length:]) == f"{answer}</s>"
    whole = tokenizer.apply_chat_template([dict(one) for one in messages], return_dict=False)
    assert rendered.input_ids == whole[: len(rendered.input_ids)]
    assert chat_template.decode(rendered.input_ids[length:]) == ("a b", True)
    twice = chat_template.render([*messages, *messages]).input_ids
    whole = tokenizer.apply_chat_template([dict(one) for one in [*messages, *messages]], return_dict=False)
    assert twice == whole[: len(twice)]
    assert sum(chat_template.render([*messages, *messages]).completion_mask) == 2 * sum(rendered.completion_mask)
