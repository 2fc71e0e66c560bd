"""Training that was killed at any batch and started again is the training that was never interrupted.

Eleven examples in batches of two make six batches an epoch, the last of them short, and with two batches to an
optimizer step three steps. Three epochs are eighteen batches and nine steps, with a checkpoint after each step: also at
the last step of an epoch, and at the very last one.
"""

import math
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from stage_runs import Killed, quiet_trainer, stage_context
from transformers import LlamaConfig, LlamaForCausalLM

from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import Rendered
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.processes.stop import STOP, Stopped, by_signal
from montessori_pl.stages.base import CHECKPOINT, StageError
from montessori_pl.stages.training.fit import TrainingData, fit

NUM_EXAMPLES, BATCH_SIZE, EPOCHS = 11, 2, 3
BATCHES_PER_EPOCH = 6
NUM_BATCHES = EPOCHS * BATCHES_PER_EPOCH
SEED = 7
pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")  # as the program does
Seen = list[tuple[int, int, list[list[int]], float]]
"""Of each batch: epoch, index, tokens, and the learning rate."""


class Watch(Callback):
    """Notes every batch, and ends the process, so to say, before a given one.

    Half a batch more means: after the last batch of an epoch, before the epoch has ended.
    A signal comes in the middle of a batch, at its beginning.
    """

    def __init__(self, seen: Seen, kill_at: float | None, signal_at: int | None) -> None:
        self.seen, self.kill_at, self.signal_at = seen, kill_at, signal_at

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> None:
        if trainer.current_epoch * BATCHES_PER_EPOCH + batch_idx == self.kill_at:
            raise Killed
        if trainer.current_epoch * BATCHES_PER_EPOCH + batch_idx == self.signal_at:
            STOP.reason = by_signal(signal.SIGTERM)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((trainer.current_epoch, batch_idx, batch["input_ids"].tolist(), rate))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) * BATCHES_PER_EPOCH - 0.5 == self.kill_at:
            raise Killed


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    path = tmp_path_factory.mktemp("backbone")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def train(
    backbone: Path,
    directory: Path,
    lora: LoraSettings | None,
    settings: dict[str, Any],
    kill_at: float | None = None,
    signal_at: int | None = None,
) -> tuple[Seen, dict[str, Any]]:
    """One session of a training stage, as the runner begins it.

    Returns:
        the batches seen, and the stage's metrics; no metrics when the session did not come to its end.
    """
    lightning.seed_everything(SEED, verbose=False)
    seen: Seen = []

    def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
        return quiet_trainer([*callbacks, Watch(seen, kill_at, signal_at)], **arguments)

    context = stage_context(directory, seed=SEED, trainer=trainer)
    generator = torch.Generator().manual_seed(1)
    items = []
    for number in range(NUM_EXAMPLES):
        length = 4 + number % 5
        ids = torch.randint(3, 32, (length,), generator=generator).tolist()
        items.append(Rendered(ids, [False, *[True] * (length - 1)]))
    lengths = [len(item.input_ids) for item in items]
    data = TrainingData(
        items, lengths, BATCH_SIZE, SEED, partial(collate, pad_id=0), {"tokens": [length - 1 for length in lengths]}
    )
    training = TrainingSettings(lr=1e-2, epochs=EPOCHS, batch_size=BATCH_SIZE, **settings)
    try:
        return seen, fit(context, StudentModule(str(backbone), lora), data, training)
    except (Killed, Stopped):
        return seen, {}
    finally:
        STOP.reason = None


def load(directory: Path) -> dict[str, Any]:
    """The last checkpoint."""
    checkpoint: dict[str, Any] = torch.load(directory / CHECKPOINT, weights_only=False)
    return checkpoint


