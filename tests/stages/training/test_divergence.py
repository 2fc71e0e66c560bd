"""Training that diverges stops with a sentence, leaves no checkpoint that holds NaN, and a loss that rose is told."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from alignments import GENTLE, Align
from lightning.pytorch import Callback, LightningModule, Trainer
from stage_runs import Killed, quiet_trainer, stage_context, write
from tiny_models import save_tiny_model
from torch.optim import Optimizer

from montessori_pl.data.records import Example
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.base import CHECKPOINT, EXAMPLES, WEIGHTS, StageError
from montessori_pl.stages.train_student import TrainStudent

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")  # as the program does
STEPS = 12
Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train the student in twelve steps, with a checkpoint after each; returns the metrics."""
    backbone = save_tiny_model(tmp_path / "model")
    examples = [Example(id=str(n), instruction=f"say {'abcdef'[n % 6]}", response="abcdef"[n % 6]) for n in range(24)]
    data = write(tmp_path / "data" / EXAMPLES, examples)

    def run(lr: float, *notes: Callback, lora: LoraSettings | None = None, **settings: Any) -> dict[str, Any]:
        settings = {"batch_size": 2, "schedule": "constant", "gradient_clip_val": None, **settings}
        directory = tmp_path / "trained"

        def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
            return quiet_trainer([*callbacks, *notes], default_root_dir=directory, **arguments)

        context = stage_context(
            directory, inputs={"examples": data}, student=lambda: StudentModule(backbone, lora), trainer=trainer
        )
        training = TrainingSettings(lr=lr, checkpoint_every_n_steps=1, **settings)
        return TrainStudent("data", training).run(context)

    return run


def all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors.values())


class Leap(Callback):
    """Takes steps of another length than the settings allow."""

    def __init__(self, lr: float = 1e30) -> None:
        self.lr = lr

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)], ids=["all weights", "LoRA"])
def test_a_step_that_is_no_number_is_not_taken(train: Train, tmp_path: Path, lora: LoraSettings | None) -> None:
    """The weights behind the first step are huge and finite, so that the loss of the second is the first to be lost."""
    for _ in range(2):  # a run that is started again ends in the same way
        with pytest.raises(
            StageError,
            match=r"^iteration_1/trained diverged at optimizer step [23] of 12, with training.lr 1: the loss is "
            rf"nan and the norm of the gradient is nan; lower training.lr .* delete {tmp_path / 'trained'} to train",
        ):
            train(1.0, Leap(), lora=lora)
        checkpoint = torch.load(tmp_path / "trained" / CHECKPOINT, weights_only=False)
        assert all_finite(checkpoint["state_dict"])
        assert not (tmp_path / "trained" / WEIGHTS).exists()


class LoseWeights(Callback):
    """One weight is NaN behind the last step, which no loss will tell."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == STEPS:
            next(one for one in pl_module.parameters() if one.requires_grad).data[0, 0] = torch.nan


def test_weights_that_are_lost_in_the_last_step_are_not_left(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"diverged at optimizer step 12 of 12, .*: trained weights are no numbers"):
        train(1e-3, LoseWeights())
    assert all_finite(torch.load(tmp_path / "trained" / CHECKPOINT, weights_only=False)["state_dict"])
    assert not (tmp_path / "trained" / WEIGHTS).exists()


class LoseGradient(Callback):
    """From some step on one gradient is NaN, while all losses are finite."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 3:
            gradient = next(one.grad for one in pl_module.parameters() if one.grad is not None)
            gradient.fill_(torch.nan)


def test_a_gradient_that_is_no_number_stops_though_the_loss_is_one(train: Train) -> None:
    with pytest.raises(StageError, match=r"at optimizer step 4 of 12, .*: the loss is [0-9.]+ and the norm .* is nan"):
        train(1e-3, LoseGradient(), gradient_clip_val=1.0)


class Kill(Callback):
    """Ends the process, so to say, before a step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 5:
            raise Killed


def test_a_loss_that_rose_is_told_also_after_a_kill(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(1.0, Leap(10), Kill())
    resumed = train(1.0, Leap(10))
    (tmp_path / "trained").rename(tmp_path / "resumed")
    undisturbed = train(1.0, Leap(10))
    assert resumed == undisturbed
    (said,) = undisturbed["warnings"]
    assert said.startswith("the training made the model worse: its lowest loss over the last 4 batches is ")
    assert said.endswith("lower training.lr, now 1")
    json.dumps(undisturbed, allow_nan=False)


def test_a_training_that_learns_says_nothing(train: Train) -> None:
    assert "warnings" not in train(1e-2)


@pytest.mark.parametrize("monitored", [True, False])
def test_alignment_stops_too(align: Align, tmp_path: Path, monitored: bool) -> None:
    settings = {} if monitored else {"monitor": None}
    training = dataclasses.replace(GENTLE, lr=1.0, schedule="constant", gradient_clip_val=None)
    with pytest.raises(StageError, match=r"diverged at optimizer step \d+ of \d+, with training.lr 1"):
        align(tmp_path / "aligned", training=training, notes=Leap(), **settings)
    assert not (tmp_path / "aligned" / WEIGHTS).exists()
