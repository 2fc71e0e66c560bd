"""The examples run, and show what they say that they show."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from montessori_pl.classroom import resolve

EXAMPLES = Path(__file__).parents[1] / "examples"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class ByDefinition:
    """Influence on the example's student, by Transformers and `torch.optim` alone: step, look again, put back."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tokenizer = AutoTokenizer.from_pretrained(resolve("classroom/student"))
        model = AutoModelForCausalLM.from_pretrained(resolve("classroom/student"))
        self.model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).eval()
        self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.reference = read_lines(resolve("classroom/reference"))
        self.reference_loss_before = self.reference_loss()

    def loss(self, row: dict[str, str]) -> torch.Tensor:
        """Mean over the tokens of the response and of its end."""
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]
        prompt = self.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        ids = self.tokenizer.apply_chat_template(turns)["input_ids"]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        loss: torch.Tensor = self.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        return loss

    def reference_loss(self) -> float:
        with torch.no_grad():
            return sum(self.loss(row).double().item() for row in self.reference) / len(self.reference)

    def influence(self, row: dict[str, str]) -> float:
        """A fresh AdamW makes no step of a zero gradient, so that the loss before any step is where it is centred."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
        self.loss(row).backward()
        optimizer.step()
        optimizer.zero_grad()
        after = self.reference_loss()
        self.model.load_state_dict(self.before)
        return self.reference_loss_before - after


@pytest.mark.slow
def test_score_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows that it shows, and some others, have the influence that the definition gives them."""
    monkeypatch.setattr(sys, "argv", ["score_dataset.py", "--out", str(tmp_path / "scores.jsonl")])
    runpy.run_path(str(EXAMPLES / "score_dataset.py"), run_name="__main__")

    rows = read_lines(tmp_path / "scores.jsonl")
    assert len(rows) == 96
    assert {row["influence_method"] for row in rows} == {"exact"}
    ranked = sorted(rows, key=lambda row: -row["influence"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert shown == [
        f"{row['influence']:+.2e}  {row['instruction']!r} -> {row['response']!r}" for row in ranked[:3] + ranked[-3:]
    ]
    truth = ByDefinition()
    for row in [*ranked[:3], *ranked[-3:], *rows[::40]]:
        assert row["influence"] == pytest.approx(truth.influence(row), abs=2e-6)
    assert ranked[0]["influence"] - ranked[-1]["influence"] > 1e-3


@pytest.mark.slow
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
