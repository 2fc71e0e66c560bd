"""The student's loss is taken on response tokens; its weights stay in float32; an adapter or everything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from stage_runs import quiet_trainer
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor

from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.training.fit import TrainingData

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

LORA = LoraSettings(r=2, alpha=4)
EXAMPLES = [
    Example(id="1", instruction="say a", response="a"),
    Example(id="2", instruction="why?", response="nobody knows."),
    Example(id="3", instruction="a longer question is it?", response="it is", system="so"),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def rendered() -> list[Rendered]:
    return [ChatTemplate(tiny_tokenizer()).render(example.messages()) for example in EXAMPLES]


def make_student(backbone: str, lora: LoraSettings | None = LORA) -> StudentModule:
    student = StudentModule(backbone, lora=lora)
    student.configure_model()
    return student


def test_a_base_in_bfloat16_carries_an_adapter_in_float32(backbone: str, rendered: list[Rendered]) -> None:
    student = StudentModule(backbone, lora=LORA, base_dtype="bfloat16")
    student.configure_model()
    fit(student, rendered)

    assert {parameter.dtype for parameter in student.optimized().values()} == {torch.float32}
    frozen = [p for p in student.network.parameters() if not p.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}


def test_all_weights_are_trained_in_float32_only(backbone: str) -> None:
    with pytest.raises(ValueError, match="base_dtype 'bfloat16' is for a base that stays frozen under an adapter"):
        StudentModule(backbone, lora=None, base_dtype="bfloat16")


def test_all_weights_behind_a_warm_up_on_a_base_in_bfloat16(backbone: str, rendered: list[Rendered]) -> None:
    """As `TrainStudent: {all_weights: true}` asks for them: none is rounded."""
    student = StudentModule(backbone, lora=LORA, base_dtype="bfloat16")
    student.train_all_weights()
    student.configure_model()
    fit(student, rendered)
    assert {parameter.dtype for parameter in student.network.parameters()} == {torch.float32}
    assert len(student.optimized()) == len(list(student.network.parameters()))


def slow_losses(student: StudentModule, rendered: list[Rendered]) -> list[list[float]]:
    """Nats of each trained token, one example at a time, without padding, from the softmax."""
    losses = []
    for one in rendered:
        logits = student.network(input_ids=torch.tensor([one.input_ids])).logits[0]
        losses.append(
            [
                -logits[place - 1].softmax(dim=-1)[one.input_ids[place]].log().item()
                for place in range(1, len(one.input_ids))
                if one.completion_mask[place]
            ]
        )
    return losses


def fit(student: StudentModule, rendered: list[Rendered], **arguments: Any) -> Trainer:
    """Two optimizer steps."""
    student.training_settings = TrainingSettings(lr=1e-2, schedule="constant", batch_size=2)
    trainer = quiet_trainer(max_epochs=1, **arguments)
    data = TrainingData(
        rendered, [len(one.input_ids) for one in rendered], 2, 0, lambda items: collate(items, pad_id=0), {}
    )
    trainer.fit(student, datamodule=data)
    assert trainer.global_step == 2
    return trainer


def test_training_loss_is_the_mean_over_all_response_tokens_of_the_batch(
    backbone: str, rendered: list[Rendered], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 + 14 + 6 tokens count, end tokens included; prompts, padding and the system message do not."""
    student = make_student(backbone)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(student, "log_metrics", lambda metrics, batch_size: logged.update(metrics))
    monkeypatch.setattr(student, "_lr", lambda: 0.5)
    loss = student.training_step(collate(rendered, pad_id=0), 0)
    slow = slow_losses(student, rendered)
    assert [len(tokens) for tokens in slow] == [2, 14, 6]
    assert loss.item() == pytest.approx(sum(map(sum, slow)) / 22, rel=1e-5)
    assert logged["loss"].item() == loss.item()
    assert not logged["loss"].requires_grad
    assert logged["lr"] == 0.5


