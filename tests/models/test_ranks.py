"""What is logged in a training by several processes is what one process logs that has all their batches in one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor
from two_ranks import on_two_ranks

from montessori_pl.batches.collate import collate, collate_pairs
from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Message
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.language_module import LanguageModule
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.ranks import mean_over_ranks
from montessori_pl.models.student import StudentModule

RESPONSES = [["b"], ["a task.", "the longest of all."]]
"""Of each rank: two batches of unequal size, and of 2 and 8 + 20 labelled tokens."""
LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def rendered(response: str) -> Rendered:
    messages: list[Message] = [{"role": "user", "content": "write"}, {"role": "assistant", "content": response}]
    return ChatTemplate(tiny_tokenizer()).render(messages)


def examples(responses: list[str]) -> dict[str, Tensor]:
    return collate([rendered(response) for response in responses], 0)


def pairs(responses: list[str]) -> dict[str, Tensor]:
    """Each against the same response backwards, and weighted by its length."""
    both = [(rendered(one), rendered(one[::-1])) for one in responses]
    encoded = [EncodedPair(*sides, weight=0.1 * len(one)) for sides, one in zip(both, responses, strict=True)]
    return collate_pairs(encoded, 0)


def student(backbone: str) -> LanguageModule:
    return StudentModule(backbone, lora=LORA)


def teacher(backbone: str) -> LanguageModule:
    return TeacherDPOModule(backbone, lora=LORA, sft_weight=0.5)


def metrics_of_one_step(module: LanguageModule, batch: dict[str, Tensor]) -> dict[str, float]:
    """What the module logs of a batch, with an adapter that has an effect."""
    module.configure_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.optimized().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    logged: dict[str, Any] = {}
    module.log_metrics = lambda metrics, batch_size: logged.update(metrics)  # type: ignore[method-assign]
    module._lr = lambda: 0.5  # type: ignore[assignment]
    module.training_step(batch, 0)
    return {name: float(value) for name, value in logged.items()}


@pytest.mark.parametrize(("make", "batch_of"), [(student, examples), (teacher, pairs)])
def test_metrics_of_two_processes_are_those_of_one_with_both_batches(
    make: Callable[[str], LanguageModule],
    batch_of: Callable[[list[str]], dict[str, Tensor]],
    backbone: str,
    tmp_path: Path,
) -> None:
    found = on_two_ranks(tmp_path, lambda rank: metrics_of_one_step(make(backbone), batch_of(RESPONSES[rank])))

    expected = metrics_of_one_step(make(backbone), batch_of(RESPONSES[0] + RESPONSES[1]))
    apart = [metrics_of_one_step(make(backbone), batch_of(responses)) for responses in RESPONSES]
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    unweighted = (apart[0]["loss"] + apart[1]["loss"]) / 2
    assert abs(unweighted - expected["loss"]) > 0.01, "or it would not matter how the ranks are weighted"


def test_a_loss_that_is_no_number_does_not_vanish(tmp_path: Path) -> None:
    losses = [torch.tensor(1.0), torch.tensor(float("nan"))]
    found = on_two_ranks(tmp_path, lambda rank: str(float(mean_over_ranks(losses[rank], 3))))
    assert found == ["nan", "nan"]


def test_one_process_has_its_own_mean_to_the_last_digit() -> None:
    """Times 3 and divided by 3 it would be another number."""
    mean = torch.tensor(0.7) / 3
    assert mean_over_ranks(mean, 3) is mean


def test_nothing_of_it_is_in_a_checkpoint(backbone: str) -> None:
    module = student(backbone)
    before = list(module.state_dict())
    metrics_of_one_step(module, examples(RESPONSES[1]))
    assert before == []
    assert all(name.startswith("model.") for name in module.state_dict())
