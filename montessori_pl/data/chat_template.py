"""Messages to token ids and loss mask: the one rendering path.

Generation, supervised fine-tuning, DPO, probing and judging all render here, so that what is trained on is, token for
token, what is sampled. The mask is made while rendering and never by searching text: each assistant turn is tokenized
by itself, between the template's text before it and the end token after it.

    <template text ... generation prompt> <response> <end token> <template text ...> <response> <end token>
     not trained                           trained    trained      not trained        trained    trained

Ordinary text gets the token ids that the tokenizer's own `apply_chat_template` gives; special tokens that somebody has
typed stay text (`special_tokens`).
"""

import dataclasses
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from montessori_pl.data.reasoning import REASONING_TAGS
from montessori_pl.data.records import Example, Message, SampledTokens, stable_id
from montessori_pl.data.special_tokens import TextEncoder, special_token_ids
from montessori_pl.data.template_text import CHAT_TEMPLATES, TemplateText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["all", "last"]
"""Of which answers of a conversation the loss is taken: of all, or of the last one alone."""

_SYSTEM, _QUESTION, _ANSWER = "montessori-system", "montessori-question", "montessori-answer"
"""A conversation that no template changes: what a template puts around it is the form of a turn."""
_MARKER = re.compile(r"[<\[{(|].*\w.*[>\]})|]")
"""What a token looks like that is no ordinary text: `<|user|>`, `[INST]`, `<start_of_turn>`."""
_CONTEXT = 32
"""Characters of a prompt in whose context an answer is tokenized, where the prompt holds no special token."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it."""

    input_ids: Sequence[int]
    """Token ids, length T."""
    completion_mask: Sequence[bool] | Sequence[int]
    """Length T: true on the tokens of responses and on their end tokens."""

    def compact(self) -> "Rendered":
        """The same in arrays, for those who keep many: 5 bytes a token in place of more than 40 in lists."""
        return Rendered(array("i", self.input_ids), array("b", self.completion_mask))


@dataclasses.dataclass(frozen=True)
class TurnForm:
    """What a template writes around an answer."""

    header: str
    """What follows the template's generation prompt, where the template has none of its own."""
    blanks: str
    """Blanks at the end of the generation prompt; they belong to the first word of the answer."""
    before: str
    """Blank text between the prompt without these blanks and the answer."""
    after: str
    """Blank text between the answer and its end token."""
    end: str
    """The text of the end token; empty where the template writes none."""
    rest: str
    """What the template writes behind the end token."""


@dataclasses.dataclass(frozen=True)
class OpenTurn:
    """A turn that a model goes on with: what its tokens stand behind, and what ends it."""

    context: str
    """The end of the text before it, as far as tokens depend on it."""
    before: str
    """Blank text at its beginning that is not part of what is said."""
    after: str
    """The same between what is said and the end token."""
    end_id: int
    """The token that ends it."""


