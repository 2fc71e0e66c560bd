"""The student: supervised fine-tuning on responses, and the losses that signals and evaluators ask for."""

from typing import Any

import torch
from torch import Tensor

from montessori_pl.losses import IGNORED, mean_response_loss, token_log_probabilities
from montessori_pl.models.language_module import OF_PREFERENCES, OPTIMIZED_NAMES, LanguageModule
from montessori_pl.models.loading import BaseDtype, LoraSettings
from montessori_pl.models.ranks import mean_over_ranks


class StudentModule(LanguageModule):
    """Learns to answer instructions; the loss is taken on response tokens and their end token only.

    Args:
        backbone: the student's base model: hub id, local directory, or a name of the embedded classroom.
        lora: the adapter that is trained; null trains all weights.
        chat_template: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        chat_template_kwargs: what the chat template is told apart from the messages, as by `apply_chat_template`, for
            example `enable_thinking: false`; null tells it nothing.
        base_dtype: precision of the frozen base; `bfloat16` halves its memory, while the adapter, its moments and
            the arithmetic of influence stay in float32.
    """

    def __init__(
        self,
        backbone: str = "classroom/student",
        lora: LoraSettings | None = LoraSettings(),
        chat_template: str = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        base_dtype: BaseDtype = "float32",
    ) -> None:
        super().__init__(backbone, lora, chat_template, base_dtype, chat_template_kwargs)
        self.optimizer_state: dict[str, Any] | None = None
        """State of AdamW in the checkpoint that was loaded last, with the moments of the warm-up; none if that is of a
        training on preferences."""
        self.optimizer_names: list[str] = []
        """Names of the parameters in that state, in its order."""
        self.why_no_state = "the student was not trained"
        """Where there is no such state, the reason, for a sentence."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the optimizer's state for the influence probe."""
        super().on_load_checkpoint(checkpoint)
        if OF_PREFERENCES in checkpoint:
            self.why_no_state = "the student was last trained on preferences and not on examples"
            return
        self.optimizer_state = checkpoint["optimizer_states"][0]
        self.optimizer_names = checkpoint[OPTIMIZED_NAMES]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the response tokens of the batch, in nats."""
        log_probabilities = token_log_probabilities(self.logits(batch), batch["labels"])
        num_tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        loss = -log_probabilities.sum() / num_tokens
        mean_loss = mean_over_ranks(loss.detach(), num_tokens)
        self.log_metrics({"loss": mean_loss, "lr": self._lr()}, batch_size=len(batch["input_ids"]))
        return loss

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over each example's response tokens, shape (B,), in nats."""
        with torch.no_grad():
            return mean_response_loss(self.logits(batch), batch["labels"])

    def _lr(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])
