"""An optimizer step is the same however many batches and processes share it: losses are means over the whole step.

In float64 but for Llama's norms, which compute in float32: gradients agree within 1e-6. The learning rate is zero, so
that all steps start from the same weights.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from stage_runs import quiet_trainer, stage_context
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor

from montessori_pl.batches.collate import collate, collate_pairs, num_labels
from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.batches.samplers import ResumableLoader, Sharing
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.losses import dpo_loss, sequence_log_probabilities
from montessori_pl.models.dpo import DPOModule
from montessori_pl.models.language_module import LanguageModule
from montessori_pl.models.loading import LoraSettings, ModelSource
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.routing.module import Compared, RouterModule, collate_compared
from montessori_pl.stages.training.fit import TrainingData, fit

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")
LORA = LoraSettings(r=2, alpha=4)
SFT_WEIGHT = 0.5
SHARES = [(4, 2, 1), (1, 8, 1), (3, 3, 1), (4, 1, 2), (2, 2, 2), (3, 1, 3)]
"""Examples in a batch, batches in a step, processes: some 8 or 9 examples in a step."""
Gradients = dict[str, Tensor]


def rendered(number: int, backwards: bool = False) -> Rendered:
    """An example whose response has from 2 to 40 tokens."""
    words = ("go. " * (1 + number * number % 11))[: 1 + number * 7 % 40]
    response = words[::-1] + "no" if backwards else words
    return ChatTemplate(tiny_tokenizer()).render(
        [{"role": "user", "content": "say it"}, {"role": "assistant", "content": response}]
    )


class Case:
    """A module that learns, and its data."""

    def __init__(
        self,
        module: LanguageModule,
        items: Sequence[Any],
        collate: Callable[[Sequence[Any]], dict[str, Tensor]],
        counts: Mapping[str, Sequence[int]],
    ) -> None:
        self.module, self.items, self.collate, self.counts = module, items, collate, counts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the adapter
            module.configure_model()
        module.network.double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.optimized().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator).double() * 0.1)

    def data(self, batch_size: int) -> TrainingData:
        lengths = list(range(len(self.items)))
        return TrainingData(self.items, lengths, batch_size, 5, self.collate, self.counts)


def sft(backbone: str, count: int) -> Case:
    items = [rendered(number) for number in range(count)]
    return Case(
        StudentModule(backbone, lora=LORA),
        items,
        partial(collate, pad_id=0),
        {"tokens": [num_labels(one) for one in items]},
    )


def dpo(backbone: str, count: int) -> Case:
    module = DPOModule(backbone, LORA, 0.3, "sigmoid", 0.0, SFT_WEIGHT, chat_template="auto", base_dtype="float32")
    items = [EncodedPair(rendered(n), rendered(n, backwards=True), weight=0.5 + n % 3) for n in range(count)]
    counts = {"pairs": [1] * count, "tokens": [num_labels(one.chosen) for one in items]}
    return Case(module, items, partial(collate_pairs, pad_id=0), counts)


def router(backbone: str, count: int) -> Case:
    """Prompts for which from one to three pairs of teachers can be compared."""
    items = []
    for number in range(count):
        labels = torch.full((3, 3), torch.nan, dtype=torch.float64)
        for one, other in ((0, 1), (0, 2), (1, 2))[: 1 + number % 3]:
            labels[one, other], labels[other, one] = float(number % 2), float(1 - number % 2)
        items.append(Compared(rendered(number), labels))
    counts = {"comparisons": [int((~one.labels.isnan()).sum()) for one in items]}
    return Case(RouterModule(ModelSource(backbone), LORA, 3), items, partial(collate_compared, pad_id=0), counts)


MAKERS = {"sft": sft, "dpo": dpo, "router": router}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Watch(Callback):
    """Notes the gradients with which each optimizer step is taken."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def gradients(
    case: Case, directory: Path, batch_size: int, accumulate: int, **settings_of_memory: Any
) -> list[Gradients]:
    """Of each step of an epoch, as the stages train."""
    watch = Watch()
    settings = TrainingSettings(
        **{"lr": 1e-30, "batch_size": batch_size, "accumulate_grad_batches": accumulate, "schedule": "constant"},
        gradient_clip_val=None,
        **settings_of_memory,
    )

    def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
        return quiet_trainer([watch, *callbacks], **arguments)

    fit(stage_context(directory, trainer=trainer), case.module, case.data(batch_size), settings, leave_weights=id)
    return watch.steps