class ChatTemplate:
    """How one tokenizer writes conversations.

    Args:
        tokenizer: a tokenizer with an end-of-sequence token.
        layout: `auto` (the tokenizer's own chat template), the name of a shipped layout or of one of several templates
            of the tokenizer, or a path to a Jinja file.
        context: how many positions the model has; conversations for training are cut there. None: any number.
        variables: what the template is told apart from the messages, for example `enable_thinking: false`.
        loss_on: of which answers of an example the loss is taken.

    Raises:
        ValueError: there is no such template, it does not read one of the variables, it cannot write a question with
            its answer, or `loss_on` names no answers.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        layout: str = "auto",
        context: int | None = None,
        variables: Mapping[str, Any] | None = None,
        loss_on: LossOn = "all",
    ) -> None:
        if loss_on not in get_args(LossOn):
            raise ValueError(f"loss_on: expected one of {', '.join(get_args(LossOn))}, found {loss_on!r}")
        self.tokenizer, self.layout, self.context, self.loss_on = tokenizer, layout, context, loss_on
        self.text = TemplateText(tokenizer, layout, variables)
        """What the template writes of messages, as text."""
        question: Message = {"role": "user", "content": _QUESTION}
        whole = self.text([question, {"role": "assistant", "content": _ANSWER}])
        if _ANSWER not in whole:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} does not write what the assistant says; set "
                f"`chat_template` to one of {', '.join(CHAT_TEMPLATES)} or to the path of a Jinja file"
            )
        self._encoder = TextEncoder(tokenizer, _turn_markers(self.text))
        self.form = self._find_form(question, whole)
        """What the template writes around an answer."""
        ids = self._encoder.ids(self.form.end)
        self.end_id: int = ids[0] if ids else tokenizer.eos_token_id
        """The token that ends a response; a template without a one-token end uses the end-of-sequence token."""
        self._contexts_ids: dict[str, list[int]] = {}
        self._ids_by_text: dict[str, list[int]] = {}

    def telling(self, variables: Mapping[str, Any]) -> "ChatTemplate":
        """The same template, told something else."""
        return ChatTemplate(self.tokenizer, self.layout, self.context, variables, self.loss_on)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the model goes on: see `open_turn`."""
        role = _open_role(messages)
        if role == "user":
            return self._encoder.ids(self._user_form(messages)[0])
        if role == "text":
            return [*self._first_ids, *self._encoder.ids(self._encoder.mark(messages[0]["content"]))]
        if role == "assistant":
            prefill = self._encoder.mark(messages[-1]["content"])
            return [*self.prompt_ids(messages[:-1]), *self._answer_ids(prefill, finished=False)]
        return [token for ids, _ in self._segments(messages, continued=True, learned=[]) for token in ids]

    def open_turn(self, messages: Sequence[Message]) -> OpenTurn:
        """The turn that the model goes on with.

        * Behind a user turn it is the assistant's.
        * A last message of the assistant is a prefill: the assistant's turn goes on behind it.
        * Without a turn, with a system message at most, it is the user's: the model says what a user might ask.
        * A message of the role `text` is continued by itself, without a template.

        Raises:
            ValueError: the user's turn is open, and the template ends it by no single token.
        """
        role, answer = _open_role(messages), self._answer_turn
        if role == "assistant":
            prefill = self._encoder.mark(messages[-1]["content"])
            return dataclasses.replace(answer, context=f"{answer.context}{answer.before}{prefill}", before="")
        if role == "user":
            opening, before, after, end_id = self._user_form(messages)
            return OpenTurn(self._end_of(opening), before, after, end_id)
        if role == "text":
            text = self._encoder.mark(messages[0]["content"])
            return OpenTurn(self._end_of(text), "", "", self.tokenizer.eos_token_id)
        return answer

    def response_ids(
        self, text: str, finished: bool = True, sampled: SampledTokens | None = None, turn: OpenTurn | None = None
    ) -> list[int]:
        """Token ids of a response as it is sampled, with its end token if it was finished.

        Special tokens that stand in the text as text stay text: they cannot end the turn early.

        Args:
            text: the response.
            finished: whether the end token is part of it.
            sampled: its tokens, where they are known. They are what it consists of if they are of this vocabulary and
                stand for this text; otherwise the text alone counts.
            turn: the turn whose rest it is; none for an assistant's whole turn.
        """
        known = self._known_ids(text, finished, sampled, turn)
        return known or self._answer_ids(self._encoder.mark(text), finished, turn)

    def sampled_tokens(self, ids: Sequence[int], turn: OpenTurn | None = None) -> SampledTokens | None:
        """What must be kept of a sampled response beside its text; none where the text gives the same ids again.

        A model may sample another split of a text than the tokenizer makes of it, half of a character, or a special
        token, which is no text.

        Args:
            ids: what was sampled, up to the end token.
            turn: the turn whose rest it is; none for an assistant's whole turn.
        """
        ids, turn = list(ids), turn or self._answer_turn
        text, finished = self.decode(ids, turn)
        same = self.response_ids(text, finished, turn=turn) == ids
        if same and (turn != self._answer_turn or self._is_written(text)):
            return None
        return SampledTokens(tuple(ids), self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """Two templates share it if an answer of the one is, id for id, an answer of the other."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return stable_id(vocabulary, self.end_id, self.form.before, self.form.after)

    def conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a whole conversation with all that the template writes behind it."""
        return self._encoder.ids(self.text(self._marked(messages)))

    def render_text(self, messages: Sequence[Message], learned: Sequence[bool] | None = None) -> str:
        """The text of which `render` makes token ids."""
        pieces = self._pieces(messages, continued=False, learned=learned)
        return self._encoder.unmark("".join(text if role is None else self._around(text) for text, role in pieces))

    def learned(self, example: Example) -> list[bool]:
        """For each answer of an example, whether the loss is taken of it; never of earlier ones of weight 0."""
        earlier = [turn.weight > 0 and self.loss_on == "all" for turn in example.history if turn.role == "assistant"]
        return [*earlier, True]

    def render_example(self, example: Example, max_length: int | None = None) -> Rendered:
        """Token ids of an example, with the mask on the answers of which the loss is taken: see `learned`."""
        return self.render(example.messages(), max_length, self.learned(example), example.response_tokens)

    def render(
        self,
        messages: Sequence[Message],
        max_length: int | None = None,
        learned: Sequence[bool] | None = None,
        sampled: SampledTokens | None = None,
    ) -> Rendered:
        """Token ids and mask of a whole conversation, cut on the right to `max_length` tokens and to the context.

        Args:
            messages: the conversation.
            max_length: the longest that it may be.
            learned: for each assistant turn, whether the mask is on it; none puts it on all of them. A template may
                rewrite earlier turns when the conversation goes on, as those do that drop earlier reasoning: turns
                before the first learned one are read as they stand then, which is what the model is asked.
            sampled: the tokens of the last answer, where they are known: see `response_ids`.
        """
        input_ids: list[int] = []
        trained: list[bool] = []
        segments = list(self._segments(messages, False, learned))
        if known := self._known_ids(messages[-1]["content"], True, sampled):
            segments[-1] = known, segments[-1][1]
        for ids, is_learned in segments:
            input_ids += ids
            trained += [is_learned] * len(ids)
        return self.cut(Rendered(input_ids, trained), max_length)

    def cut(self, rendered: Rendered, max_length: int | None = None) -> Rendered:
        """The same without what stands on the right of `max_length` tokens or of the model's context."""
        # Behind its last position a model raises an index error, or, worse, goes on with numbers that mean nothing.
        length = min((limit for limit in (max_length, self.context) if limit is not None), default=None)
        return Rendered(rendered.input_ids[:length], rendered.completion_mask[:length])

    def decode(self, ids: Sequence[int], turn: OpenTurn | None = None) -> tuple[str, bool]:
        """Text of a sampled response, and whether it was finished (its end token was sampled)."""
        turn = turn or self._answer_turn
        finished = turn.end_id in ids
        kept = list(ids)[: list(ids).index(turn.end_id)] if finished else list(ids)
        text = self._decode_behind(self._context_ids(turn), [id for id in kept if id not in self._silent_ids])
        text = text.removeprefix(turn.before)
        return text.removesuffix(turn.after) if finished else text, finished

    def ids_holding(self, text: str) -> list[int]:
        """All tokens that hold this text as a whole: where it ends a completion, they do."""
        return self._ids_by_text.setdefault(text, [id for id, token in self._tokens if text in token])

    def _segments(
        self, messages: Sequence[Message], continued: bool, learned: Sequence[bool] | None
    ) -> Iterator[tuple[list[int], bool]]:
        """Pieces of the conversation, each tokenized by itself, with whether it is learned."""
        end = self.form.end or str(self.tokenizer.eos_token)
        for number, (text, is_learned) in enumerate(self._pieces(messages, continued, learned)):
            if is_learned is not None:
                yield self._answer_ids(text, finished=True), is_learned
            else:
                yield self._encoder.ids_behind(end, text) if number else self._encoder.ids(text), False

    def _pieces(
        self, messages: Sequence[Message], continued: bool, learned: Sequence[bool] | None
    ) -> list[tuple[str, bool | None]]:
        """In turns the text before an answer and the answer without what the template writes around it, marked.

        Args:
            messages: the conversation.
            continued: whether the assistant answers next.
            learned: for each answer, whether it is learned; those beyond are not, and none learns all.

        Returns:
            each text with whether it is learned, or none where it is no answer.
        """
        messages, written = self._marked(messages), ""
        answers = iter(learned if learned is not None else [True] * len(messages))
        pieces: list[tuple[str, bool | None]] = []

        def add_prompt(prompt: str) -> None:
            if prompt.startswith(written):
                pieces.append((prompt[len(written) :], None))
            elif any(is_learned for _, is_learned in pieces):
                raise ValueError(
                    "this chat template rewrites earlier turns when the conversation goes on, so that no mask can be "
                    "made for several answers; set loss_on: last, use conversations with one answer, or another layout "
                    f"({', '.join(CHAT_TEMPLATES)})"
                )
            else:
                pieces[:] = [(prompt, None)]

        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._prompt(messages[:index])
            add_prompt(prompt)
            answer = self._as_written(message["content"], prompt, messages[: index + 1])
            pieces.append((answer, next(answers, False)))
            written = prompt + self._around(answer)
        if continued:
            add_prompt(self._prompt(messages))
        return pieces

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        return [{"role": one["role"], "content": self._encoder.mark(one["content"])} for one in messages]

    def _around(self, answer: str) -> str:
        return f"{self.form.before}{answer}{self.form.after}{self.form.end}"

    def _prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the answer begins."""
        text = self.text(messages, add_generation_prompt=True) + self.form.header
        return text.removesuffix(self.form.blanks)

    def _answer_ids(self, text: str, finished: bool, turn: OpenTurn | None = None) -> list[int]:
        """Token ids of a marked answer."""
        turn = turn or self._answer_turn
        after = turn.after if finished else ""
        ids = self._encoder.ids_behind(turn.context, f"{turn.before}{text}{after}") if text else []
        return [*ids, turn.end_id] if finished else ids

    def _known_ids(
        self, text: str, finished: bool, sampled: SampledTokens | None, turn: OpenTurn | None = None
    ) -> list[int]:
        """The sampled tokens where they stand for this text, ended if it is finished; empty where they do not."""
        if sampled is None or sampled.vocabulary != self.fingerprint:
            return []
        written, ended = self.decode(sampled.ids, turn)
        if written != text or (ended and not finished):
            return []
        if ended or not finished:
            return list(sampled.ids)
        turn = turn or self._answer_turn
        after = self._encoder.ids_behind(turn.context, turn.after) if turn.after else []
        return [*sampled.ids, *after, turn.end_id]

    def _is_written(self, text: str) -> bool:
        """Whether the template writes this answer with the blanks that it has."""
        if text == text.strip():
            return True
        messages = self._marked([{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": text}])
        answer = messages[-1]["content"]
        return self._as_written(answer, self._prompt(messages[:-1]), messages) == answer

    def _as_written(self, answer: str, prompt: str, messages: Sequence[Message]) -> str:
        """The answer as the template writes it: with other blanks, but in the same words."""
        before, after = prompt + self.form.before, self.form.after + self.form.end + self.form.rest
        whole = self.text(messages)
        if not (whole.startswith(before) and whole.endswith(after)):
            return answer
        written = whole[len(before) : len(whole) - len(after)]
        return written if written.split() == answer.split() else answer

    def _find_form(self, question: Message, whole: str) -> TurnForm:
        opening, _, behind = whole.rpartition(_ANSWER)
        prompt = self.text([question], add_generation_prompt=True)
        header, blanks, before = "", prompt[len(prompt.rstrip(" ")) :], ""
        gap = opening.removeprefix(prompt) if opening.startswith(prompt) else None
        if gap is not None and not gap.strip():
            before = blanks + gap
        elif gap is not None and prompt == self.text([question]):
            header, blanks, before = gap.rstrip(" "), "", gap[len(gap.rstrip(" ")) :]
        else:  # the prompt says what the whole conversation does not, or the other way round
            blanks = ""
        end = behind.lstrip()
        end = next((token for token in self._longest_first if end.startswith(token)), end.rstrip())
        if len(self._encoder.ids(end)) != 1:
            return TurnForm(header, blanks, before, after="", end="", rest=behind)
        after, _, rest = behind.partition(end)
        return TurnForm(header, blanks, before, after, end, rest)

    @cached_property
    def _longest_first(self) -> list[str]:
        return sorted(filter(None, self._encoder.token_ids), key=len, reverse=True)

    def _user_form(self, messages: Sequence[Message]) -> tuple[str, str, str, int]:
        """Where a user's turn is open: the text up to it, blanks before and behind what is said, and its end token."""
        asked: list[Message] = [*self._marked(messages), {"role": "user", "content": _QUESTION}]
        opening, _, behind = self._prompt(asked).partition(_QUESTION)
        rest = behind.lstrip()
        end = next((token for token in self._longest_first if rest.startswith(token)), "")
        ids = self._encoder.ids(end)
        if len(ids) != 1:
            raise ValueError(
                f"the chat template of {self.tokenizer.name_or_path!r} ends a user turn by {rest[:20]!r}, which is no "
                "single token, so that a user turn that the model writes would not end; ask in another way"
            )
        prompt = opening.rstrip(" ")
        return prompt, opening[len(prompt) :], behind.partition(end)[0], ids[0]

    @cached_property
    def _first_ids(self) -> list[int]:
        """What the tokenizer puts in front of a text that stands alone."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    @cached_property
    def _answer_turn(self) -> OpenTurn:
        prompt = self._prompt([{"role": "user", "content": _QUESTION}])
        return OpenTurn(self._end_of(prompt), self.form.before, self.form.after, self.end_id)

    def _end_of(self, text: str) -> str:
        """The end of a text, from its last special token on."""
        return text[self._encoder.last_special(text) or -_CONTEXT :]

    def _context_ids(self, turn: OpenTurn) -> list[int]:
        """What a turn is decoded behind, so that a blank at its beginning is neither lost nor made up."""
        if turn.context not in self._contexts_ids:
            self._contexts_ids[turn.context] = self._find_context_ids(turn.context)
        return self._contexts_ids[turn.context]

    def _find_context_ids(self, context: str) -> list[int]:
        ids = self._encoder.ids(context)
        # Most tokenizers put a blank in front of a text behind a special token, and take it away where it begins; a few
        # do both only at the beginning of a whole sequence.
        contexts = [id for id in ids if id not in self._silent_ids], ids
        texts = ("a", " a")
        answers = [self._encoder.ids_behind(context, text) for text in texts]
        return next(
            (
                one
                for one in contexts
                if all(self._decode_behind(one, ids) == text for ids, text in zip(answers, texts, strict=True))
            ),
            contexts[0],
        )

    @cached_property
    def _tokens(self) -> list[tuple[int, str]]:
        """The text of every token of the vocabulary."""
        return [(id, self._decode([id])) for id in sorted(self.tokenizer.get_vocab().values())]

    @cached_property
    def _silent_ids(self) -> frozenset[int]:
        """Special tokens, which are no text when they are sampled; the tags of reasoning are."""
        special = special_token_ids(self.tokenizer)
        return frozenset(id for token, id in special.items() if token not in REASONING_TAGS)

    def _decode_behind(self, context: Sequence[int], ids: Sequence[int]) -> str:
        before, together = self._decode(context), self._decode([*context, *ids])
        return together[len(before) :] if together.startswith(before) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids))
        assert isinstance(text, str)  # a list of texts is what a list of lists gives
        return text


def _open_role(messages: Sequence[Message]) -> str:
    """Whose turn is open: `user`, `text`, `assistant` for a prefill; empty where the assistant's turn begins."""
    role = messages[-1]["role"] if messages else "system"
    return "" if role == "user" else "user" if role == "system" else role


def _turn_markers(text: TemplateText) -> list[str]:
    """Added tokens that a template writes around turns though they are not special."""
    question: Message = {"role": "user", "content": _QUESTION}
    turns: list[Message] = [question, {"role": "assistant", "content": _ANSWER}, question]
    try:
        around = text([{"role": "system", "content": _SYSTEM}, *turns])
    except ValueError:  # it has no system turn
        around = text(turns).partition(_QUESTION)[2]  # in front may stand a system turn of the template's own
    tokens = [token.content for token in text.tokenizer.added_tokens_decoder.values() if not token.special]
    return [token for token in tokens if _MARKER.fullmatch(token) and token not in REASONING_TAGS and token in around]
