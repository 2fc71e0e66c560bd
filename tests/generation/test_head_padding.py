"""Models and adapters with padded heads answer as they did; what cannot be padded with certainty is refused."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_adapter, save_tiny_model
from torch import Tensor
from transformers import Qwen2Config

from montessori_pl import classroom
from montessori_pl.generation.head_padding import ADAPTER_WEIGHTS, PaddedCopies, needed_padding
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights

TEACHER, STUDENT = ModelSource("classroom/teacher"), ModelSource("classroom/student")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PaddedCopies]:
    """Copies that lie below the test's own directory."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    made = PaddedCopies()
    yield made
    made.close()


def logits(source: ModelSource, length: int) -> Tensor:
    """Of two random texts that fill all positions."""
    model = load_model(source)
    ids = torch.randint(5, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids).logits


def check_same_logits(copies: PaddedCopies, source: ModelSource, wide: int, length: int) -> None:
    copy = copies.runnable(source)
    assert load_model(copy).config.head_dim == wide
    assert copy.backbone != source.backbone
    assert torch.allclose(logits(source, length), logits(copy, length), atol=2e-4)


class TestSameLogits:
    @pytest.mark.parametrize(
        "source",
        [TEACHER, ModelSource("classroom/teacher", Path("specialist_letters")), STUDENT],
        ids=["teacher", "specialist", "student"],
    )
    def test_classroom(self, copies: PaddedCopies, source: ModelSource) -> None:
        if source.weights is not None:
            source = dataclasses.replace(source, weights=Path(classroom.resolve(f"classroom/{source.weights}")))
        check_same_logits(copies, source, 32, 512)

    @pytest.mark.parametrize(
        ("changes", "wide"),
        [
            ({}, 32),
            ({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "rope_theta": 50.0}, 32),
            ({"head_dim": 66, "tie_word_embeddings": True, "mlp_bias": True}, 80),
        ],
        ids=["8", "6, keys in groups", "66"],
    )
    @pytest.mark.parametrize("settings", [{}, {"layers": [1], "target_modules": ["o_proj", "q_proj"]}], ids=str)
    def test_random_adapter(
        self, copies: PaddedCopies, tmp_path: Path, changes: dict[str, Any], wide: int, settings: dict[str, Any]
    ) -> None:
        source = ModelSource(save_tiny_model(tmp_path / "model", **changes))
        adapted = random_adapter(source, LoraSettings(r=3, alpha=12, **settings), tmp_path / "weights")
        check_same_logits(copies, source, wide, 96)
        check_same_logits(copies, adapted, wide, 96)
        assert not torch.allclose(logits(source, 96), logits(adapted, 96), atol=0.1), "the adapter matters"

    def test_fine_tuned_model(self, copies: PaddedCopies, tmp_path: Path) -> None:
        model = load_model(STUDENT)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        save_weights(model, tmp_path / "weights")
        tuned = dataclasses.replace(STUDENT, weights=tmp_path / "weights")
        check_same_logits(copies, tuned, 32, 100)
        assert not torch.allclose(logits(STUDENT, 100), logits(tuned, 100), atol=0.1)


class TestCopies:
    def test_written_once_and_deleted(self, copies: PaddedCopies, tmp_path: Path) -> None:
        one = random_adapter(TEACHER, LoraSettings(r=2), tmp_path / "one")
        two = random_adapter(TEACHER, LoraSettings(r=4), tmp_path / "two")
        first, second = copies.runnable(one), copies.runnable(two)
        assert first.backbone == second.backbone == copies.runnable(TEACHER).backbone
        assert first.weights != second.weights
        assert copies.runnable(one) == first
        copies.close()
        assert list((tmp_path / "copies").iterdir()) == []
        again = copies.runnable(one)
        assert again.backbone != first.backbone
        assert Path(again.backbone).is_dir()

    def test_what_the_kernels_have_is_left_alone(self, copies: PaddedCopies, tmp_path: Path) -> None:
        source = ModelSource(save_tiny_model(tmp_path / "model", head_dim=32, attention_bias=True))
        assert copies.runnable(source) is source
        assert list((tmp_path / "copies").iterdir()) == []


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"attention_bias": True}, "its attention has biases"),
            ({"head_dim": 514}, "none is wider"),
            (
                {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
                "its rotary embedding is not the default one, but .*linear",
            ),
        ],
    )
    def test_model(self, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
        source = ModelSource(save_tiny_model(tmp_path, **changes))
        sentence = (
            r"attention heads of 32, 64, 80, .*, 512 dimensions; those of '.*' have \d+ and cannot be padded: "
            rf"{reason}.*; take TransformersBackend, or a GPU$"
        )
        with pytest.raises(ValueError, match=sentence):
            needed_padding(source)

    def test_another_architecture(self, tmp_path: Path) -> None:
        Qwen2Config(hidden_size=48, num_attention_heads=2, num_key_value_heads=2).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="have 24 and cannot be padded: it is no llama but a qwen2"):
            needed_padding(ModelSource(str(tmp_path)))

    def test_quantized_model(self, tmp_path: Path) -> None:
        path = Path(save_tiny_model(tmp_path)) / "config.json"
        quantized = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
        path.write_text(json.dumps(quantized))
        with pytest.raises(ValueError, match="its weights are quantized"):
            needed_padding(ModelSource(str(tmp_path)))

    def test_adapter_with_more_than_two_matrices(self, tmp_path: Path) -> None:
        source = random_adapter(TEACHER, LoraSettings(r=2), tmp_path / "adapter")
        path = tmp_path / "adapter" / ADAPTER_WEIGHTS
        magnitude = "base_model.model.model.layers.0.self_attn.v_proj.lora_magnitude_vector"
        save_file({**load_file(path), magnitude: torch.ones(96)}, path)
        with pytest.raises(ValueError, match=f"its adapter in {path.parent} is no plain LoRA, but holds {magnitude}"):
            needed_padding(source)
        path.unlink()
        with pytest.raises(ValueError, match=f"its adapter has no {path}"):
            needed_padding(source)
