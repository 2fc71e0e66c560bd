"""Every kind of chat template either writes what is trained on, or is refused with where it parts and what to set."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example
from montessori_pl.pipeline.template_check import check_prompts, check_template, find_difference, one_of_each_form

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<|user|>{{ m.content }}{% else %}<|assistant|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ system if loop.last or loop.index0 == messages | length - 2 else '' }}"
    "{{ m.content }} [/INST]{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}<|im_start|>system\n\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}\n\n{{ system }}<|im_end|>{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
REWRITES = CHATML.replace("{{ m.content }}", "{{ m.content | replace('France', 'Gaul') }}")


def make_chat(template: Any, layout: str = "auto", eos_token: str = "</s>", **variables: Any) -> ChatTemplate:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIAL, initial_alphabet=alphabet, vocab_size=300, show_progress=False
    )
    backend.train_from_iterator(["What is the capital of France? Paris, of course. assistant"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos_token, pad_token="<pad>", chat_template=template
    )
    return ChatTemplate(tokenizer, layout, variables=variables)


def example(response: str = "a", instruction: str = "q", system: str = "", id: str = "one") -> Example:
    return Example(id=id, instruction=instruction, response=response, system=system)


@pytest.mark.parametrize("template", [CHATML, GEMMA_2, LLAMA_3, MISTRAL, DROPS_SYSTEM])
def test_templates_that_train_what_they_write(template: str) -> None:
    sources = {"data.test": [example(), example(" a b \n"), example("a\n</s>\n<|im_end|>b", "<|user|>c")]}
    check_template(make_chat(template), sources)


@pytest.mark.parametrize("layout", ["chatml", "llama3", "plain", "zephyr"])
def test_shipped_layouts(layout: str) -> None:
    check_template(make_chat(None, layout), {"data.test": [example(system="Be brief."), example("\na\n")]})


def test_generation_prompt_that_opens_reasoning() -> None:
    with pytest.raises(
        ValueError,
        match=r"prompt goes on with '<think>\\n', where the chat template goes on with 'Paris, of course.</s>' in a "
        r"whole conversation; set chat_template to one of chatml, llama3, plain, zephyr or to the path of a Jinja",
    ):
        check_template(make_chat(DEEPSEEK_R1), {})


def test_empty_reasoning() -> None:
    """The remedy is named where it is one, and is one."""
    with pytest.raises(
        ValueError,
        match=r"trained on goes on with 'Paris.*', where the chat template goes on with '<think>\\n\\n</think>\\n\\nP"
        r".*; set chat_template_kwargs: \{enable_thinking: false\}$",
    ):
        check_template(make_chat(QWEN_3), {})
    told = make_chat(QWEN_3, enable_thinking=False)
    check_template(told, {"data.test": [example(), example(system="Be brief.")]})
    thought = example("<think>\nwhy\n</think>\n\na", id="thought")
    with pytest.raises(ValueError, match=r"^data.test, example thought: the generation prompt goes on with .*</think>"):
        check_template(told, {"data.test": [example(), thought]})


def test_system_message_that_is_refused() -> None:
    """Only where there is one; before anything runs, and with the template's own words."""
    chat_template = make_chat(GEMMA_2)
    rows = [example(id="plain"), example(system="Be brief.", id="brief")]
    check_template(chat_template, {"data.reference": rows[:1]})
    with pytest.raises(
        ValueError,
        match=r"^data.reference, example brief: .* refuses a conversation with the turns system, user, assistant: "
        r"System role not supported; move the system messages into the instructions, or set chat_template to",
    ):
        check_template(chat_template, {"data.reference": rows})
    with pytest.raises(ValueError, match=r"^data.seed_tasks, example brief: .* System role not supported"):
        check_prompts(chat_template, {"data.seed_tasks": rows})


def test_text_that_is_left_out_or_rewritten() -> None:
    rows = {"data.test": [example(system="Be brief.", id="brief")]}
    with pytest.raises(
        ValueError, match=r"example brief: the chat template does not write what the system says, 'Be b"
    ):
        check_template(make_chat(DROPS_SYSTEM), rows)
    with pytest.raises(ValueError, match=r"does not write what the user says, 'What is the capital of France\?'"):
        check_template(make_chat(REWRITES), {})
    shortened = CHATML.replace("{{ m.content }}", "{{ m.content.split('#')[0] }}")
    with pytest.raises(
        ValueError, match=r"example one: what is trained on goes on with '#c.*', where the chat template"
    ):
        check_template(make_chat(shortened), {"recipe.data.source": [example("a b #c")]})


def test_wrong_end_of_the_sequence() -> None:
    """As in the tokenizer that Transformers reads from a GGUF file of SmolLM2."""
    with pytest.raises(ValueError, match=r"end token '<\|im_start\|>' of an answer also opens one, .* wrong eos_token"):
        check_template(make_chat(None, "chatml", eos_token="<|im_start|>"), {})
    check_template(make_chat(None, "chatml", eos_token="<|im_end|>"), {})


def test_several_turns() -> None:
    """A template that moves the system message to the last question cannot train the first answer."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2
    system = {"role": "system", "content": "Be brief."}
    assert find_difference(make_chat(CHATML), [system, *turns]) is None  # type: ignore[list-item]
    problem = find_difference(make_chat(MISTRAL), [system, *turns])  # type: ignore[list-item]
    assert problem is not None
    assert "rewrites earlier turns" in problem


def test_one_example_of_each_form() -> None:
    rows = [example(id="1"), example(id="2"), example(system="s", id="3"), example("<think>\n</think>b", id="4")]
    assert [one.id for one in one_of_each_form([*rows, *rows])] == ["1", "3", "4"]
