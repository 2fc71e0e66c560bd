"""The examples run."""

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_score_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["score_dataset.py", "--out", str(tmp_path / "scores.jsonl")])
    runpy.run_path(str(EXAMPLES / "score_dataset.py"), run_name="__main__")

    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 96
    assert all(row["influence_method"] for row in rows)
    shown = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    values = [float(line.split()[0]) for line in shown]
    assert len(values) == 6
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
