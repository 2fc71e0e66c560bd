"""The examples run."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib
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


def test_score_with_influence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The notebook's cells run in order, and what they show is what they say."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "score_with_influence.ipynb").read_text())
    assert len(notebook["cells"]) <= 12
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    kept = [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]
    assert not kept, "outputs are not kept in git"

    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)

    names["plt"].close("all")

    scored, estimated = names["scored"], names["estimated"]
    assert set(scored["influence_method"]) == {"exact"}
    assert set(estimated["influence_method"]) == {"first order"}
    assert scored["influence"] != estimated["influence"]
    assert names["correlation"] > 0.9
    assert 0 < int(names["clear"].sum()) < len(scored)
    printed = capsys.readouterr().out
    assert printed.count(" -> ") == 6
    assert "rank correlation of first_order with exact: 0.9" in printed