def gradients_of_processes(
    case: Case, batch_size: int, accumulate: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> list[Gradients]:
    """The same, of several processes one after another: DDP averages what each has got of its batches."""
    module, sums = case.module, list[Gradients]()
    monkeypatch.setattr(module, "log_metrics", lambda metrics, batch_size: None)
    monkeypatch.setattr(module, "_lr", lambda: 0.0, raising=False)
    for rank in range(world_size):
        data = case.data(batch_size)
        data.batches.share(Sharing(batch_size, accumulate, world_size))
        data.batches.rank = rank
        for number, batch in enumerate(ResumableLoader(data.items, data.batches, data.collate)):
            module.in_step = data.batches.in_step(data.counts)
            module.zero_grad()
            (module.training_step(batch, number) / accumulate / world_size).backward()
            step = number // accumulate
            sums += [{}] * (step + 1 - len(sums))
            found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            sums[step] = {name: sums[step].get(name, 0) + grad.clone() for name, grad in found.items()}
    return sums


def slow_gradients(case: Case, items: Sequence[Any]) -> Gradients:
    """Example by example, without padding: the sum over all of them, divided by what they hold together."""
    module, total = case.module, torch.zeros((), dtype=torch.float64)
    for item in items:
        batch = case.collate([item])
        if isinstance(item, Rendered):
            total -= sequence_log_probabilities(module.logits(batch), batch["labels"]).sum() / tokens(items)
        elif isinstance(item, EncodedPair):
            assert isinstance(module, DPOModule)
            policy, reference = module.log_probabilities(batch)
            (loss,) = dpo_loss(*policy.chunk(2), *reference.chunk(2), beta=0.3).loss
            num_tokens = tokens([one.chosen for one in items])
            total += item.weight * (loss / len(items) - SFT_WEIGHT * policy[0] / num_tokens)
        else:
            (coefficients,) = module.network(batch)
            pairs = [(i, j) for i in range(3) for j in range(3) if not item.labels[i, j].isnan()]
            everywhere = sum(int((~one.labels.isnan()).sum()) for one in items)
            for i, j in pairs:
                difference = coefficients[i] - coefficients[j]
                right = difference.sigmoid() if item.labels[i, j] == 1 else (-difference).sigmoid()
                total -= right.log() / everywhere
    module.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def tokens(items: Sequence[Rendered]) -> int:
    return sum(sum(one.completion_mask) for one in items)


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize(("batch_size", "accumulate", "world_size"), SHARES)
def test_a_step_is_the_mean_over_all_that_it_holds(
    backbone: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    batch_size: int,
    accumulate: int,
    world_size: int,
) -> None:
    """Full steps, and the short one that an epoch leaves over: of 8 or 9 examples, and of 5 or 4."""
    case = MAKERS[method](backbone, 13)
    data = case.data(batch_size)
    data.batches.share(Sharing(batch_size, accumulate, world_size))
    steps = data.batches.steps_of(0)
    assert sorted(map(len, steps)) == ([4, 9] if batch_size == 3 else [5, 8])
    if world_size == 1:
        found = gradients(case, tmp_path / "stage", batch_size, accumulate)
    else:
        found = gradients_of_processes(case, batch_size, accumulate, world_size, monkeypatch)
    assert len(found) == 2
    for step, examples in zip(found, steps, strict=True):
        assert_same(step, slow_gradients(case, [case.items[index] for index in examples]))


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("activation_memory", "gradient_checkpointing", "passes", "recomputed"),
    [
        (10**9, None, [1], 0),
        (10**9, True, [1], 1),
        (400_000, None, range(2, 8), 0),
        (1, None, [8], 8),
        (1, False, [8], 0),
    ],
    ids=["enough", "recomputed", "parts", "rows recomputed", "rows"],
)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_memory_changes_no_step(
    backbone: str,
    tmp_path: Path,
    method: str,
    activation_memory: int,
    gradient_checkpointing: bool | None,
    passes: Collection[int],
    recomputed: int,
    accumulate: int,
) -> None:
    """A batch that goes through in parts, or whose layers are computed again, makes the same step."""
    case = MAKERS[method](backbone, 8)
    expected = gradients(case, tmp_path / "whole" / "it", 8 // accumulate, accumulate)
    metrics = case.module.last_metrics()
    ran: list[bool] = []
    top: Any = case.module.language_model.get_base_model()  # type: ignore[operator]
    layer = top.model.layers[0]
    top.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: ran.append(layer.gradient_checkpointing) if torch.is_grad_enabled() else None
    )
    found = gradients(
        *(case, tmp_path / "parts" / "it", 8 // accumulate, accumulate),
        activation_memory=activation_memory,
        gradient_checkpointing=gradient_checkpointing,
    )
    assert_same(found[0], expected[0])
    assert case.module.last_metrics() == pytest.approx(metrics, rel=1e-6)
    assert not layer.gradient_checkpointing
    if accumulate == 1:
        assert len(ran) in passes
        assert sum(ran) == recomputed


@pytest.mark.slow
def test_one_batch_of_eight_is_four_twice(backbone: str, tmp_path: Path) -> None:
    """The student after two epochs, too, with the rate of a real training, is the same but for rounding."""
    weights = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        case = sft(backbone, 21)
        settings = TrainingSettings(lr=1e-3, epochs=2, batch_size=batch_size, accumulate_grad_batches=accumulate)
        directory = tmp_path / str(batch_size)
        fit(stage_context(directory, trainer=quiet_trainer), case.module, case.data(batch_size), settings)
        weights.append({name: p.detach().clone() for name, p in case.module.optimized().items()})
    start = sft(backbone, 0).module.optimized()
    for name, value in weights[1].items():
        assert (value - weights[0][name]).abs().max() < 1e-8
    assert max((value - start[name]).abs().max().item() for name, value in weights[0].items()) > 1e-3
