"""What all training stages share: fit from the last checkpoint, and leave weights and optimizer state behind."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from montessori_pl.batches.samplers import EpochBatches, ResumableLoader, Sharing
from montessori_pl.influence.memory import LayerSizes, activation_budget
from montessori_pl.models.batch_parts import ActivationMemory
from montessori_pl.models.language_module import LanguageModule
from montessori_pl.models.loading import ModelSource, load_config, save_weights
from montessori_pl.models.sharded import whole_weights
from montessori_pl.optim import TrainingSettings
from montessori_pl.processes.sharding import FSDP2Strategy
from montessori_pl.processes.stop import STOP
from montessori_pl.run_directory.durable import replace
from montessori_pl.stages.base import CHECKPOINT, WEIGHTS, StageContext, StageError
from montessori_pl.stages.training.divergence import StopAtDivergence, refuse_diverged_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

HOW_TRAINED = (
    "training.checkpoint_every_n_steps",
    "training.activation_memory",
    "training.gradient_checkpointing",
)
"""Settings that say how fast and in how much memory is trained; they may be changed after a stage has begun."""
IN_PARTS = (SingleDeviceStrategy, DDPStrategy)
"""Strategies that keep whole parameters in every process and add up gradients where a backward pass ends."""


class TrainingData(LightningDataModule):
    """Encoded items in length-grouped batches, dealt out to all processes.

    Args:
        items: what is trained on.
        lengths: tokens of each item.
        batch_size: items in a batch of one process.
        seed: of the order.
        collate: makes a batch of items.
        counts: how much each item holds of what the loss is a mean over, by name: `tokens` that are labelled, `pairs`
            (see `EpochBatches.in_step`); none takes the mean of the batches' means.
    """

    def __init__(
        self,
        items: Sequence[Any],
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        collate: Callable[[Sequence[Any]], Any],
        counts: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.items, self.collate, self.counts = items, collate, counts
        self.batches = EpochBatches(lengths, Sharing(batch_size), seed)

    def deal_out(self, trainer: Trainer, checkpoint: Path) -> str | None:
        """Deal the batches out to the processes of a trainer, as a training needs it that is begun or goes on here.

        One that was begun by another number of processes makes the same steps on the same examples: the batches of a
        step are accumulated, or smaller ones.

        Args:
            trainer: before it fits; how many batches it accumulates is set where these are others.
            checkpoint: of the training, if it has one.

        Returns:
            a sentence where the number of processes is another one than before.

        Raises:
            StageError: so many processes cannot share the steps.
        """
        batch_size = self.batches.sharing.batch_size
        configured = Sharing(batch_size, trainer.accumulate_grad_batches, trainer.world_size)
        if not checkpoint.exists():
            self.batches.share(configured)
            return None
        found = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)[type(self).__name__]
        begun, then = Sharing(**found["begun"]), Sharing(**found["sharing"])
        try:
            now = begun.among(trainer.world_size)
        except ValueError as error:
            raise StageError(
                f"this training was begun by {_processes(begun)} and cannot go on with {trainer.world_size}: {error}; "
                "set trainer.devices and num_nodes as they were, or to numbers that can share its steps, or delete the "
                "stage's directory to begin it again"
            ) from None
        self.batches.share(now, begun)
        trainer.accumulate_grad_batches = now.accumulate_grad_batches
        if now == then:
            return None
        return (
            f"goes on with {_processes(now)} in place of {then.world_size}: the same steps, each in "
            f"{now.batches_per_step} batches of up to {now.batch_size}"
        )

    def train_dataloader(self) -> ResumableLoader:
        """Goes on, after a restart, at the batch where the checkpoint was written."""
        assert self.trainer is not None
        size, accumulated = self.batches.sharing.batch_size, self.trainer.accumulate_grad_batches
        if (now := Sharing(size, accumulated, self.trainer.world_size)) != self.batches.sharing:
            self.batches.share(now)  # a trainer to which nobody has dealt out anything before
        self.batches.rank = self.trainer.global_rank
        return ResumableLoader(self.items, self.batches, self.collate)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Tell the module what the step of the coming batch holds; loaders without workers fetch no batch ahead."""
        assert self.trainer is not None
        if self.counts and isinstance(module := self.trainer.lightning_module, LanguageModule):
            module.in_step = self.batches.in_step(self.counts)
        return batch

    # Lightning restores the position of a loader only where it builds the loader after it has read the checkpoint, and
    # `estimated_stepping_batches`, which a schedule asks for, builds it before. Data modules are restored in any case.
    def state_dict(self) -> dict[str, Any]:
        """Where the batches go on, and how they are dealt out."""
        return self.batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.batches.load_state_dict(state_dict)


def _processes(sharing: Sharing) -> str:
    return f"{sharing.world_size} process{'es' if sharing.world_size > 1 else ''}"


