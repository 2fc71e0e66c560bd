"""Architectures of Transformers, with an adapter and with all weights trained, against the definition of influence.

The definition is an ordinary step of `torch.optim` on a copy, and losses of one unpadded example at a time. Values are
compared in float64 where the architecture can compute in it.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from architectures import CONFIGS, save_tiny_architecture, tiny_architecture
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from montessori_pl.influence import SGD, Batch, InfluenceScorer
from montessori_pl.influence.functional import ResponseLosses
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, make_trainable, save_weights
from montessori_pl.pipeline.model_trial import Trial, try_model

LR = 0.1
SETTINGS = {"LoRA": LoraSettings(r=2, alpha=4), "all weights": None}
DOCUMENTED = Path(__file__).parents[2] / "docs" / "how_to" / "supported_models.md"


def batch(lengths: list[int], seed: int) -> Batch:
    """Random tokens, the second half of each row a response."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 30, (length,), generator=generator)
        mask[row, :length] = 1
        labels[row, length // 2 : length] = ids[row, length // 2 : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


EXAMPLES, REFERENCES = batch([7, 11], seed=1), batch([8, 12, 6], seed=2)


def trained_model(name: str, trained: str) -> nn.Module:
    """In float64, with an adapter that has opinions."""
    model = tiny_architecture(name)
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the default computes in float32 and less only
    network = make_trainable(model, SETTINGS[trained])
    stir(network)
    return network.double().eval()


def stir(network: nn.Module) -> None:
    """Give both factors of an adapter a gradient."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)


def slow_losses(model: nn.Module, examples: Batch) -> Tensor:
    losses = []
    for ids, labels, length in zip(
        examples["input_ids"], examples["labels"], examples["attention_mask"].sum(dim=1), strict=True
    ):
        one = ids[None, :length]
        logits = model(input_ids=one, attention_mask=torch.ones_like(one)).logits[0, :-1].double()
        losses.append(nn.functional.cross_entropy(logits, labels[1:length]))
    return torch.stack(losses)


def gradient_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.parametrize("trained", SETTINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_influence_equals_its_definition(name: str, trained: str) -> None:
    model = trained_model(name, trained)
    exact, first_order = (
        [one.centred for one in InfluenceScorer(model, SGD(lr=LR), [REFERENCES], method=method, sample=2)(EXAMPLES)]
        for method in ("exact", "first_order")
    )

    before = slow_losses(model, REFERENCES).mean()
    direction = gradient_of(model, before)
    # Every trained parameter takes part, or AdamW would have no moments of it.
    assert direction.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for row in range(len(EXAMPLES["labels"])):
        example = {key: rows[row : row + 1] for key, rows in EXAMPLES.items()}
        gradient = gradient_of(model, slow_losses(model, example)[0])
        moved = copy.deepcopy(model)
        optimizer = torch.optim.SGD([param for param in moved.parameters() if param.requires_grad], lr=LR)
        optimizer.zero_grad()
        slow_losses(moved, example)[0].backward()
        optimizer.step()
        with torch.no_grad():
            expected = (before - slow_losses(moved, REFERENCES).mean()).item()
        linear = LR * sum(float((gradient[key] * direction[key]).sum()) for key in gradient)

        # Mamba, Bloom and the norms of others compute parts in float32 whatever they are in: hence a millionth.
        assert exact[row] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert first_order[row] == pytest.approx(linear, rel=1e-4, abs=1e-6)
        assert abs(expected) > 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_passes_its_trial_and_an_adapter_comes_back(name: str, tmp_path: Path) -> None:
    source = ModelSource(save_tiny_architecture(name, tmp_path / "base"))
    try_model([Trial("student", source, lora, probed=True) for lora in (None, SETTINGS["LoRA"])])

    model = make_trainable(load_model(source), SETTINGS["LoRA"])
    stir(model)
    save_weights(model, tmp_path / "adapter")
    again = load_model(ModelSource(source.backbone, weights=tmp_path / "adapter"))
    with torch.no_grad():
        losses = ResponseLosses(model)({}, REFERENCES)
        torch.testing.assert_close(ResponseLosses(again)({}, REFERENCES), losses)
        assert isinstance(model, PeftModel)
        with model.disable_adapter():
            assert not torch.allclose(ResponseLosses(model)({}, REFERENCES), losses), "the adapter does something"


@pytest.mark.parametrize("name", ["GPT-2", "Bloom", "OPT", "Gemma 3 (multimodal)"])
def test_layers_can_be_chosen_whatever_they_are_called(name: str) -> None:
    """GPT-2's linear layers are `Conv1D`."""
    model = make_trainable(tiny_architecture(name), LoraSettings(r=2, alpha=4, layers=[1]))
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapted
    assert {re.search(r"\.(?:layers|h)\.(\d+)\.", name)[1] for name in adapted} == {"1"}  # type: ignore[index]
    assert not any("vision" in name for name in adapted)


def test_towers_stay_frozen_and_text_models_are_trained_whole() -> None:
    for name in ("Gemma 3 (multimodal)", "Gemma 3 (text)", "OPT"):
        model = tiny_architecture(name)
        make_trainable(model, None)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        towers = {
            name
            for name, _ in model.named_parameters()
            if name.startswith(("model.vision_tower.", "model.multi_modal_projector."))
        }
        assert frozen == towers


def test_inputs_that_ask_for_gradients_and_gradient_checkpointing() -> None:
    """What a training with gradient checkpointing leaves behind does not disturb a probe, in evaluation mode."""
    model = make_trainable(tiny_architecture("Llama"), SETTINGS["LoRA"])
    stir(model)
    assert isinstance(model, PeftModel)
    plain = InfluenceScorer(model, SGD(lr=LR), [REFERENCES], method="exact")(EXAMPLES)
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    base.enable_input_require_grads()
    base.gradient_checkpointing_enable()
    model.train()

    influences = InfluenceScorer(model, SGD(lr=LR), [REFERENCES], method="exact")(EXAMPLES)
    assert [one.centred for one in influences] == pytest.approx([one.centred for one in plain], rel=1e-3, abs=2e-6)
    with pytest.raises(ValueError, match="in training mode with gradient checkpointing"):
        ResponseLosses(model)({}, REFERENCES)


def test_the_documentation_lists_what_is_tested() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", DOCUMENTED.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(CONFIGS) <= set(rows)
