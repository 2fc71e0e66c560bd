"""The comparison of near-duplicate filters in miniature: its reference is `rouge_score`, and it sees what differs."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

from montessori_pl.data.records import Example, append_records


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """The script as a module."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import near_duplicates

        yield near_duplicates
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", ["written", "classroom"])
def test_the_reference_decides_as_rouge_score(benchmark: Any, name: str) -> None:
    texts = getattr(benchmark, name)(random.Random(0), 40, 40)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    fixed, growing, passed = [], [], list(texts.kept)
    for text in texts.new:
        fixed.append(any(scorer.score(text, kept)["rougeL"].fmeasure > 0.7 for kept in texts.kept))
        growing.append(any(scorer.score(text, kept)["rougeL"].fmeasure > 0.7 for kept in passed))
        passed += [] if growing[-1] else [text]
    assert 0 < sum(fixed) <= sum(growing) < len(growing)
    assert benchmark.reference_decisions(texts) == (fixed, growing)
    loop = benchmark.Loop(texts.kept)
    assert [loop(text) for text in texts.new] == fixed


@pytest.mark.slow
def test_all_decisions_are_compared(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of the instructions of a file, half of which are kept; a filter that finds nothing is found out."""
    words = ["name", "list", "the", "a", "river", "lake", "city", "tall", "old", "red"]
    draw = random.Random(0)
    texts = {" ".join(draw.sample(words, 6)) for _ in range(40)} | {"Größe"}
    file = tmp_path / "texts.jsonl"
    append_records(file, [Example(id=text, instruction=text, response="r") for text in sorted(texts)])
    options = ["--kept", "60", "--candidates", "50", "--baseline-candidates", "2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["near_duplicates.py", *options, "--source", str(file)])
    benchmark.main()
    printed = capsys.readouterr().out
    assert f"source: {len(texts)} different instructions, 1 of them left out (not ASCII)" in printed
    assert printed.count(" 2 of 2\n") == 3
    assert printed.count(" 50 of 50\n") == 4
    monkeypatch.setattr(benchmark.NearDuplicateIndex, "find", lambda self, text: None)
    with pytest.raises(SystemExit, match="decisions were different"):
        benchmark.main()
