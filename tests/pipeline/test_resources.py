"""Operations, time and memory of each step: of recipes whose models are there by their configurations alone."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny_models import LLAMA3_8B, save_configuration

from montessori_pl.cli.fit import main, planned
from montessori_pl.estimates.devices import devices_named
from montessori_pl.estimates.seconds import duration
from montessori_pl.pipeline.resources import RunPlan, TrainerShape, processes_of
from montessori_pl.pipeline.resources_table import print_resources
from montessori_pl.processes.sharding import FSDP2Strategy, strategy_name

TINYLLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
QWEN_SMALL = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
}
QWEN_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
}
BIASES = 28 * (3584 + 2 * 512)
"""Of Qwen's attention, which the Llama of these sizes that stands for it has not."""
SMALL = {**TINYLLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def plan_of(recipe: str, student: dict[str, int], teacher: dict[str, int], *arguments: str) -> RunPlan:
    """The plan of a shipped recipe for these models."""
    save_configuration(Path("student"), student)
    save_configuration(Path("teacher"), teacher)
    rows = [{"instruction": f"Name {n} things that begin with {n}.", "response": "word " * 200} for n in range(400)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"seed_tasks": "rows.jsonl[:100]", "reference": "rows.jsonl[100:356]", "test": "rows.jsonl[356:]"}
    changes = [f"--data.{name}={source}" for name, source in data.items()]
    changes += ["--student.backbone=student", "--teacher.backbone=teacher", *arguments]
    return planned(["fit", "--config", recipe, "--dry_run", *changes])


@pytest.mark.slow
def test_llama3_8b(capsys: pytest.CaptureFixture[str]) -> None:
    """Adapters on 8.03 billion parameters fit into GPUs of 80 GB; all weights of them do not."""
    plan = plan_of("llama3_8b.yaml", LLAMA3_8B, LLAMA3_8B, "--gpus", "8xH100")
    assert plan.models["teacher"].parameters == plan.models["student"].parameters == 8_030_261_248
    assert plan.models["teacher"].cache * 2 == 131_072, "bytes of a token in bfloat16"
    assert plan.too_large() == {}
    trained = plan.resources["iteration_1/trained"]
    tokens = next(step for step in plan.steps if step.key == "iteration_1/trained").estimate.work[0].tokens  # type: ignore[union-attr]
    student = plan.models["student"]
    assert trained.compute.flops == tokens * (4 * student.multiplied + 2 * student.trained)

    whole = plan_of("llama3_8b.yaml", LLAMA3_8B, LLAMA3_8B, "--gpus", "8xH100", "--recipe.trained.all_weights", "true")
    (large,) = whole.too_large().items()
    assert large[0] == "iteration_1/trained"
    assert large[1].helps == "trainer.strategy: fsdp2 over 8 devices"
    whole_student = whole.models["student, all weights"]
    assert whole_student.weights == 4 * 8_030_261_248, "in float32, whatever the base of the adapters is in"

    options = ["--recipe.trained.all_weights", "true", "--trainer.strategy", "fsdp2"]
    parts = plan_of("llama3_8b.yaml", LLAMA3_8B, LLAMA3_8B, "--gpus", "8xH100", *options)
    assert parts.too_large() == {}
    peak = parts.resources["iteration_1/trained"].peak
    assert peak is not None
    assert peak.weights == whole_student.weights // 8


@pytest.mark.slow
def test_tinyllama() -> None:
    """All of its weights fit into 80 GB and not into 24."""
    plan = plan_of("tinyllama_1.1b.yaml", TINYLLAMA, LLAMA3_8B, "--gpus", "8xH100")
    assert plan.models["student"].parameters == 1_100_048_384
    assert plan.too_large() == {}
    small = plan_of("tinyllama_1.1b.yaml", TINYLLAMA, LLAMA3_8B, "--gpus", "8x24")
    assert "iteration_1/trained" in small.too_large()


@pytest.mark.slow
def test_qwen_on_one_gpu() -> None:
    """Both have room on a GPU of 24 GB, and so on every larger one; on eight the steps are the same."""
    plan = plan_of("qwen2.5_0.5b_from_7b.yaml", QWEN_SMALL, QWEN_7B, "--gpus", "1x24")
    assert plan.models["teacher"].parameters == 7_615_616_512 - BIASES
    assert plan.too_large() == {}
    for gpu in ("1x40", "1x80"):
        assert plan_of("qwen2.5_0.5b_from_7b.yaml", QWEN_SMALL, QWEN_7B, "--gpus", gpu).too_large() == {}
    training = [
        f"--recipe.{name}.training.accumulate_grad_batches=1" for name in ("aligned_teacher", "trained", "warmup")
    ]
    eight = ["--trainer.devices=8", "--generation.data_parallel_size=8", *training]
    shared = plan_of("qwen2.5_0.5b_from_7b.yaml", QWEN_SMALL, QWEN_7B, "--gpus", "8x24", *eight)
    assert shared.too_large() == {}
    steps = [
        {one.key: one.estimate.work[0].steps for one in p.steps if one.estimate and one.estimate.work}
        for p in (plan, shared)
    ]
    assert steps[0]["iteration_1/trained"] == steps[1]["iteration_1/trained"] == 626


@pytest.mark.slow
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """What does not fit is said, with what helps; no line is wider than a console."""
    plan = plan_of("llama3_8b.yaml", SMALL, SMALL, "--gpus", "8xH100")
    capsys.readouterr()
    shown = printed(dataclasses.replace(plan, device=devices_named("1x24")))
    assert "left to do" in shown
    assert "On 1 x GPU of 24 GB, as fast as 4090" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def printed(plan: RunPlan) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    print_resources(plan, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_gpus_without_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "iter1.yaml", "--gpus", "8xH100"])
    assert "give it together with --dry_run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "processes"),
    [
        ({"devices": "auto"}, 8),
        ({}, 8),
        ({"devices": 2}, 2),
        ({"devices": [0, 1, 2]}, 3),
        ({"devices": 4, "num_nodes": 2}, 8),
    ],
)
def test_processes_elsewhere(trainer: dict[str, object], processes: int) -> None:
    assert processes_of(trainer, devices_named("8xH100")) == processes


def test_more_processes_than_gpus() -> None:
    with pytest.raises(ValueError, match=r"trainer.devices asks for 16 GPUs, and --gpus names 8"):
        processes_of({"devices": 16}, devices_named("8xH100"))


def test_shape_of_the_trainer() -> None:
    assert TrainerShape.of({"strategy": "fsdp2", "precision": "bf16-mixed"}, 8) == TrainerShape(8, True, True)
    named = {"strategy": {"class_path": "montessori_pl.processes.sharding.FSDP2Strategy"}}
    assert TrainerShape.of(named, 2).sharded
    assert strategy_name(FSDP2Strategy()) == "fsdp2"
    assert strategy_name(None) == strategy_name("None"), "nothing is no name of a strategy"
    assert TrainerShape.of({"strategy": "auto", "precision": None}, 1) == TrainerShape(1, False, False)


def test_durations() -> None:
    assert [duration(one) for one in (3, 99, 600, 8000, 200_000)] == ["3 s", "99 s", "10.0 min", "2.2 h", "2.3 days"]
