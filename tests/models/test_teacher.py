"""The reference policy of DPO: the teacher before this alignment, without a second base model."""

import dataclasses
import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from preference_pairs import pair_batch, slow_log_probabilities
from tiny_models import save_tiny_model
from torch import Tensor, nn

from montessori_pl.losses import IGNORED, sequence_log_probabilities
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights

LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return pair_batch()


def perturb(module: TeacherDPOModule, seed: int) -> None:
    """Give the trained adapter weights with a clear effect, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.optimized().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def fresh(backbone: str, lora: LoraSettings = LORA) -> TeacherDPOModule:
    """The teacher of the first iteration."""
    module = TeacherDPOModule(backbone, lora=lora)
    module.configure_model()
    return module


@pytest.fixture(scope="module")
def previous(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter that the first iteration has left behind."""
    module = fresh(backbone)
    perturb(module, seed=1)
    directory = tmp_path_factory.mktemp("first") / "weights"
    save_weights(module.network, directory)  # type: ignore[arg-type]
    return directory


@pytest.fixture(params=["first", "second"])
def teacher(request: pytest.FixtureRequest, backbone: str, previous: Path) -> TeacherDPOModule:
    """The teacher of the first iteration, and of the second one."""
    module = TeacherDPOModule(backbone, lora=LORA)
    if request.param == "second":
        module.source = dataclasses.replace(module.source, weights=previous)
    module.configure_model()
    return module


def reference_of(teacher: TeacherDPOModule, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities under a model that is loaded anew, as the teacher was before this alignment."""
    return slow_log_probabilities(ModelSource(teacher.backbone, teacher.source.weights), batch)


def log_probabilities(teacher: TeacherDPOModule, batch: dict[str, Tensor]) -> Tensor:
    return sequence_log_probabilities(teacher.logits(batch), batch["labels"]).detach()


def test_reference_is_the_teacher_before_alignment(teacher: TeacherDPOModule, batch: dict[str, Tensor]) -> None:
    """Also when the policy has moved away: the base in the first iteration, the previous adapter in the second."""
    expected = reference_of(teacher, batch)
    torch.testing.assert_close(log_probabilities(teacher, batch), expected)
    perturb(teacher, seed=2)
    moved = log_probabilities(teacher, batch)
    assert (moved - expected).abs().min() > 0.01
    with teacher.reference_policy():
        inside = log_probabilities(teacher, batch)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(log_probabilities(teacher, batch), moved, rtol=0, atol=0)


def test_both_references_differ(backbone: str, previous: Path, batch: dict[str, Tensor]) -> None:
    first = TeacherDPOModule(backbone, lora=LORA)
    second = TeacherDPOModule(backbone, lora=LORA)
    second.source = dataclasses.replace(second.source, weights=previous)
    assert (reference_of(first, batch) - reference_of(second, batch)).abs().min() > 0.01


def test_before_the_first_step_nothing_is_preferred(teacher: TeacherDPOModule, batch: dict[str, Tensor]) -> None:
    """Policy = reference: the log-ratio is 0 on both sides, the loss -log sigmoid(0) = log 2."""
    output, _, _ = teacher.dpo(batch)
    assert output.chosen_rewards.tolist() == [0.0, 0.0]
    assert output.rejected_rewards.tolist() == [0.0, 0.0]
    assert output.loss.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_training_loss_weighs_pairs_and_adds_the_likelihood_of_the_chosen(
    backbone: str, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, sft_weight: float
) -> None:
    """By hand, pair by pair: mean of w log(1 + exp(-beta h)), and weighted nats per chosen token."""
    teacher = TeacherDPOModule(backbone, lora=LORA, beta=0.3, sft_weight=sft_weight)
    teacher.configure_model()
    perturb(teacher, seed=2)
    weights = [0.25, 3.0]
    policy, reference = log_probabilities(teacher, batch).tolist(), reference_of(teacher, batch).tolist()
    num_chosen_tokens = sum(label != IGNORED for row in batch["labels"][:2].tolist() for label in row)
    expected = nll = 0.0
    for pair, weight in enumerate(weights):
        h = (policy[pair] - reference[pair]) - (policy[2 + pair] - reference[2 + pair])
        expected += weight * math.log(1 + math.exp(-0.3 * h)) / 2
        nll -= weight * policy[pair] / num_chosen_tokens
    logged: dict[str, Tensor | float] = {}
    monkeypatch.setattr(teacher, "log_metrics", lambda metrics, batch_size: logged.update(metrics))
    loss = teacher.training_step({**batch, "weights": torch.tensor(weights)}, 0)
    assert loss.item() == pytest.approx(expected + sft_weight * nll, rel=1e-5)
    assert (float(logged["loss"]), float(logged["chosen_nll"])) == pytest.approx((loss.item(), nll), rel=1e-5)
    assert loss.requires_grad
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in logged.values())


def test_gradients_reach_the_trained_adapter_alone(teacher: TeacherDPOModule, batch: dict[str, Tensor]) -> None:
    before = {name for name, parameter in teacher.network.named_parameters() if parameter.requires_grad}
    perturb(teacher, seed=2)
    output, _, _ = teacher.dpo(batch)
    output.loss.mean().backward()
    after = {name for name, parameter in teacher.network.named_parameters() if parameter.requires_grad}
    assert before == after == set(teacher.optimized())
    assert all(".default." in name for name in after)
    for name, parameter in teacher.network.named_parameters():
        if name in after:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_reference_is_left_as_it_was_found(teacher: TeacherDPOModule, batch: dict[str, Tensor]) -> None:
    """Active adapter, training mode and `requires_grad`, also when something goes wrong inside."""
    network = teacher.network
    assert isinstance(network, PeftModel)
    network.train()
    state = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with suppress(KeyboardInterrupt), teacher.reference_policy():
        assert not network.training
        assert not teacher.logits(batch).requires_grad
        raise KeyboardInterrupt
    assert network.training
    assert network.active_adapter == "default"
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == state
    assert teacher.logits(batch).requires_grad


def test_one_base_model_in_memory(teacher: TeacherDPOModule, backbone: str) -> None:
    """Base + one adapter, in later iterations base + two."""

    def size(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    adapter = sum(parameter.numel() for parameter in teacher.optimized().values())
    num_adapters = 1 if teacher.source.weights is None else 2
    assert size(teacher.network) == size(load_model(ModelSource(backbone))) + num_adapters * adapter


def test_dropout_is_the_policys_alone(backbone: str, batch: dict[str, Tensor]) -> None:
    teacher = fresh(backbone, dataclasses.replace(LORA, dropout=0.5))
    perturb(teacher, seed=2)
    teacher.network.train()
    assert not torch.equal(log_probabilities(teacher, batch), log_probabilities(teacher, batch))
    with teacher.reference_policy():
        torch.testing.assert_close(log_probabilities(teacher, batch), reference_of(teacher, batch))


def test_saved_adapter_is_the_trained_one(teacher: TeacherDPOModule, batch: dict[str, Tensor], tmp_path: Path) -> None:
    """What the next stage loads is the aligned teacher, not its reference."""
    perturb(teacher, seed=3)
    files = save_weights(teacher.network, tmp_path / "weights")  # type: ignore[arg-type]
    names = [str(file.relative_to(tmp_path / "weights")) for file in files]
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    saved = slow_log_probabilities(ModelSource(teacher.backbone, tmp_path / "weights"), batch)
    torch.testing.assert_close(saved, log_probabilities(teacher, batch))
