"""What a container may still take, from files as Linux writes them."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from montessori_pl.influence import memory
from montessori_pl.influence.container import memory_left

NO_LIMIT = 9223372036854771712
"""What version 1 writes where there is none."""


def group(directory: Path, files: Mapping[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(f"{content}\n")


def version_2(limit: object, used: int, unread: int = 0) -> dict[str, object]:
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 1\ninactive_file {unread}"}


def version_1(limit: int, used: int, unread: int = 0) -> dict[str, object]:
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used,
        "memory.stat": f"inactive_file 5\ntotal_inactive_file {unread}",
    }


def left(tmp_path: Path, lines: str) -> int | None:
    (tmp_path / "cgroup").write_text(lines)
    return memory_left(tmp_path / "cgroup", tmp_path / "fs")


def test_version_2(tmp_path: Path) -> None:
    """The least of the group and of all above it; files that nobody reads count as free."""
    assert left(tmp_path, "0::/a/b\n") is None
    group(tmp_path / "fs/a/b", version_2("max", 10))
    assert left(tmp_path, "0::/a/b\n") is None
    group(tmp_path / "fs/a", version_2(1000, 700, unread=200))
    assert left(tmp_path, "0::/a/b\n") == 500
    group(tmp_path / "fs/a/b", version_2(100, 40))
    assert left(tmp_path, "0::/a/b\n") == 60
    assert left(tmp_path, "0::/\n") is None


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "fs", version_2(300, 400))
    assert left(tmp_path, "0::/not/visible/here\n") == 0


def test_version_1(tmp_path: Path) -> None:
    lines = "5:cpu,cpuacct:/a\n3:memory:/a\n"
    group(tmp_path / "fs/memory", version_1(NO_LIMIT, 50))
    group(tmp_path / "fs/memory/a", version_1(1000, 100, unread=10))
    assert left(tmp_path, lines) == 910
    assert memory_left(tmp_path / "no such file", tmp_path) is None


@pytest.mark.parametrize(("allowed", "expected"), [(None, 500), (600, 300), (5000, 500)])
def test_the_budget_is_half_of_the_smaller(monkeypatch: pytest.MonkeyPatch, allowed: int | None, expected: int) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(memory, "memory_left", lambda: allowed)
    assert memory.default_budget(torch.device("cpu")) == expected
