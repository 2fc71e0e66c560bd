"""The script for a GPU: its clock by hand, a part that fails, and a part in miniature on a CPU."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import gpu
finally:
    sys.path.remove(str(BENCHMARKS))

DPO = "training: Llama-3-8B, DPO, adapter"


def test_the_clock_leaves_the_first_batch_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 5, 7 and 8 tokens, of which the last two take 3 seconds: 5 tokens in a second, 20 in all."""
    moments = iter([10.0, 11.0, 13.0])
    monkeypatch.setattr(gpu, "_now", lambda: next(moments))
    clock = gpu.StepClock(str(tmp_path / "clock.json"))
    nobody: Any = SimpleNamespace()
    for number, tokens in enumerate((5, 7, 8)):
        mask = torch.tensor([[1] * tokens + [0] * (9 - tokens)])
        clock.on_train_batch_start(nobody, nobody, {"attention_mask": mask}, number)
        clock.on_train_batch_end(nobody, nobody, None, None, number)
    clock.on_train_end(nobody, nobody)
    assert json.loads((tmp_path / "clock.json").read_text()) == {"tokens": 20, "tokens_per_second": 5.0}


def test_a_part_that_takes_too_long_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.PARTS, DPO, (0.01, None))
    assert gpu.measured(DPO, gpu.Options("H200", dry_run=True)) == {"failed": f"{DPO} took more than 0.01 s"}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_part_that_fails_costs_no_other() -> None:
    assert "failed" in gpu.measured(DPO, gpu.Options("H200", dry_run=False)), "there is no GPU"


def test_what_is_printed() -> None:
    """All kinds of parts, one of which has failed."""
    found = {
        "training: a": {
            **{"tokens_per_second": 1234.5, "seconds": 9.0, "planned_seconds": 8.04},
            **{"peak": 2e9, "planned_peak": 1.5e9},
        },
        "recipe: b": {"stages": {"warmup": [3.0, 4.0], "preferences": [None, 0.5]}, "peak": 1, "students": {}},
        "influence: c": {"said": "of influence"},
        "recipe: d": {"failed": "recipe: d took more than 200 s"},
    }
    file = io.StringIO()
    gpu.show(Console(file=file, width=120), found)
    said = file.getvalue()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert cells == [
        ["training: a", "1,234", "8.0", "9.0", "1.50", "2.00"],
        ["warmup", "3.0", "4.0"],
        ["preferences", "", "0.5"],
    ]
    assert "of influence" in said
    assert "recipe: d took more than 200 s" in said


@pytest.mark.slow
def test_a_part_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of random models are aligned: planned, measured and written down."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry_run", "--json", str(tmp_path / "found.json"), "--parts", DPO])
    gpu.main()
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["options"] == {"gpu": "H200", "dry_run": True}
    row = content["found"][DPO]
    assert row["tokens_per_second"] > 0
    assert row["seconds"] > 0
    assert row["planned_seconds"] > 0
    assert row["planned_peak"] == pytest.approx(row["peak"], rel=0.25), "the program and its libraries, most of it"
