"""The recipe for a real model: with a tiny one here, and with SmolLM2 itself where `make test-real` has fetched it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from tiny_models import save_tiny_model

from montessori_pl.cli.fit import main
from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.data.records import Example, read_records
from montessori_pl.worlds.gym import teacher

MODEL = Path(__file__).parents[1] / "checkpoints" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
STUDENTS = ["base", "warmup", "self_instruct", "trained"]
SMALL = {
    "warmup_data": {"num_examples": 8, "samples_per_prompt": 2},
    "probing_data": {"num_prompts": 8, "samples_per_prompt": 4},
    "training_data": {"num_examples": 8, "samples_per_prompt": 2},
    "self_instruct_data": {"num_examples": 8, "samples_per_prompt": 2},
}
"""Counts with which all stages run, and nothing is learned."""


def small_recipe(path: Path, backbone: str) -> Path:
    """Write the shipped recipe with these counts and another model; returns the file."""
    config = yaml.safe_load((shipped_configs() / "smollm2.yaml").read_text())
    config["run"], config["num_threads"] = str(path.parent / "run"), 1
    config["student"]["init_args"]["backbone"] = backbone
    config["teacher"]["init_args"]["backbone"] = f"gym-easy/teacher:{backbone}"
    config["data"] = {role: f"gym-easy/{role}[:{size}]" for role, size in zip(config["data"], (24, 6, 12), strict=True)}
    for stage, counts in SMALL.items():
        config["recipe"][stage]["init_args"] |= counts
    config["recipe"]["aligned_teacher"]["init_args"]["monitor"]["num_samples"] = 4
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def check(run: Path) -> None:
    """All students were measured, and both arms learned from as many examples."""
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["students"]) == STUDENTS
    for student in STUDENTS:
        assert {"accuracy", "accuracy_count", "test_loss"} <= summary["students"][student].keys()
    written = {
        name: read_records(run / "iteration_1" / name / "examples.jsonl", Example)
        for name in ("training_data", "self_instruct_data")
    }
    assert {len(examples) for examples in written.values()} == {8}


@pytest.mark.slow
def test_the_recipe_runs_to_its_table_with_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teacher, "NUM_STEPS", 2)
    recipe = small_recipe(tmp_path / "recipe.yaml", save_tiny_model(tmp_path / "model", max_position_embeddings=512))
    main(["fit", "--config", str(recipe)])
    check(tmp_path / "run")
    assert "self_instruct" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not (MODEL.exists() and find_spec("gguf")), reason="needs SmolLM2: make test-real")
def test_smollm2_runs_the_recipe_and_writes_what_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher that has read a tenth of its documents."""
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teacher, "NUM_STEPS", 8)
    recipe = small_recipe(tmp_path / "recipe.yaml", str(MODEL))
    main(["fit", "--config", str(recipe)])
    check(tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "iteration_1" / "self_instruct_data" / "metrics.json").read_text())
    refused = sum(count for reason, count in metrics["rejected"].items() if reason != "surplus")
    assert metrics["accepted"] / (metrics["accepted"] + refused) >= 0.6
