"""The settings for LLaMA-Factory and axolotl on the data card."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand_made import EXAMPLES, exported, rows

LLAMA_FACTORY = {
    "file_name": None,
    "formatting": {"alpaca", "sharegpt"},
    "ranking": {True, False},
    "columns": {"prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected"},
    "tags": {"role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"},
}
"""What LLaMA-Factory 0.9.5 knows of a text data set, from its `data/parser.py`: the rest it passes over in silence."""
AXOLOTL: dict[str, dict[str, type]] = {
    "alpaca": {"instruction": str, "input": str, "output": str},
    "alpaca_w_system.load_instruct": {"instruction": str, "input": str, "output": str, "system": str},
    "chat_template": {"messages": list},
    "passthrough": {"prompt": list, "chosen": list, "rejected": list},
}
"""Columns that types of axolotl 0.19.0 read, from its `prompt_strategies`; `passthrough` leaves them to TRL."""
EXPORTS = [
    ("alpaca", "data"),
    ("alpaca", "outside"),
    ("messages", "data"),
    ("messages", "outside"),
    ("dpo", "preferences"),
]


@pytest.mark.usefixtures("run")
class TestSettingsOnTheCard:
    """What a reader copies from the card names files and columns that exist, in words that the trainers know.

    LLaMA-Factory and axolotl want other versions of our dependencies, so they cannot be run here. They were run once,
    in the versions below and with these settings.
    """

    @pytest.fixture(params=EXPORTS, ids="-".join)
    def directory(self, request: pytest.FixtureRequest) -> Path:
        """An export."""
        format, stage = request.param
        return exported(format, "--stage", stage)

    def snippets(self, directory: Path, language: str) -> list[str]:
        """The blocks of code that say how the files are read."""
        part = (directory / "README.md").read_text(encoding="utf-8").partition("## How it was made")[0]
        return re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.DOTALL | re.MULTILINE)

    def settings(self, directory: Path, key: str) -> dict[str, Any]:
        """The one block of settings with this key."""
        (found,) = [one for one in map(yaml.safe_load, self.snippets(directory, "yaml")) if key in one]
        return found

    @pytest.mark.parametrize("format", ["alpaca", "messages", "dpo", "hf"])
    def test_loading(self, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = exported(format)
        (loading, *_) = self.snippets(directory, "python")
        monkeypatch.chdir(directory)
        names: dict[str, Any] = {}
        exec(loading, names)
        count = len(EXAMPLES) if format == "hf" else len(rows(Path("train.jsonl")))
        assert len(names["dataset"]) == count

    def test_llama_factory(self, directory: Path) -> None:
        found = self.settings(directory, "stage")
        descriptions = json.loads((directory / found["dataset_dir"] / "dataset_info.json").read_text())
        assert list(descriptions) == [found["dataset"]]
        description = descriptions[found["dataset"]]
        assert description.keys() <= LLAMA_FACTORY.keys()
        assert description.get("formatting", "alpaca") in LLAMA_FACTORY["formatting"]
        assert description["columns"].keys() <= LLAMA_FACTORY["columns"]
        assert description.get("tags", {}).keys() <= LLAMA_FACTORY["tags"]
        assert description.get("ranking", False) is (found["stage"] == "dpo"), "it refuses a stage that does not fit"
        written = rows(directory / description["file_name"])
        assert all(set(description["columns"].values()) <= row.keys() for row in written)
        if found["stage"] == "dpo":
            columns = description["columns"]
            assert all(isinstance(row[columns[name]], str) for row in written for name in ("chosen", "rejected"))

    def test_axolotl(self, directory: Path) -> None:
        found = self.settings(directory, "datasets")
        (dataset,) = found["datasets"]
        assert dataset.keys() == {"path", "type", "split"}
        assert (found.get("rl") == "dpo") is (dataset["type"] == "passthrough")
        assert found.get("skip_prepare_dataset", False) is (dataset["type"] == "passthrough"), (
            "it takes text alone there"
        )
        columns = AXOLOTL[dataset["type"]]
        written = rows(directory / dataset["path"])
        assert all(isinstance(row[name], kind) for row in written for name, kind in columns.items())
        assert columns.keys() >= written[0].keys() - {"id", "score_margin", "weight"}, "nothing is left out"

    def test_versions(self, directory: Path) -> None:
        card = " ".join((directory / "README.md").read_text(encoding="utf-8").split())
        assert "For LLaMA-Factory (run with version 0.9.5)" in card
        assert "For axolotl (run with version 0.19.0)" in card
