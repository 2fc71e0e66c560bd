"""What the student and the teacher have in common: a causal language model that is trained and checkpointed."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import torch
from torch import Tensor, nn

from montessori_pl.data.records import stable_seed
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.losses import OutputHead
from montessori_pl.models.batch_parts import ActivationMemory, summed
from montessori_pl.models.loading import Attention, BaseDtype, LoraSettings, ModelSource, load_model, make_trainable
from montessori_pl.models.sharded import Sharded
from montessori_pl.optim import TrainingSettings
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.worlds.names import backbone_file

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

OPTIMIZED_NAMES = "montessori_optimized_names"
"""Key of the checkpoint entry that names the parameters in the order of the optimizer's state."""
OF_PREFERENCES = "montessori_of_preferences"
"""Key of the checkpoint entry that says that the optimizer's state is of a training on preferences, not on examples."""
DURING_TRAINING = "influence_during_training.jsonl"
"""File, within the directory of a stage that trains a student, of what `InfluenceDuringTraining` has measured there."""
METRICS = "montessori_metrics"
"""Key of the checkpoint entry that holds the metrics of the last step."""


class LanguageModule(lightning.LightningModule):
    """A causal language model that trains an adapter, or all of its weights.

    Building the module costs nothing: the model is loaded by `configure_model`, when Lightning knows the device.

    Args:
        backbone: hub id, local directory, GGUF file, or a name of the embedded classroom.
        lora: the adapter; none trains all weights.
        chat_template: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        chat_template_kwargs: what the chat template is told apart from the messages, as by `apply_chat_template`, for
            example `enable_thinking: false`; null tells it nothing.
        base_dtype: precision of the frozen base under an adapter; the adapter itself is in float32.
        trust_remote_code: whether code that lies beside the backbone is run (`auto_map` of its configuration).
        attn_implementation: how attention is computed; null leaves it to Transformers.

    Raises:
        ValueError: all weights are trained, and not in float32.
    """

    files: ClassVar[Files] = {"backbone": backbone_file, "chat_template": chat_template_file}

    def __init__(
        self,
        backbone: str,
        lora: LoraSettings | None,
        chat_template: str,
        base_dtype: BaseDtype,
        chat_template_kwargs: dict[str, Any] | None,
        trust_remote_code: bool,
        attn_implementation: Attention | None,
    ) -> None:
        super().__init__()
        self.backbone, self.lora = backbone, lora
        self.chat_template, self.chat_template_kwargs = chat_template, chat_template_kwargs
        self.source = ModelSource(
            backbone,
            chat_template=chat_template,
            base_dtype=base_dtype,
            chat_template_kwargs=chat_template_kwargs,
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
        )
        """What `configure_model` loads; a stage sets it to go on from trained weights."""
        if lora is None and base_dtype != "float32":
            raise ValueError(
                f"base_dtype {base_dtype!r} is for a base that stays frozen under an adapter; without an adapter all "
                "weights are trained, and steps would be lost in their rounding: use float32, and trainer.precision "
                "bf16-mixed to compute in half precision"
            )
        self.training_settings: TrainingSettings | None = None
        """How `fit` trains; a stage sets it."""
        self.activation_memory: ActivationMemory | None = None
        """What activations of a batch may take; a stage sets it. None goes through a batch as it is."""
        self.seed = 0
        """Of dropout; a stage sets it to its own."""
        self.stage_directory: Path | None = None
        """Where a callback may leave what it has seen, beside what the stage leaves; a stage sets it."""
        self._restored_metrics: dict[str, float] = {}
        self.in_step: Mapping[str, int] = {}
        """How much the optimizer step of the next batch holds (`mean_over_step`). The stages' data says so before each
        batch; while it is empty, as with data of your own, each batch is taken for a whole step."""
        self.log_prefix = ""
        """Stands before the name of every logged metric; a stage sets it to its key."""
        self.model: nn.Module | None = None
        self._sharded: tuple[Sharded, ...] = ()  # in a tuple, so that it is no part of what is checkpointed
        self._head: OutputHead | None = None
        self.strict_loading = False  # checkpoints hold what is trained, not the frozen base

    def configure_model(self) -> None:
        """Load the backbone with what was trained on it, and make an adapter if there is none yet."""
        if self.model is not None:
            return
        self.model = self.load()
        if self.device_mesh is not None:  # of `trainer.strategy: fsdp2`
            self.output_head.look()  # while each process can run the model by itself
            mixed = "bf16" in str(self.trainer.precision)
            self._sharded = (Sharded(self.model, self.device_mesh["data_parallel"], mixed),)

    def train_all_weights(self) -> None:
        """Train no adapter but the model itself, in float32: steps would be lost in the rounding of a half precision.

        To be said before it is loaded.
        """
        self.lora, self.source = None, dataclasses.replace(self.source, base_dtype="float32")

    def load(self) -> nn.Module:
        """The model that this module trains, in evaluation mode."""
        return self.load_language_model()

    def load_language_model(self) -> "PreTrainedModel | PeftModel":
        """The backbone with its adapter, a fresh one where there is none yet."""
        return make_trainable(load_model(self.source, trainable_adapter=True), self.lora)

    def on_fit_start(self) -> None:
        """Loading leaves a model in evaluation mode, and Lightning keeps the mode that it finds."""
        self.network.train()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Draw each batch's dropout from a seed of its own: Lightning does not keep random states in checkpoints."""
        torch.manual_seed(stable_seed(self.seed, self.global_rank, self.current_epoch, batch_idx))

    @property
    def network(self) -> nn.Module:
        """The loaded model."""
        assert self.model is not None, "configure_model has not run"
        return self.model

    @property
    def language_model(self) -> "PreTrainedModel | PeftModel":
        """The loaded model of a module that trains nothing beside it."""
        from peft import PeftModel
        from transformers import PreTrainedModel

        network = self.network
        assert isinstance(network, PreTrainedModel | PeftModel)
        return network

    def optimized(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name, in the optimizer's order."""
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    def configure_optimizers(self) -> Any:
        """AdamW in one group, with the stage's schedule stepped after every optimizer step."""
        assert self.training_settings is not None, "a stage sets how to train"
        optimizer = self.training_settings.optimizer(self.optimized().values())
        scheduler = self.training_settings.scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def summed_over_parts(
        self, loss: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor], num_items: int
    ) -> Tensor:
        """The loss of a batch as the sum of those of its parts, of which each goes forward and back by itself.

        Args:
            loss: of a part, a scalar; it is called with gradients, once for each part, in their order.
            batch: its rows.
            num_items: rows that can be parted, or pairs of two rows each (`ActivationMemory.parts`).
        """
        if self.activation_memory is None:
            return loss(batch)
        parts = self.activation_memory.parts(batch, num_items)
        return summed(loss, parts, self.language_model, list(self.optimized().values()))

    def token_log_probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probability of each labelled token given the tokens before it, shape (B, T-1); 0 where there is none.

        Logits of all positions are computed only where they are small (`OutputHead`).
        """
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        compute = partial(self.output_head.log_probabilities, batch["labels"], **inputs)
        found: Tensor = self._sharded[0](compute) if self._sharded else compute()
        return found

    @property
    def output_head(self) -> OutputHead:
        """What computes logits where labels are."""
        if self._head is None or self._head.model is not self.network:
            self._head = OutputHead(self.network)
        return self._head

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Next-token logits, shape (B, T, V)."""
        logits: Tensor = self.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    def log_metrics(self, metrics: Mapping[str, Tensor | float], batch_size: int) -> None:
        """Log under the stage's key; values are the same in all processes (`mean_over_ranks`)."""
        named = {f"{self.log_prefix}{name}": value for name, value in metrics.items()}
        self.log_dict(named, batch_size=batch_size)

    def last_metrics(self) -> dict[str, float]:
        """What was logged last, also if that was before a kill."""
        logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        return {**self._restored_metrics, **logged}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and say which of the optimizer's states belongs to which parameter."""
        names = list(self.optimized())
        kept = {f"model.{name}" for name in names}
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in kept}
        checkpoint[OPTIMIZED_NAMES] = names
        checkpoint[METRICS] = self.last_metrics()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other weights: a partial state would otherwise be loaded in silence.

        Raises:
            ValueError: the checkpoint's parameters are not this module's.
        """
        saved, wanted = set(checkpoint[OPTIMIZED_NAMES]), set(self.optimized())
        if saved != wanted:
            raise ValueError(
                f"the checkpoint trained {len(saved)} parameters, this module trains {len(wanted)}; "
                f"{len(saved ^ wanted)} differ, for example {min(saved ^ wanted)}; "
                "are the backbone and the LoRA settings the same?"
            )
        self._restored_metrics = checkpoint.get(METRICS, {})
