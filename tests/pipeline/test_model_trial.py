"""Before a run, each model that is trained takes one step and one probe; what fails is told, what passed is kept."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny_models import save_tiny_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedConfig

from callbacks import InfluenceProbeCallback, TrainingLossSignal
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.pipeline import model_trial
from montessori_pl.pipeline.model_trial import Trial, by_section, remember, trials, try_model
from montessori_pl.pipeline.recipe import resolve_recipe
from montessori_pl.pipeline.runner import Runner
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stages import RecordedExamples, ScoreExamples, Stage, TrainStudent

LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return ModelSource(save_tiny_model(tmp_path / "model"))


def trial(source: ModelSource, lora: LoraSettings | None = LORA, probed: bool = True) -> Trial:
    return Trial("student", source, lora, probed)


def changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], None]) -> None:
    """Let whatever is loaded be a model with a fault."""
    load = model_trial.load_model

    def loaded(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        change(model)
        return model

    monkeypatch.setattr(model_trial, "load_model", loaded)


def hook(output: Callable[[Any], Any]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        assert isinstance(model, LlamaForCausalLM)
        model.model.layers[0].register_forward_hook(lambda module, inputs, hidden: output(hidden))

    return change


class Broken(torch.autograd.Function):
    """Goes forward, and not back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise RuntimeError("no way back\nat all")


def looking_ahead(hidden: Tensor) -> Tensor:
    return hidden + hidden.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Broken.apply, r"cannot be trained \(RuntimeError: no way back\)"),
        (lambda hidden: hidden * float("nan"), "cannot be trained: its loss on a short conversation is nan"),
        (looking_ahead, "cannot be used: its predictions depend on the tokens behind them"),
        (lambda hidden: hidden.detach(), r"14 of 28 trained parameters get no gradient .* \(first: .*layers.0"),
    ],
    ids=["raises", "nan", "not causal", "detached"],
)
def test_what_fails_is_told_with_the_model(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, output: Callable[[Any], Any], expected: str
) -> None:
    changed(monkeypatch, hook(output))
    with pytest.raises(ValueError, match=expected) as refused:
        try_model([trial(source)])
    assert f"'{source.backbone}' (LlamaForCausalLM, LoRA)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_remembers_passes_no_probe(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient depends on what it was asked before."""
    count = iter(range(1, 100))
    changed(monkeypatch, hook(lambda hidden: hidden * next(count)))
    with pytest.raises(ValueError, match=r"cannot be measured: a probe's gradient|predictions depend on"):
        try_model([trial(source)])


def test_parts_without_gradient_matter_to_a_probe_only(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, hook(lambda hidden: hidden.detach()))
    try_model([trial(source, probed=False)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sound_model_passes_and_random_numbers_stay(source: ModelSource, dtype: Any) -> None:
    state = torch.get_rng_state()
    wanted = [trial(source, None), trial(source)] if dtype == "float32" else [trial(source)]
    try_model([dataclasses.replace(one, source=dataclasses.replace(source, base_dtype=dtype)) for one in wanted])
    assert torch.equal(torch.get_rng_state(), state)


def test_of_a_large_model_only_the_files_are_looked_at(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_trial, "LARGEST", 10)
    loaded: list[str] = []
    changed(monkeypatch, lambda model: loaded.append(next(model.parameters()).device.type))
    with caplog.at_level("INFO"):
        try_model([trial(source)])
    assert loaded == ["meta"]
    assert "too many for a trial" in caplog.text
    with pytest.raises(ValueError, match="lora does not fit"):
        try_model([trial(source, LoraSettings(target_modules=["nothing"]))])


def test_a_trial_takes_no_more_memory_than_there_is(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All weights, as many copies as a probe may hold; an adapter takes little more than the weights themselves."""
    parameters = sum(parameter.numel() for parameter in model_trial.load_model(source).parameters())
    whole = 4 * parameters * (1 + model_trial.COPIES)
    for free, wanted, tried in [
        (2 * whole, trial(source, None), True),
        (2 * whole - 2, trial(source, None), False),
        (2 * whole - 2, trial(source), True),
    ]:
        # The probes, too, would find no more than this.
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        caplog.clear()
        with caplog.at_level("INFO"):
            try_model([wanted])
        assert ("too many for a trial" not in caplog.text) is tried
    monkeypatch.setattr(model_trial, "default_budget", lambda device: 2**40)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1))
    try_model([trial(source, None)])  # what a probe may take is not what happens to be free


def test_quantized_models_are_refused(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PreTrainedConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    monkeypatch.setattr(model_trial, "load_config", lambda source: config)
    with pytest.raises(ValueError, match=r"is quantized \(gptq\)"):
        try_model([trial(source)])


def test_a_run_remembers_what_has_passed(source: ModelSource, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.locked():
        remember(run, [trial(source)])
        remember(run, [])
        remember(run, [trial(source, None)])
    assert RunDirectory(tmp_path / "run").facts[model_trial.TRIALS] == [trial(source).key, trial(source, None).key]
    assert len({trial(source).key, trial(source, probed=False).key, trial(source, LoraSettings()).key}) == 3


def recipe() -> dict[str, Stage]:
    training = TrainingSettings(lr=1e-3)
    return {
        "data": RecordedExamples(source="data.jsonl"),
        "warmup": TrainStudent(examples="data", training=training),
        "scores": ScoreExamples(examples="data", student="warmup", signal=InfluenceProbeCallback(lr=1e-3)),
        "whole": TrainStudent(examples="data", training=training, all_weights=True),
        "losses": ScoreExamples(examples="data", student="whole", signal=TrainingLossSignal(direction="low")),
    }


def fake_runner(source: ModelSource, run_directory: RunDirectory, lora: LoraSettings | None) -> Runner:
    """Only what `trials` asks of one."""
    student = partial(StudentModule, source.backbone, lora=lora)
    fake = SimpleNamespace(student=student, teacher=TeacherDPOModule, run_directory=run_directory)
    return cast("Runner", fake)


def test_what_a_recipe_trains_and_measures_is_tried_once(source: ModelSource, tmp_path: Path) -> None:
    stages = recipe()
    steps, run = resolve_recipe(stages, iterations=2), RunDirectory(tmp_path / "run")
    lora = LoraSettings(r=2, target_modules=["q_proj"], layers=[1])
    adapter, whole = Trial("student", source, lora, True), Trial("student", source, None, False)
    assert trials(fake_runner(source, run, lora), steps) == [adapter, whole]
    assert trials(fake_runner(source, run, None), steps) == [dataclasses.replace(whole, probed=True)]
    # Of a student that has been trained already nothing is left to try, of the base there is.
    after = [step for step in steps if step.name == "scores"]
    assert trials(fake_runner(source, run, lora), after) == []
    stages["scores"] = ScoreExamples(examples="data", student="base", signal=InfluenceProbeCallback(lr=1e-3))
    after = [step for step in resolve_recipe(stages, 1) if step.name == "scores"]
    assert trials(fake_runner(source, run, lora), after) == [adapter]
    with run.locked():
        remember(run, [adapter])
    assert trials(fake_runner(source, run, lora), steps) == [whole]


def test_all_weights_are_tried_before_an_adapter_is_put_on(source: ModelSource) -> None:
    grouped = by_section([trial(source), Trial("teacher", source, LORA, False), trial(source, None)])
    assert [one.lora for one in grouped["student"]] == [None, LORA]
    assert [one.section for one in grouped["teacher"]] == ["teacher"]
