"""What the two training stages share: fit from the last checkpoint, and leave weights and optimizer state behind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from montessori_pl.data import EpochBatches, ResumableLoader
from montessori_pl.models import save_weights
from montessori_pl.modules import LanguageModule
from montessori_pl.optimization import TrainingSettings
from montessori_pl.stages.base import CHECKPOINT, WEIGHTS, StageContext


class TrainingData(LightningDataModule):
    """Encoded items in length-grouped batches, dealt out to all processes.

    Args:
        items: what is trained on.
        lengths: tokens of each item.
        batch_size: items in a batch of one process.
        seed: of the order.
        collate: makes a batch of items.
    """

    def __init__(
        self,
        items: Sequence[Any],
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        super().__init__()
        self.items, self.lengths, self.batch_size, self.seed, self.collate = items, lengths, batch_size, seed, collate

    def train_dataloader(self) -> ResumableLoader:
        """Goes on, after a restart, at the batch where the checkpoint was written."""
        assert self.trainer is not None
        batches = EpochBatches(
            self.lengths, self.batch_size, self.seed, self.trainer.global_rank, self.trainer.world_size
        )
        return ResumableLoader(self.items, batches, self.collate)


def fit(
    context: StageContext, module: LanguageModule, data: TrainingData, training: TrainingSettings
) -> dict[str, Any]:
    """Train from the start or from the last checkpoint; save weights and a last checkpoint.

    Returns:
        the number of optimizer steps, and the metrics of the last logged step.
    """
    module.training_settings = training
    module.log_prefix = f"{context.key}/"
    checkpoint = context.directory / CHECKPOINT
    trainer = context.trainer(
        callbacks=[
            ModelCheckpoint(
                dirpath=context.directory,
                filename=Path(CHECKPOINT).stem,
                every_n_train_steps=training.checkpoint_every_n_steps,
                enable_version_counter=False,
            )
        ],
        **training.trainer_arguments(),
    )
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    trainer.save_checkpoint(checkpoint)
    if trainer.is_global_zero:
        save_weights(module.network, context.directory / WEIGHTS)
    prefix = module.log_prefix
    return {
        "steps": trainer.global_step,
        **{name.removeprefix(prefix): float(value) for name, value in trainer.callback_metrics.items()},
    }
