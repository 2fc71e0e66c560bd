"""DPO of all weights, with a frozen copy as the reference policy; an adapter's is tested with the teacher."""

import copy
import dataclasses
import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from preference_pairs import pair_batch, slow_log_probabilities
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor

from montessori_pl.models.dpo import DPOModule, TeacherDPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights

LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("base"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return pair_batch()


def policy(backbone: str, lora: LoraSettings | None = None, weights: Path | None = None) -> DPOModule:
    module = DPOModule(backbone, lora, 0.3, "sigmoid", 0.0, 0.0, chat_template="auto", base_dtype="float32")
    module.source = dataclasses.replace(module.source, weights=weights)
    module.configure_model()
    return module


def perturb(module: DPOModule) -> None:
    """Move what is trained, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.optimized().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def before(backbone: str, tmp_path: Path) -> Path:
    """A whole student that was trained before."""
    module = policy(backbone)
    perturb(module)
    save_weights(module.network, tmp_path / "before")  # type: ignore[arg-type]
    return tmp_path / "before"


def test_reference_is_the_model_as_it_was(backbone: str, before: Path, batch: dict[str, Tensor]) -> None:
    """Also when the policy has moved away, and whatever happens inside."""
    module = policy(backbone, weights=before)
    expected = slow_log_probabilities(ModelSource(backbone, before), batch)
    assert (expected - slow_log_probabilities(ModelSource(backbone), batch)).abs().min() > 0.01
    module.network.train()
    perturb(module)
    found, reference = module.log_probabilities(batch)
    torch.testing.assert_close(reference, expected)
    assert (found - expected).abs().min() > 0.01
    network = module.network
    with suppress(KeyboardInterrupt), module.reference_policy():
        assert not module.network.training
        assert not module.logits(batch).requires_grad
        raise KeyboardInterrupt
    assert module.network is network
    assert network.training


def test_loss_and_gradients_equal_those_of_trl(tmp_path: Path, backbone: str) -> None:
    """TRL gets a policy that has moved and a reference of its own; ours makes its copy when it is loaded."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = [
        {"prompt": "what is a cat?", "chosen": " an animal.", "rejected": " no idea what you mean."},
        {"prompt": "why?", "chosen": " because it is so.", "rejected": " x"},
    ]
    module = policy(backbone)
    perturb(module)
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(module.network),
        ref_model=load_model(ModelSource(backbone)),
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    expected = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    expected.backward()
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    ours = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    output, _, _ = module.dpo(ours)
    output.loss.mean().backward()
    assert output.loss.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - math.log(2)) > 0.01, "policy and reference must differ for this to mean something"
    theirs = dict(trainer.model.named_parameters())
    assert theirs.keys() == module.optimized().keys()
    for name, parameter in module.optimized().items():
        gradient = theirs[name].grad
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item(), msg=name)


def test_the_copy_is_no_part_of_the_module(backbone: str, batch: dict[str, Tensor]) -> None:
    """Neither of its parameters, which are saved and moved and trained, nor of the gradients."""
    module = policy(backbone)
    size = sum(parameter.numel() for parameter in load_model(ModelSource(backbone)).parameters())
    assert sum(parameter.numel() for parameter in module.parameters()) == size
    (frozen,) = module._copy
    module.dpo(batch)[0].loss.mean().backward()
    assert all(parameter.grad is not None for parameter in module.optimized().values())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen.parameters())
    state = dict(module.state_dict())
    assert not any(value.data_ptr() in {p.data_ptr() for p in frozen.parameters()} for value in state.values())


def test_an_adapter_is_trained_as_the_teachers_is(backbone: str, batch: dict[str, Tensor], tmp_path: Path) -> None:
    """The same loss and the same gradients, from a fresh adapter and from an earlier one; and no copy at all."""
    earlier = policy(backbone, LORA)
    perturb(earlier)
    save_weights(earlier.network, tmp_path / "earlier")  # type: ignore[arg-type]
    for weights in (None, tmp_path / "earlier"):
        teacher = TeacherDPOModule(backbone, lora=LORA, beta=0.3)
        teacher.source = dataclasses.replace(teacher.source, weights=weights)
        teacher.configure_model()
        module = policy(backbone, LORA, weights)
        module.load_state_dict(teacher.state_dict())  # a fresh adapter is drawn at random
        for one in (module, teacher):
            perturb(one)
            one.dpo(batch)[0].loss.mean().backward()
        gradients = [[parameter.grad for parameter in one.optimized().values()] for one in (module, teacher)]
        assert len(gradients[0]) > 0
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
        assert not module._copy