def test_predicted_losses_are_means_over_each_examples_tokens(backbone: str, rendered: list[Rendered]) -> None:
    student = make_student(backbone)
    losses = student.predict_step(collate(rendered, pad_id=0), 0)
    expected = [sum(tokens) / len(tokens) for tokens in slow_losses(student, rendered)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert not losses.requires_grad


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "everything"])
def test_mixed_precision_keeps_master_weights_in_float32(
    backbone: str, rendered: list[Rendered], lora: LoraSettings | None
) -> None:
    """Weights of bfloat16, with eight bits, could not take small steps; here most end up between its numbers."""
    student = make_student(backbone, lora)
    before = {name: parameter.detach().clone() for name, parameter in student.network.named_parameters()}
    fit(student, rendered, precision="bf16-mixed")
    assert {parameter.dtype for parameter in student.network.parameters()} == {torch.float32}
    moved = {name for name, parameter in student.network.named_parameters() if not parameter.equal(before[name])}
    assert moved == set(student.optimized())
    trained = torch.cat([parameter.detach().flatten() for parameter in student.optimized().values()])
    assert (trained != trained.bfloat16().float()).float().mean() > 0.5


def test_all_weights_are_trained_and_saved_without_an_adapter(
    backbone: str, rendered: list[Rendered], tmp_path: Path
) -> None:
    student = make_student(backbone, lora=None)
    assert len(student.optimized()) == len(list(student.network.parameters()))
    fit(student, rendered)
    save_weights(student.network, tmp_path / "weights")  # type: ignore[arg-type]
    assert (tmp_path / "weights" / "model.safetensors").exists()
    assert_same_model(student, ModelSource(backbone, tmp_path / "weights"), rendered)


def test_adapter_alone_is_trained_and_saved(backbone: str, rendered: list[Rendered], tmp_path: Path) -> None:
    student = make_student(backbone)
    assert all("lora_" in name for name in student.optimized())
    fit(student, rendered)
    save_weights(student.network, tmp_path / "weights")  # type: ignore[arg-type]
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    modules = json.loads((tmp_path / "weights" / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)  # a set of PEFT's, whose order changes from process to process
    assert_same_model(student, ModelSource(backbone, tmp_path / "weights"), rendered)


def test_fresh_adapter_changes_nothing(backbone: str, rendered: list[Rendered]) -> None:
    assert_same_model(make_student(backbone), ModelSource(backbone), rendered)


def test_adapter_of_some_layers(backbone: str) -> None:
    """Beside all linear layers of a layer, or some; a regular expression names its layers itself."""
    for modules in ("all-linear", ["q_proj"]):
        student = make_student(backbone, LoraSettings(r=2, layers=[1], target_modules=modules))
        names = {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name in student.optimized()}
        expected = {"self_attn.q_proj"}
        if modules == "all-linear":
            expected |= {f"self_attn.{which}_proj" for which in "kvo"} | {
                f"mlp.{which}_proj" for which in ("gate", "up", "down")
            }
        assert names == {f"layers.1.{name}" for name in expected}
    with pytest.raises(
        ValueError, match=r"layers \[0\] cannot be chosen beside a regular expression .* found '\.\*q_proj'"
    ):
        LoraSettings(layers=[0], target_modules=".*q_proj")


def test_checkpoint_holds_what_is_trained_and_no_more(backbone: str, rendered: list[Rendered], tmp_path: Path) -> None:
    """It comes back with the optimizer's state, and is refused by a student that trains something else."""
    student = make_student(backbone)
    fit(student, rendered).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"model.{name}" for name in student.optimized()}
    again = make_student(backbone)
    again.on_load_checkpoint(checkpoint)
    assert again.optimizer_names == list(student.optimized())
    assert again.optimizer_state is not None
    assert len(again.optimizer_state["state"]) == len(again.optimizer_names)
    other = make_student(backbone, LoraSettings(r=2, layers=[0]))
    with pytest.raises(
        ValueError, match=r"trained 28 parameters, this module trains 14; 14 differ, for example .* same\?"
    ):
        other.on_load_checkpoint(checkpoint)


def assert_same_model(student: StudentModule, source: ModelSource, rendered: list[Rendered]) -> None:
    batch: dict[str, Tensor] = collate(rendered, pad_id=0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        torch.testing.assert_close(load_model(source)(**inputs).logits, student.network.eval()(**inputs).logits)
