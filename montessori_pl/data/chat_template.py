"""Messages to token ids and loss mask: the one rendering path.

Generation, supervised fine-tuning, DPO, probing and judging all render here, so that what is trained on is, token for
token, what is sampled. The mask is made while rendering and never by searching text: each assistant turn is tokenized
by itself, between the template's text before it and the end token after it.

    <template text ... generation prompt> <response> <end token> <template text ...> <response> <end token>
     not trained                           trained    trained      not trained        trained    trained
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from montessori_pl.data.records import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATES = {path.stem: path for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}
"""The shipped layouts by name; each ends a turn with the tokenizer's own end-of-sequence token."""

LossOn = Literal["all", "last"]
"""Of which answers of a conversation the loss is taken: of all, or of the last one alone."""

_PROBE = "montessori-probe"
"""A response that no template changes; what a template puts behind it is the end of a turn."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it."""

    input_ids: list[int]
    """Token ids, length T."""
    completion_mask: list[bool]
    """Length T: True on the tokens of responses and on their end tokens."""


class ChatTemplate:
    """How one tokenizer writes conversations.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        layout: `auto` (the tokenizer's own chat template), the name of a shipped layout, or a path to a Jinja file.
        context: how many positions the model has; conversations for training are cut there. None: any number.
        loss_on: of which answers of an example the loss is taken.

    Raises:
        ValueError: the layout is unknown, or `auto` and the tokenizer brings no chat template.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        layout: str = "auto",
        context: int | None = None,
        loss_on: LossOn = "all",
    ) -> None:
        self.tokenizer, self.context, self.loss_on = tokenizer, context, loss_on
        self._template = _find_template(tokenizer, layout)
        self._turn_end = self._find_turn_end()
        ids = self._ids(self._turn_end)
        self.end_id: int = ids[0] if len(ids) == 1 else tokenizer.eos_token_id
        """The token that ends a response; a template without a one-token end uses the end-of-sequence token."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant's next turn begins."""
        return [token for ids, _ in self._segments(messages, continued=True) for token in ids]

    def response_ids(self, text: str, finished: bool = True) -> list[int]:
        """Token ids of a response as it is sampled, with its end token if it was finished.

        Special tokens that stand in the text as text stay text: they cannot end the turn early.
        """
        ids = self._ids(text, split_special_tokens=True) if text else []
        return [*ids, self.end_id] if finished else ids

    def render_example(self, example: Example, max_length: int | None = None) -> Rendered:
        """Token ids of an example, with the mask on the answers of which the loss is taken: see `loss_on`.

        Earlier answers of weight 0 are never among them.
        """
        earlier = [turn.weight > 0 and self.loss_on == "all" for turn in example.history if turn.role == "assistant"]
        return self.render(example.messages(), max_length, [*earlier, True])

    def render(
        self, messages: Sequence[Message], max_length: int | None = None, learned: Sequence[bool] | None = None
    ) -> Rendered:
        """Token ids and mask of a whole conversation, cut on the right to `max_length` tokens and to the context.

        Args:
            messages: the conversation.
            max_length: the longest that it may be.
            learned: for each assistant turn, whether the mask is on it; none puts it on all of them.
        """
        input_ids: list[int] = []
        trained: list[bool] = []
        answers = iter(learned if learned is not None else [True] * len(messages))
        for ids, is_answer in self._segments(messages, continued=False):
            input_ids += ids
            trained += [is_answer and next(answers)] * len(ids)
        return self.cut(Rendered(input_ids, trained), max_length)

    def cut(self, rendered: Rendered, max_length: int | None = None) -> Rendered:
        """The same without what stands on the right of `max_length` tokens or of the model's context."""
        # Behind its last position a model raises an index error, or, worse, goes on with numbers that mean nothing.
        length = min((limit for limit in (max_length, self.context) if limit is not None), default=None)
        return Rendered(rendered.input_ids[:length], rendered.completion_mask[:length])

    def decode(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Text of a sampled response, and whether it was finished (its end token was sampled)."""
        finished = self.end_id in ids
        kept = list(ids)[: list(ids).index(self.end_id)] if finished else list(ids)
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        assert isinstance(text, str)  # a list of texts is what a list of lists gives
        return text, finished

    def _segments(self, messages: Sequence[Message], continued: bool) -> Iterator[tuple[list[int], bool]]:
        """Pieces of the conversation, each tokenized by itself, with whether it is trained on."""
        written = ""
        pending = ""  # template text behind the last end token, for example a line break
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._text(messages[:index], add_generation_prompt=True)
            yield self._ids(pending + _behind(before, written)), False
            yield self.response_ids(message["content"]), True
            written = self._text(messages[: index + 1])
            pending = self._after_end
        if continued:
            before = self._text(messages, add_generation_prompt=True)
            yield self._ids(pending + _behind(before, written)), False

    def _find_turn_end(self) -> str:
        """The text that ends an assistant turn; remembers in `_after_end` what follows it in the template."""
        question: Message = {"role": "user", "content": "?"}
        text = self._text([question, {"role": "assistant", "content": _PROBE}])
        end = text[text.rindex(_PROBE) + len(_PROBE) :]
        stripped = end.strip() or str(self.tokenizer.eos_token)
        self._after_end = end[end.index(stripped) + len(stripped) :] if stripped in end else end
        return stripped

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        rendered = self.tokenizer.apply_chat_template(
            as_dicts(messages),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return str(rendered)

    def _ids(self, text: str, split_special_tokens: bool = False) -> list[int]:
        if not text:
            return []
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]


def _behind(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise ValueError(
            "this chat template rewrites earlier turns when the conversation goes on, so that no mask can be made "
            "for several assistant turns; use conversations with one assistant turn, or another layout "
            f"({', '.join(CHAT_TEMPLATES)})"
        )
    return text[len(prefix) :]


def chat_template_file(layout: str) -> Path | None:
    """The Jinja file that a layout names; none for `auto`, and for a layout that ships with the program."""
    return None if layout == "auto" or layout in CHAT_TEMPLATES else Path(layout)


def _find_template(tokenizer: "PreTrainedTokenizerBase", layout: str) -> str:
    if layout == "auto":
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} brings no chat template; "
                f"set `chat_template` to one of {', '.join(CHAT_TEMPLATES)} or to the path of a Jinja file"
            )
        return str(tokenizer.chat_template)
    path = CHAT_TEMPLATES.get(layout, Path(layout))
    if not path.is_file():
        raise ValueError(
            f"unknown chat template {layout!r}: expected auto, one of {', '.join(CHAT_TEMPLATES)}, or the path of "
            "a Jinja file"
        )
    return path.read_text(encoding="utf-8")


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The same messages for Transformers, which asks for plain dicts, and to type checkers a TypedDict is none."""
    return cast("list[dict[str, str]]", list(messages))
