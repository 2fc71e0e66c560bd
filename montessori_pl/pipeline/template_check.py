"""Whether what a model is trained on is what its own chat template writes; checked before anything runs."""

from collections.abc import Iterator, Mapping, Sequence

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.reasoning import REASONING_TAGS, without_reasoning
from montessori_pl.data.records import Example, Message
from montessori_pl.data.template_text import CHAT_TEMPLATES

SYSTEM: Message = {"role": "system", "content": "Answer in one word."}
CONVERSATION: list[Message] = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris, of course."},
]
WITHOUT_REASONING = ({"enable_thinking": False}, {"thinking": False})
"""What templates of reasoning models may be told so that they write no reasoning."""
_SHOWN = 40
"""Characters that a sentence shows of a rendered conversation."""


def check_template(chat_template: ChatTemplate, sources: Mapping[str, Sequence[Example]]) -> None:
    """Compare our rendering with the template's own, for a plain conversation and for rows of every source.

    Args:
        chat_template: of a model that is trained.
        sources: what it is trained and measured on, by the setting that names it.

    Raises:
        ValueError: they differ; the sentence says where they part, and what to set.
    """
    problem = find_difference(chat_template, CONVERSATION) or _wrong_end(chat_template)
    if problem is None and _accepts(chat_template, [SYSTEM, *CONVERSATION]):
        problem = find_difference(chat_template, [SYSTEM, *CONVERSATION])
    if problem is not None:
        raise ValueError(f"{problem}; {_remedy(chat_template, CONVERSATION)}")
    for setting, examples in sources.items():
        for example in one_of_each_form(examples):
            messages, learned = example.messages(), chat_template.learned(example)
            if (problem := find_difference(chat_template, messages, learned)) is not None:
                remedy = _remedy(chat_template, messages, learned)
                raise ValueError(f"{setting}, example {example.id}: {problem}; {remedy}")


def check_prompts(chat_template: ChatTemplate, sources: Mapping[str, Sequence[Example]]) -> None:
    """Let a model that only writes be asked what the sources ask.

    Raises:
        ValueError: its template refuses, or leaves something out.
    """
    for setting, examples in sources.items():
        for example in one_of_each_form(examples):
            messages = example.messages()[:-1]
            if (problem := _missing(chat_template, messages, add_generation_prompt=True)) is not None:
                raise ValueError(f"{setting}, example {example.id}: {problem}; {_other_layouts()}")


def one_of_each_form(examples: Sequence[Example]) -> Iterator[Example]:
    """The first example of each sequence of turns, of equal weights, with reasoning in the response and without."""
    seen = set()
    for example in examples:
        turns = tuple((turn.role, turn.weight) for turn in example.history)
        form = bool(example.system), turns, any(tag in example.response for tag in REASONING_TAGS)
        if form not in seen:
            seen.add(form)
            yield example


def find_difference(
    chat_template: ChatTemplate, messages: Sequence[Message], learned: Sequence[bool] | None = None
) -> str | None:
    """Where our rendering and the template's own part, up to the end of the answer; none where they do not.

    Args:
        chat_template: renders in both ways.
        messages: a conversation that ends with an answer.
        learned: for each answer, whether it is learned; none learns all.
    """
    try:
        own, prompt = chat_template.text(messages), chat_template.text(messages[:-1], add_generation_prompt=True)
        ours = chat_template.render_text(messages, learned)
    except ValueError as error:
        return str(error)
    if not own.startswith(ours):
        return _parting(chat_template, prompt, ours, own)
    if (missing := _missing(chat_template, messages)) is not None:
        return missing
    if messages[-1]["content"] != CONVERSATION[-1]["content"]:
        return None  # in a text of the user's, a token may reach over the edge of a turn
    ids = list(chat_template.render(messages).input_ids)[:-1]
    theirs = chat_template.conversation_ids(messages)
    edge = next((place for place, pair in enumerate(zip(ids, theirs, strict=False)) if pair[0] != pair[1]), len(ids))
    context = chat_template.context
    if edge == len(ids) or (context is not None and edge >= context):
        return None
    decode = chat_template.tokenizer.decode
    return (
        f"the template as a whole is tokenized otherwise than turn by turn: {decode(theirs[edge : edge + 3])!r} begins "
        f"with another token than {decode(ids[edge : edge + 3])!r}"
    )


def _parting(chat_template: ChatTemplate, prompt: str, ours: str, own: str) -> str:
    answer_begins = _common_length(prompt, own)
    if answer_begins < len(prompt):
        return (
            f"the generation prompt goes on with {_shown(prompt[answer_begins:])}, where the chat template goes on "
            f"with {_shown(own[answer_begins:])} in a whole conversation"
        )
    edge = _common_length(ours, own)
    return (
        f"what is trained on goes on with {_shown(ours[edge:])}, where the chat template goes on with "
        f"{_shown(own[edge:])}, behind {_shown(own[max(0, edge - _SHOWN) : edge])}"
    )


def _missing(
    chat_template: ChatTemplate, messages: Sequence[Message], add_generation_prompt: bool = False
) -> str | None:
    """What the template does not write of a conversation, or why it refuses it.

    Blanks do not count, nor does the reasoning of earlier answers, which templates of reasoning models drop.
    """
    try:
        own = _without_blanks(chat_template.text(messages, add_generation_prompt=add_generation_prompt))
    except ValueError as error:
        return str(error)
    for place, message in enumerate(messages):
        earlier_answer = message["role"] == "assistant" and place + 1 < len(messages)
        said = without_reasoning(message["content"]) if earlier_answer else message["content"]
        if _without_blanks(said or "") not in own:
            return f"the chat template does not write what the {message['role']} says, {_shown(message['content'])}"
    return None


def _wrong_end(chat_template: ChatTemplate) -> str | None:
    """A sentence where the end token of an answer is also what opens one, so that no answer could end."""
    prompt = chat_template.text(CONVERSATION[:-1], add_generation_prompt=True)
    end = str(chat_template.tokenizer.convert_ids_to_tokens(chat_template.end_id))
    # The first one may end the question.
    if prompt.rpartition(CONVERSATION[0]["content"])[2].count(end) < 2:
        return None
    return (
        f"the end token {end!r} of an answer also opens one, so that none could end: the tokenizer of "
        f"{chat_template.tokenizer.name_or_path!r} names the wrong eos_token in its tokenizer_config.json"
    )


def _remedy(chat_template: ChatTemplate, messages: Sequence[Message], learned: Sequence[bool] | None = None) -> str:
    """What to set so that this conversation is written in one way."""
    layout = chat_template.text
    for variables in WITHOUT_REASONING:
        name = next(iter(variables))
        if layout.reads(name) and layout.variables.get(name) is not False:
            told = chat_template.telling({**layout.variables, **variables})
            if find_difference(told, messages, learned) is None:
                return f"set chat_template_kwargs: {{{name}: false}}"
    if messages[0]["role"] == "system" and not _accepts(chat_template, [SYSTEM, *CONVERSATION]):
        return f"move the system messages into the instructions, or {_other_layouts()}"
    return _other_layouts()


def _accepts(chat_template: ChatTemplate, messages: Sequence[Message]) -> bool:
    return _missing(chat_template, messages) is None


def _other_layouts() -> str:
    return f"set chat_template to one of {', '.join(CHAT_TEMPLATES)} or to the path of a Jinja file"


def _common_length(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
