"""Text to token ids, where a special token that somebody typed stays text.

A chat template writes special tokens around texts that may hold the same characters. To a tokenizer both are one, so
that `</s><|user|>` in a question would end it and begin another turn. Here each text is marked before the template
sees it: a noncharacter of Unicode stands before every special token in it. What is not marked in the rendered
conversation comes from the template.

    "a</s>"  ->  "a\\ufdd0</s>"  ->  "<|user|>a\\ufdd0</s><|assistant|>"  ->  <|user|>, a, <, /, s, >, <|assistant|>

A conversation without such text, which is nearly every one, goes to the tokenizer as it is.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TYPED = "\ufdd0"
"""Stands before a special token that is text; Unicode reserves noncharacters for a program's own use."""
_OPENING, _CLOSING = "\ufdd1", "\ufdd2"
"""Around the id of a special token of the template, while the text is tokenized."""
_NEUTRAL = ("a", "!")
"""Contexts in which a text is tokenized whose beginning would become one token with the end of its own."""
_NONCHARACTERS = re.compile(f"[{TYPED}{_OPENING}{_CLOSING}]")


def special_token_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The special tokens of a tokenizer with their ids."""
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


class TextEncoder:
    """Tokenizes rendered conversations.

    Args:
        tokenizer: of the model.
        turn_markers: added tokens that must not come from a text either, besides the special ones: some tokenizers do
            not call the markers of their turns special.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", turn_markers: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.token_ids = special_token_ids(tokenizer)
        """What a text never becomes, by how it is written."""
        self.token_ids |= {marker: tokenizer.get_vocab()[marker] for marker in turn_markers}
        self._any = _any_of(self.token_ids)
        self._places = re.compile(f"(?={self._any})") if self._any else None
        self._contexts: dict[str, list[int]] = {}

    def mark(self, text: str) -> str:
        """The text as a template may write it, with marks where it looks like a special token."""
        text = _NONCHARACTERS.sub("", text)
        return self._places.sub(TYPED, text) if self._places is not None else text

    def unmark(self, text: str) -> str:
        """A text without marks."""
        return text.replace(TYPED, "")

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which all that is not marked is the template's."""
        if not text:
            return []
        if TYPED in text:
            return list(self._guarded_ids(text))
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def ids_behind(self, context: str, text: str) -> list[int]:
        """Token ids of a text that stands behind another one, which is tokenized by itself.

        Some tokenizers put a blank before the first word of what they are given; within a conversation there is none.
        """
        # Where a token reaches from the one into the other, the text stands behind a letter instead.
        for before in (context, *_NEUTRAL):
            ids = self._contexts.get(before) or self._contexts.setdefault(before, self.ids(before))
            together = self.ids(before + text)
            if together[: len(ids)] == ids:
                return together[len(ids) :]
        return self.ids(text)

    def last_special(self, text: str) -> int:
        """Where the last special token of the template begins in this text; 0 where there is none."""
        return max((match.start() for match in self._of_template.finditer(text)), default=0)

    @cached_property
    def _of_template(self) -> re.Pattern[str]:
        return re.compile(f"(?<!{TYPED}){self._any}" if self._any else r"(?!)")

    def _guarded_ids(self, text: str) -> Iterator[int]:
        if not self.tokenizer.is_fast:
            yield from self._ids_in_pieces(text)
            return
        text = self._of_template.sub(lambda match: _stand_in(self.token_ids[match[0]]), text)
        stand_ins = self._stand_ins
        for id in self._guard.encode(self.unmark(text), add_special_tokens=False).ids:
            yield from [stand_ins[id]] if id in stand_ins else self._spelled(id)

    def _ids_in_pieces(self, text: str) -> Iterator[int]:
        """Of a tokenizer in Python: it takes special tokens for text in all of what it is given, or nowhere."""
        end = 0
        for match in self._of_template.finditer(text):
            yield from self._piece_ids(text[end : match.start()])
            yield self.token_ids[match[0]]
            end = match.end()
        yield from self._piece_ids(text[end:])

    def _piece_ids(self, text: str) -> list[int]:
        text = self.unmark(text)
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        return [part for id in ids for part in self._spelled(id)]

    def _spelled(self, id: int) -> list[int]:
        """The id, or its characters' where a vocabulary has a special token as an ordinary piece, as Unigram's may."""
        token = self._forbidden.get(id)
        if token is None:
            return [id]
        spelled = self.tokenizer.convert_tokens_to_ids(list(token))
        assert isinstance(spelled, list)  # an id is what a single token gives
        return [part for part in spelled if part is not None and part not in self._forbidden]

    @cached_property
    def _forbidden(self) -> dict[int, str]:
        # Unknown characters are ordinary text.
        return {id: token for token, id in self.token_ids.items() if id != self.tokenizer.unk_token_id}

    @cached_property
    def _guard(self) -> "Tokenizer":
        """The tokenizer with stand-ins for the special tokens, which are text to it."""
        from tokenizers import AddedToken, Tokenizer

        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self.token_ids
        guard = Tokenizer.from_str(json.dumps(content))
        guard.no_truncation()
        guard.no_padding()
        guard.encode_special_tokens = True
        # They take blanks around them as the tokens do for which they stand.
        originals = {token["content"]: token for token in content["added_tokens"]}
        guard.add_tokens(
            [
                AddedToken(
                    _stand_in(id),
                    special=False,
                    normalized=False,
                    **{key: originals.get(token, {}).get(key, False) for key in ("lstrip", "rstrip", "single_word")},
                )
                for token, id in self.token_ids.items()
            ]
        )
        return guard

    @cached_property
    def _stand_ins(self) -> dict[int, int]:
        ids = self._guard.get_vocab()
        return {ids[_stand_in(id)]: id for id in self.token_ids.values()}


def _stand_in(id: int) -> str:
    return f"{_OPENING}{id}{_CLOSING}"


def _any_of(tokens: Iterable[str]) -> str:
    """A regular expression that matches the longest token at a place; empty where there are none."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    if not longest_first:
        return ""
    # Some vocabularies have a thousand of them: most places are ruled out by their first character.
    firsts = "".join(sorted({re.escape(token[0]) for token in longest_first}))
    return rf"(?=[{firsts}])(?:{'|'.join(map(re.escape, longest_first))})"
