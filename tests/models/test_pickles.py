"""Weights of others cannot run code: what is pickled is read as weights alone."""

import pickle
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.cloud_io import _load
from tiny_models import save_tiny_model

from montessori_pl.models.loading import ModelSource, load_model


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, bytes]]:
        return _write, (str(self.path), b"")


def _write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def test_pickled_weights_of_a_model_run_no_code(tmp_path: Path) -> None:
    model = Path(save_tiny_model(tmp_path / "model"))
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(tmp_path / "owned")}, model / "pytorch_model.bin")
    with pytest.raises(ValueError, match="damaged, or a pickle of more than weights"):
        load_model(ModelSource(str(model)))
    assert not (tmp_path / "owned").exists()


def test_checkpoints_of_a_run_run_no_code(tmp_path: Path) -> None:
    """Through what the trainer reads `last.ckpt` with."""
    torch.save({"state_dict": Payload(tmp_path / "owned")}, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        _load(tmp_path / "last.ckpt")
    assert not (tmp_path / "owned").exists()
