"""The sets of `data`: each is read once, however many ask for it."""

from pathlib import Path

import pytest
from stage_runs import write

from montessori_pl.batches import sources
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example


def test_each_set_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = sources.load_source
    monkeypatch.setattr(sources, "load_source", lambda source: read.append(source) or load(source))
    rows = [Example(id=str(n), instruction=f"say {n}", response="a") for n in range(8)]
    path = write(tmp_path / "rows.jsonl", rows) / "rows.jsonl"
    data = DataSources(f"{path}[:2]", f"{path}[2:5]", f"{path}[5:]")
    for _ in range(2):
        data.account()
        data.check_disjoint()
        data.read("seed_tasks").clear()  # the caller's own list
    assert len(data.read("seed_tasks")) == 2
    assert sorted(read) == sorted([data.seed_tasks, data.reference, str(data.test)])
    assert repr(data) == repr(DataSources(data.seed_tasks, data.reference, data.test))