class LastCheckpoint(Checkpoint):
    """Keeps one checkpoint, written every few optimizer steps, at the end of each epoch, and when a signal has come.

    Not Lightning's `ModelCheckpoint`, for it saves in `on_train_batch_end` of an epoch's last batch too, and after a
    restart from there Lightning 2.6 counts one epoch too few: a second kill in the next epoch repeats batches.

    Args:
        path: the checkpoint.
        every_n_steps: optimizer steps between two of them.
        batches: of the training.
    """

    def __init__(self, path: Path, every_n_steps: int, batches: EpochBatches) -> None:
        self.path, self.every_n_steps, self.batches = path, every_n_steps, batches
        self._step_before = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the step count, to see whether this batch makes a step or only accumulates gradients."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save if a step was made and it is time, unless the epoch ends here and is about to be saved."""
        step = trainer.global_step
        if step == self._step_before or trainer.is_last_batch:
            return
        stopping = STOP.reason is not None and trainer.is_global_zero  # the others go on as long as it needs them
        in_parts = isinstance(trainer.strategy, FSDP2Strategy)  # which are gathered from all
        if in_parts:
            stopping = trainer.strategy.reduce_boolean_decision(stopping, all=False)
        if stopping:
            (self.save if in_parts else self._save_alone)(trainer)
            if trainer.is_global_zero:
                STOP.check()
        if step % self.every_n_steps == 0:
            self.save(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let Lightning count the batches of an epoch as they are dealt out now."""
        found = checkpoint[TrainingData.__name__]
        then, epoch = Sharing(**found["sharing"]), found["epoch"]
        if then == self.batches.sharing:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = progress["current"]["processed"]  # a step ends there; Lightning completes its last batch after saving
        for what, number in progress["current"].items():
            progress["current"][what] = self.batches.same_place(done, then) + number - done
            progress["total"][what] = epoch * len(self.batches) + progress["current"][what]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self.save(trainer)
        if trainer.is_global_zero:
            STOP.check()

    def save(self, trainer: Trainer) -> None:
        """Replace the checkpoint, by none whose weights are no numbers; all processes must call this.

        Lightning alone would write into the temporary directory and move the file from there, and if that is another
        file system, a kill in the middle leaves half a checkpoint.
        """
        refuse_diverged_weights(trainer, trainer.lightning_module)
        trainer.save_checkpoint(self._draft)
        if trainer.is_global_zero:
            replace(self._draft, self.path)

    def _save_alone(self, trainer: Trainer) -> None:
        """The same without the barrier, to which the others may not come any more."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, self._draft)
        replace(self._draft, self.path)

    @property
    def _draft(self) -> Path:
        return self.path.with_name(self.path.name + ".draft")


def fit(
    context: StageContext,
    module: LanguageModule,
    data: TrainingData,
    training: TrainingSettings,
    callbacks: Sequence[Callback] = (),
    leave_weights: Callable[[Trainer], None] | None = None,
) -> dict[str, Any]:
    """Train from the start or from the last checkpoint; save weights and a last checkpoint.

    Args:
        context: the stage's.
        module: what is trained.
        data: on what.
        training: how.
        callbacks: who takes part besides those of the trainer's section.
        leave_weights: puts the weights into the stage's directory when training has ended, in all processes; none saves
            those of the last step.

    Returns:
        the number of optimizer steps, the metrics of the last logged step, and `warnings` if the loss rose.

    Raises:
        StageError: the training diverged.
    """
    module.training_settings, module.seed = training, context.seed
    module.stage_directory = context.directory
    module.log_prefix = f"{context.key}/"
    path = context.directory / CHECKPOINT
    checkpoint, divergence = LastCheckpoint(path, training.checkpoint_every_n_steps, data.batches), StopAtDivergence()
    trainer = context.trainer(callbacks=[divergence, *callbacks, checkpoint], **training.trainer_arguments())
    if (changed := data.deal_out(trainer, path)) and trainer.is_global_zero:
        context.say(changed)
    module.activation_memory = activation_memory(module.source, training, trainer)
    with STOP.postponed():  # until a step has ended, see `LastCheckpoint`
        trainer.fit(module, datamodule=data, ckpt_path=str(path) if path.exists() else None)
    checkpoint.save(trainer)  # once more: callbacks such as weight averaging change the weights when training ends
    if leave_weights is not None:
        leave_weights(trainer)
    else:
        _save_weights(trainer, module.language_model, context.directory / WEIGHTS)
    metrics = {name.removeprefix(module.log_prefix): value for name, value in module.last_metrics().items()}
    warnings = divergence.warnings(training.lr)
    return {"steps": trainer.global_step, **metrics, **({"warnings": warnings} if warnings else {})}


def _save_weights(trainer: Trainer, model: "PreTrainedModel | PeftModel", directory: Path) -> None:
    """Save what one process would save; all must call this."""
    first, whole = trainer.is_global_zero, None
    if isinstance(trainer.strategy, FSDP2Strategy):
        whole = {name: weight.cpu() for name, weight in whole_weights(model) if first}
    if first:
        save_weights(model, directory, whole)


def activation_memory(source: ModelSource, training: TrainingSettings, trainer: Trainer) -> ActivationMemory | None:
    """What the activations of a batch may take in this training; none where the model does not tell its size.

    Where parameters are sharded or gradients scaled, no batch is parted; layers may be computed again.
    """
    precision, device = trainer.precision_plugin, trainer.strategy.root_device
    scaled = isinstance(precision, MixedPrecision) and precision.scaler is not None
    sizes = LayerSizes.of(load_config(source))
    if sizes is None:
        return None
    return ActivationMemory(
        sizes,
        itemsize=2 if source.base_dtype == "bfloat16" or "16" in str(precision.precision) else 4,
        budget=training.activation_memory or activation_budget(device),
        recompute=training.gradient_checkpointing,
        parted=isinstance(trainer.strategy, IN_PARTS) and not scaled,
    )
