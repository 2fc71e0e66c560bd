"""Finding, among many kept texts, the one that a new text repeats: ROUGE-L, exact and fast.

The decisions are those of comparing with every kept text, one by one. An exact bound leaves few to compare: F1 is
2 * common / (n + m), where `common`, the longest common subsequence, is at most the shorter length, so that a match
shares more than F1 / (2 - F1) of a text's n tokens, and with them some of its rarest.
"""

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import floor
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import extract_iter

# Some scripts write no blanks between words: there each letter is a token, elsewhere each word.
_UNSPACED = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd\u0ec0-\u0ec6\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3\u17d7\u17dc"  # Burmese, Khmer
)
_FIRST_UNSPACED = "\u0e01"
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

# Far above the rounding errors of an F1 and far below the distance of two different ones, so that the bounds drop none.
_ROUNDING = 1e-9

# So many of its rarest tokens must a match share: with one, GSM8K's problems each were compared with a sixth of the
# others, and with six, with 21 of 7,000. With more, looking common tokens up takes longer than it saves.
_RARE = 6

# Spells every word that no kept text holds. Kept words have the characters from 1 on, of which there is a million.
_UNKNOWN = chr(0)


@dataclass(frozen=True)
class Match:
    """A kept text that a new one resembles."""

    id: str
    """Id under which the text was added."""
    text: str
    """The kept text."""
    similarity: float
    """ROUGE-L F1 of both texts, from 0 to 1."""


