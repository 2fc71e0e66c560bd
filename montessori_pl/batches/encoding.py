"""Examples and pairs as token ids."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, Message, PreferencePair, SampledTokens, teacher_messages


def encode_examples(
    examples: Sequence[Example], chat_template: ChatTemplate, max_length: int
) -> tuple[list[Rendered], list[Example]]:
    """Render examples; those whose response does not fit are left out and returned beside the others.

    Returns:
        the rendered examples, and the examples that have no response token within `max_length`.
    """
    rendered, too_long = [], []
    for example in examples:
        conversation = chat_template.render_example(example, max_length)
        if any(conversation.completion_mask):
            rendered.append(conversation.compact())
        else:
            too_long.append(example)
    return rendered, too_long


class EncodedPair(NamedTuple):
    """A preference pair in tokens."""

    chosen: Rendered
    """Prompt and preferred completion."""
    rejected: Rendered
    """Prompt and the other completion."""
    weight: float = 1.0
    """How much the pair counts."""
    reference: tuple[float, float] | None = None
    """Log-probabilities of both completions under the reference policy, once they are known."""


class EncodedCompletion(NamedTuple):
    """A completion in tokens, and how much better than others of its prompt it is."""

    rendered: Rendered
    """Prompt and completion."""
    advantage: float
    """Above 0 where it is to become likelier."""
    sampled: tuple[float, ...] | None = None
    """Log-probabilities of its tokens under the policy that sampled it, once they are known."""
    reference: tuple[float, ...] | None = None
    """The same under the reference policy."""


def encode_pairs(pairs: Sequence[PreferencePair], chat_template: ChatTemplate, max_length: int) -> list[EncodedPair]:
    """Render both whole completions of each pair exactly as they were sampled, cut after `max_length` tokens.

    Pairs of which nothing of a completion is left are left out.
    """
    encoded = []
    for pair in pairs:
        chosen, rejected = (
            _render(chat_template, pair.messages(), completion, max_length)
            for completion in (
                (pair.chosen, pair.chosen_finished, pair.chosen_tokens),
                (pair.rejected, pair.rejected_finished, pair.rejected_tokens),
            )
        )
        if any(chosen.completion_mask) and any(rejected.completion_mask):
            encoded.append(EncodedPair(chosen, rejected, pair.weight))
    return encoded


def encode_completions(
    examples: Sequence[Example], advantages: Mapping[str, float], chat_template: ChatTemplate, max_length: int
) -> list[EncodedCompletion]:
    """Render the whole completions that have an advantage exactly as they were sampled.

    They are cut after `max_length` tokens, and left out where that leaves nothing of them.

    Args:
        examples: in their order.
        advantages: by example id.
        chat_template: the teacher's.
        max_length: tokens of prompt and completion.
    """
    encoded = []
    for example in examples:
        if example.id not in advantages:
            continue
        messages = teacher_messages(example.prompt, example.prompt_format, example.prefill)
        completion = example.completion, example.completion_finished, example.completion_tokens
        rendered = _render(chat_template, messages, completion, max_length)
        if any(rendered.completion_mask):
            encoded.append(EncodedCompletion(rendered, advantages[example.id]))
    return encoded


def _render(
    chat_template: ChatTemplate,
    messages: list[Message],
    completion: tuple[str, bool, SampledTokens | None],
    max_length: int,
) -> Rendered:
    """A prompt with a completion of it: its text, whether it has ended, and its tokens where they are known."""
    ids, turn = chat_template.prompt_ids(messages), chat_template.open_turn(messages)
    response = chat_template.response_ids(*completion, turn)
    whole = Rendered(ids + response, [False] * len(ids) + [True] * len(response))
    return chat_template.cut(whole, max_length).compact()