def assert_same_checkpoint(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, both moments and the schedule are equal, bit for bit."""
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    states, other_states = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other))
    assert states.keys() == other_states.keys()
    for index, state in states.items():
        assert all(torch.equal(value, other_states[index][name]) for name, value in state.items())
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert one["global_step"] == other["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "settings"),
    [
        pytest.param(
            None,
            {"schedule": "wsd", "accumulate_grad_batches": 2, "checkpoint_every_n_steps": 1},
            id="all_weights",
        ),
        pytest.param(
            LoraSettings(r=2, dropout=0.1),
            {"schedule": "wsd", "accumulate_grad_batches": 2, "checkpoint_every_n_steps": 1},
            id="dropout",
        ),
        pytest.param(
            LoraSettings(r=2, dropout=0.1),
            {"schedule": "linear_warmup", "checkpoint_every_n_steps": 4},
            id="rare_checkpoints",
        ),
    ],
)
def test_killed_before_any_batch(
    backbone: Path, tmp_path: Path, lora: LoraSettings | None, settings: dict[str, Any]
) -> None:
    """At each of the eighteen batches: one kill, one resumed session; weights, moments and metrics are the same."""
    whole, metrics = train(backbone, tmp_path / "whole", lora, settings)
    assert len(whole) == NUM_BATCHES
    expected = load(tmp_path / "whole")
    between = settings["checkpoint_every_n_steps"] * settings.get("accumulate_grad_batches", 1)
    for kill_at in range(NUM_BATCHES):
        directory = tmp_path / f"killed_at_{kill_at}"
        before, _ = train(backbone, directory, lora, settings, kill_at)
        assert before == whole[:kill_at]
        after, resumed_metrics = train(backbone, directory, lora, settings)
        # The last checkpoint was written after so many steps, or at the end of the epoch before.
        last = max(kill_at // between * between, kill_at // BATCHES_PER_EPOCH * BATCHES_PER_EPOCH)
        assert after == whole[last:]
        assert_same_checkpoint(load(directory), expected)
        assert resumed_metrics == metrics


@pytest.mark.slow
def test_a_signal_at_any_batch(backbone: Path, tmp_path: Path) -> None:
    """The optimizer step is ended and saved, so that no batch is seen twice, however rare checkpoints are."""
    lora = LoraSettings(r=2, dropout=0.1)
    settings = {"schedule": "wsd", "accumulate_grad_batches": 2, "checkpoint_every_n_steps": 1000}
    whole, metrics = train(backbone, tmp_path / "whole", lora, settings)
    for signal_at in range(NUM_BATCHES):
        directory = tmp_path / f"signal_at_{signal_at}"
        before, _ = train(backbone, directory, lora, settings, signal_at=signal_at)
        after, resumed_metrics = train(backbone, directory, lora, settings)
        assert before == whole[: signal_at // 2 * 2 + 2]
        assert before + after == whole
        assert_same_checkpoint(load(directory), load(tmp_path / "whole"))
        assert resumed_metrics == metrics


def test_processes_that_cannot_share_the_steps_do_not_go_on(backbone: Path, tmp_path: Path) -> None:
    """Three examples of each of five processes are a step of fifteen, of which two processes have no equal shares."""
    train(backbone, tmp_path / "stage", None, {"checkpoint_every_n_steps": 1}, kill_at=2)
    path = tmp_path / "stage" / CHECKPOINT
    checkpoint = load(tmp_path / "stage")
    sharing = {"batch_size": BATCH_SIZE, "accumulate_grad_batches": 1, "world_size": 1}
    assert checkpoint["TrainingData"] == {"epoch": 0, "next_batch": 2, "sharing": sharing, "begun": sharing}
    checkpoint["TrainingData"]["begun"] = {"batch_size": 3, "accumulate_grad_batches": 1, "world_size": 5}
    torch.save(checkpoint, path)
    training = TrainingData([], [], 3, SEED, list)
    trainer = quiet_trainer([])
    training.deal_out(trainer, path)
    assert trainer.accumulate_grad_batches == 5
    with pytest.raises(StageError, match=r"^this training was begun by 5 processes and cannot go on with 2: "):
        training.deal_out(SimpleNamespace(world_size=2, accumulate_grad_batches=1), path)  # type: ignore[arg-type]


@pytest.mark.slow
def test_killed_before_every_batch(backbone: Path, tmp_path: Path) -> None:
    """One training that is killed before each batch and at the end of each epoch; then it ends, twice."""
    lora, settings = LoraSettings(r=2, dropout=0.1), {"schedule": "wsd", "checkpoint_every_n_steps": 1}
    whole, metrics = train(backbone, tmp_path / "whole", lora, settings)
    ends = [epoch * BATCHES_PER_EPOCH - 0.5 for epoch in range(1, EPOCHS + 1)]
    for kill_at in sorted([*range(NUM_BATCHES), *ends]):
        seen, _ = train(backbone, tmp_path / "killed", lora, settings, kill_at)
        assert seen == whole[max(0, math.ceil(kill_at) - 1) : math.ceil(kill_at)]
    for _ in range(2):
        _, resumed_metrics = train(backbone, tmp_path / "killed", lora, settings)
        assert resumed_metrics == metrics
        assert_same_checkpoint(load(tmp_path / "killed"), load(tmp_path / "whole"))