class NearDuplicateIndex:
    """Kept texts, searchable for the one most similar to a new text.

    A kept text matches when its ROUGE-L F1 with the new text is greater than `threshold`; the same string (but for
    white space) always matches, with similarity 1, so that `threshold=1` finds exact duplicates only.

    Example::

        index = NearDuplicateIndex(threshold=0.7)
        if index.find(text) is None:
            index.add(id, text)

    Args:
        threshold: similarity above which a text counts as a repetition, from 0 to 1.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"{threshold=} is no ROUGE-L F1; give a number from 0 to 1 (0.7 is usual)")
        self.threshold = threshold
        self._kept: list[tuple[str, str]] = []
        # Each word as one character, because the library compares strings fastest.
        self._spelled: list[str] = []
        self._characters: dict[str, str] = {}
        self._by_text: dict[str, int] = {}
        # Positions of the kept texts that hold a token at least k times, by (token, k).
        self._holders: defaultdict[tuple[str, int], array[int]] = defaultdict(_positions)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, id: str, text: str) -> None:
        """Keep a text, whether or not it resembles another."""
        position, tokens = len(self._kept), tokenize(text)
        self._kept.append((id, text))
        characters = (self._characters.setdefault(token, chr(len(self._characters) + 1)) for token in tokens)
        self._spelled.append("".join(characters))
        self._by_text.setdefault(_without_layout(text), position)
        for item in _counted(tokens):
            self._holders[item].append(position)

    def find(self, text: str) -> Match | None:
        """The most similar kept text above the threshold, the earliest added among equals; None when there is none."""
        tokens = tokenize(text)
        candidates = self._candidates(tokens)
        compared = extract_iter(
            "".join(self._characters.get(token, _UNKNOWN) for token in tokens),
            [self._spelled[position] for position in candidates],
            scorer=LCSseq.similarity,
            score_cutoff=self._least_common(len(tokens)),
        )
        best, bar = None, self.threshold
        for spelled, common, number in compared:
            similarity = _f1(common, len(tokens), len(spelled))
            if similarity > bar:
                best, bar = candidates[number], similarity
        if best is None:
            best, bar = self._by_text.get(_without_layout(text)), 1.0
        return None if best is None else Match(*self._kept[best], similarity=bar)

    def _candidates(self, tokens: Sequence[str]) -> list[int]:
        # A match shares `common` of the n items, so it holds k of any n - common + k of them: the rarest are looked up,
        # and "the" and "a" are not.
        common = self._least_common(len(tokens))
        rare = min(_RARE, common)
        rarest_first = sorted((self._holders.get(item, _NOBODY) for item in _counted(tokens)), key=len)
        holders = np.concatenate([_NO_POSITIONS, *map(_as_numbers, rarest_first[: len(tokens) - common + rare])])
        found: list[int] = np.flatnonzero(np.bincount(holders) >= rare).tolist()
        return found

    def _least_common(self, length: int) -> int:
        # Fewest tokens that a text of this length shares with a match: when the match consists of them alone.
        bar = self.threshold - _ROUNDING
        return max(1, floor(bar * length / (2 - bar)) + 1)


def _positions() -> "array[int]":
    return array("I")


_NOBODY, _NO_POSITIONS = _positions(), np.empty(0, np.uint32)


def _as_numbers(positions: "array[int]") -> "np.ndarray[Any, np.dtype[np.uint32]]":
    return np.frombuffer(positions, np.uint32) if positions else _NO_POSITIONS


def rouge_l(a: str, b: str) -> float:
    """ROUGE-L F1 of two texts, without stemming; 1 for equal and 0 for different texts that hold no word at all.

    On ASCII text it is the number of the `rouge_score` package; letters of other scripts count as letters here.
    """
    first, second = tokenize(a), tokenize(b)
    if not first and not second:
        return float(_without_layout(a) == _without_layout(b))
    # Numbers, because rapidfuzz would compare strings by their hashes.
    ids = {token: number for number, token in enumerate({*first, *second})}
    return token_f1([ids[token] for token in first], [ids[token] for token in second])


def token_f1(first: Sequence[int], second: Sequence[int]) -> float:
    """ROUGE-L F1 of two texts whose tokens are numbered; 0 when one holds no token."""
    return _f1(LCSseq.similarity(first, second), len(first), len(second))


def tokenize(text: str) -> list[str]:
    """Lower-case words of letters and digits; single letters where a script writes no blanks between words.

    Vowel signs, points and tones are marks on the letter before them and belong to its word. Joiners, which only say
    how letters are drawn, are left out.
    """
    joined = text.replace("\u200c", "").replace("\u200d", "")
    written = unicodedata.normalize("NFC", joined).lower()
    return _token_in(written).findall(written)


def width(token: str) -> int:
    """How much a token says, in halves of a word: of scripts without blanks about two letters make a word."""
    return 1 if token >= _FIRST_UNSPACED and _UNSPACED_LETTER.match(token) else 2


def _token_in(text: str) -> re.Pattern[str]:
    """What a token of this text is: most have no marks, and there the plain pattern is twice as fast."""
    if text.isascii():
        return _TOKEN
    mark, token = _with_marks()
    return token if mark.search(text) else _TOKEN


@cache
def _with_marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What a mark is, and what a token may be with marks; made when they are needed, which takes 20 ms."""
    # Not the selectors of how the character before them is drawn, which follow digits and symbols too.
    codes = [*range(0x0300, 0xFE00), *range(0xFE10, 0x1F000)]
    marks = "".join(chr(code) for code in codes if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    marks = _UNSPACED_LETTER.sub("", marks)
    word = rf"[^\W_{_UNSPACED}]"
    return re.compile(f"[{marks}]"), re.compile(rf"[{_UNSPACED}][{marks}]*|{word}+(?:[{marks}]+{word}*)*")


def _counted(tokens: Sequence[str]) -> Iterator[tuple[str, int]]:
    # Numbering equal tokens makes a multiset a set: two texts share as many items as tokens.
    seen: Counter[str] = Counter()
    for token in tokens:
        seen[token] += 1
        yield token, seen[token]


def _f1(common: int, n: int, m: int) -> float:
    # Not 2 * common / (n + m), which differs in the last digit and would decide otherwise right at the threshold.
    if not common:
        return 0.0
    precision, recall = common / n, common / m
    return 2 * precision * recall / (precision + recall)


def _without_layout(text: str) -> str:
    return " ".join(text.split())
