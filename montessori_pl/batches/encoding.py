"""Examples and pairs as token ids."""

from collections.abc import Sequence
from typing import NamedTuple

from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, PreferencePair


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
            rendered.append(conversation)
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


def encode_pairs(pairs: Sequence[PreferencePair], chat_template: ChatTemplate, max_length: int) -> list[EncodedPair]:
    """Render both whole completions of each pair exactly as they were sampled; pairs that do not fit are left out."""
    encoded = []
    for pair in pairs:
        messages = pair.messages()
        ids, turn = chat_template.prompt_ids(messages), chat_template.open_turn(messages)
        sides = [
            chat_template.cut(Rendered(ids + response, [False] * len(ids) + [True] * len(response)), max_length)
            for response in (
                chat_template.response_ids(pair.chosen, pair.chosen_finished, pair.chosen_tokens, turn),
                chat_template.response_ids(pair.rejected, pair.rejected_finished, pair.rejected_tokens, turn),
            )
        ]
        if all(any(side.completion_mask) for side in sides):
            encoded.append(EncodedPair(sides[0], sides[1], pair.weight))
    return encoded
