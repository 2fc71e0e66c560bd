"""Threads of a run's processes: the same number before its first training as after it."""

import os

import pytest
import torch
from lightning.pytorch import Trainer

from montessori_pl.processes.trainers import share_cores


@pytest.mark.parametrize(("devices", "given", "threads"), [(1, None, 3), (2, None, 4), (3, None, 2), (2, "5", 3)])
def test_threads(devices: int, given: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight cores; where one process works alone, or the user has set a number, nothing changes."""
    monkeypatch.setattr("lightning.fabric.utilities.distributed._num_cpus_available", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")  # which is put back afterwards, whatever is set
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(3)
    share_cores(Trainer(accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False))
    assert torch.get_num_threads() == threads
    assert os.environ.get("OMP_NUM_THREADS") == (given if devices == 1 or given else str(threads))
