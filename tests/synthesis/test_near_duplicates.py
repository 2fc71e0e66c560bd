import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from montessori_pl.synthesis.near_duplicates import Match, NearDuplicateIndex, _with_marks, rouge_l, tokenize

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
THRESHOLDS = (0.0, 0.3, 0.5, 2 / 3, 0.7, 0.8, 0.9, 1.0)


def reference(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


def brute_force(kept: list[str], text: str, threshold: float) -> Match | None:
    """Compare with every kept text; the same string always matches, and the earliest of the best ones wins."""
    best = None
    for number, other in enumerate(kept):
        similarity = 1.0 if other.split() == text.split() else reference(text, other)
        if (similarity > threshold or other.split() == text.split()) and (best is None or similarity > best.similarity):
            best = Match(str(number), other, similarity)
    return best


def assert_same_decisions(texts: list[str], threshold: float, keep_all: bool) -> None:
    index, kept = NearDuplicateIndex(threshold), list[str]()
    for text in texts:
        found = index.find(text)
        assert found == brute_force(kept, text, threshold)
        if keep_all or found is None:
            index.add(str(len(kept)), text)
            kept.append(text)
    assert len(index) == len(kept)


# Few words make many near duplicates, and many similarities right at the threshold.
few_words = st.lists(st.sampled_from(["a", "B", "cat", "Dog_house", "it's", "7", "?!"]), max_size=14).map(" ".join)
ascii_texts = st.text(st.characters(max_codepoint=127), max_size=40)


@given(few_words | ascii_texts, few_words | ascii_texts)
def test_scores_equal_rouge_score(a: str, b: str) -> None:
    if tokenize(a) or tokenize(b):
        assert rouge_l(a, b) == reference(a, b)
    else:
        assert rouge_l(a, b) == float(a.split() == b.split())


def test_words_of_other_scripts_are_whole() -> None:
    """Where a script writes blanks; elsewhere each letter stands with its marks."""
    for text in ("आज मौसम बहुत अच्छा है", "கணினி என்றால் என்ன", "שָׁלוֹם עוֹלָם", "مُحَمَّد عليه", "ශ්රී ලංකා"):
        assert tokenize(f"{text}।?") == text.split()
    assert tokenize("วันนี้ดีมาก 12") == ["วั", "น", "นี้", "ดี", "ม", "า", "ก", "12"]


@given(st.text(st.characters(max_codepoint=127) | st.sampled_from("éßя猫🙂"), max_size=40))
def test_marks_are_looked_for_where_there_are_some_alone(text: str) -> None:
    """The pattern without marks, which is faster, finds the same in texts that have none."""
    written = unicodedata.normalize("NFC", text).lower()
    assert tokenize(text) == _with_marks()[1].findall(written)


@given(st.lists(few_words | ascii_texts, max_size=12), st.sampled_from(THRESHOLDS), st.booleans())
def test_decisions_equal_brute_force(texts: list[str], threshold: float, keep_all: bool) -> None:
    assert_same_decisions(texts, threshold, keep_all)


@pytest.mark.slow
@pytest.mark.parametrize("keep_all", [False, True])
def test_decisions_equal_brute_force_on_instructions(keep_all: bool) -> None:
    draw = random.Random(0)
    verbs, things = ["Name", "List", "Describe", "Explain"], ["rivers", "lakes", "animals", "machines", "songs", "laws"]
    places = ["in Europe", "of the north", "that everybody knows", "and say why", "for a child", "in one sentence"]
    texts = [
        f"{draw.choice(verbs)} {draw.choice(['three', 'some', 'the'])} {draw.choice(things)} "
        + " ".join(draw.choices(places, k=draw.randrange(4)))
        for _ in range(300)
    ]
    assert_same_decisions(texts, 0.7, keep_all)


@pytest.mark.slow
def test_decisions_equal_brute_force_on_long_texts() -> None:
    """Texts of more words than a machine word has bits, from more words than a byte tells apart; some are edits."""
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(400)]
    texts: list[str] = []
    for number in range(24):
        words = draw.choices(vocabulary, k=draw.randrange(50, 150))
        if number % 2:
            words = [word if draw.random() < 0.8 else draw.choice(vocabulary) for word in texts[-1].split()]
        texts.append(" ".join(words))
    assert_same_decisions(texts, 0.7, keep_all=True)


def test_a_similarity_equal_to_the_threshold_is_kept() -> None:
    """Two of three words in order: precision and recall are 2/3, and so is F1."""
    index = NearDuplicateIndex(rouge_l("one two three", "one two four"))
    index.add("x", "one two three")
    assert index.find("one two four") is None
    assert index.find("one two three") == Match("x", "one two three", 1.0)


def test_the_most_similar_text_wins_and_the_earliest_of_equals() -> None:
    index = NearDuplicateIndex(0.5)
    index.add("far", "name a big river in asia")
    index.add("near", "Name a big river, please!")
    index.add("again", "name a big river please")
    assert index.find("name a big river please") == Match("near", "Name a big river, please!", 1.0)


def test_word_order_matters() -> None:
    index = NearDuplicateIndex(0.7)
    index.add("x", "dogs chase cats")
    assert index.find("cats chase dogs") is None


def test_exact_duplicates_are_found_at_any_threshold_and_without_any_word() -> None:
    index = NearDuplicateIndex(1.0)
    index.add("words", "Name a  river.")
    index.add("signs", "?!")
    assert index.find("Name a\nriver. ") == Match("words", "Name a  river.", 1.0)
    assert index.find("name a river") is None
    assert index.find("?!") == Match("signs", "?!", 1.0)
    assert index.find("!?") is None
    assert index.find("") is None


@pytest.mark.parametrize(
    ("a", "b", "similarity"),
    [
        ("Größe der Bäume", "grösse der bäume", 2 / 3),
        ("ÉCOLE", "e\u0301cole", 1.0),
        ("Назови три реки", "назови три озера", 2 / 3),
        ("请写一首诗", "请写一首歌", 4 / 5),
        ("名前は?", "名前", 4 / 5),
        ("😀", "😀", 1.0),
        ("😀", "😡", 0.0),
        ("snake_case", "snake case", 1.0),
        # Signs, points and tones belong to their word: these differ by them alone.
        ("वह किताब पढ़ता है", "वह कुतुब पीढ़ती हो", 1 / 4),
        ("கணினி என்றால் என்ன", "கணினி", 1 / 2),
        ("שָׁלוֹם עוֹלָם", "שָׁלוֹם", 2 / 3),
        ("مُحَمَّد", "مَحْمُود", 0.0),
        ("กา กี กู", "กิ กึ กู", 2 / 7),
        ("ශ්\u200dරී ලංකා", "ශ්රී ලංකා", 1.0),
        ("1\ufe0f\u20e3", "1", 1.0),
    ],
)
def test_other_scripts_have_words_too(a: str, b: str, similarity: float) -> None:
    assert rouge_l(a, b) == rouge_l(b, a) == pytest.approx(similarity)


def test_near_duplicates_in_other_scripts_are_found() -> None:
    index = NearDuplicateIndex(0.7)
    index.add("poem", "请写一首关于海的诗。")
    assert index.find("请写一首关于山的诗") == Match("poem", "请写一首关于海的诗。", pytest.approx(8 / 9))
    assert index.find("日本的首都是哪里?") is None


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_of_the_scale_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold={threshold} is no ROUGE-L F1; give a number from 0 to 1"):
        NearDuplicateIndex(threshold)
