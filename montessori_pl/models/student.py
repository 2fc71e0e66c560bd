"""The student: supervised fine-tuning on responses, and the losses that signals and evaluators ask for."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from montessori_pl.bounds import Text, checked
from montessori_pl.data.chat_template import LossOn
from montessori_pl.losses import IGNORED, mean_nats
from montessori_pl.models.language_module import OF_PREFERENCES, OPTIMIZED_NAMES, LanguageModule
from montessori_pl.models.loading import Attention, BaseDtype, LoraSettings
from montessori_pl.models.ranks import mean_over_ranks, mean_over_step


@checked
class StudentModule(LanguageModule):
    """Learns to answer instructions; the loss is taken on response tokens and their end tokens only.

    Args:
        backbone: the student's base model: hub id, local directory, GGUF file, or a name of the embedded
            classroom.
        lora: the adapter that is trained; null trains all weights.
        chat_template: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        chat_template_kwargs: what the chat template is told apart from the messages, as by `apply_chat_template`, for
            example `enable_thinking: false`; null tells it nothing.
        base_dtype: precision of the frozen base; `bfloat16` halves its memory, while the adapter, its moments and
            the arithmetic of influence stay in float32. A stage that trains all weights loads them in float32.
        loss_on: where examples have several turns, of which answers the loss is taken, in training, influence and
            evaluation alike: of `all` (TRL's `assistant_only_loss`), or of the `last` one alone (LLaMA-Factory's
            `mask_history`). Answers of weight 0 are never learned.
        trust_remote_code: whether code that lies beside the backbone is run (`auto_map` of its configuration).
        attn_implementation: how attention is computed: `eager`, `sdpa`, `flash_attention_2`, `flash_attention_3` or
            `flex_attention`; null leaves it to Transformers, which takes `sdpa` where the model has it.
    """

    def __init__(
        self,
        backbone: Text,
        lora: LoraSettings | None = LoraSettings(),
        chat_template: Text = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        base_dtype: BaseDtype = "float32",
        loss_on: LossOn = "all",
        trust_remote_code: bool = False,
        attn_implementation: Attention | None = None,
    ) -> None:
        super().__init__(
            backbone, lora, chat_template, base_dtype, chat_template_kwargs, trust_remote_code, attn_implementation
        )
        self.source = dataclasses.replace(self.source, loss_on=loss_on)
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
        """The batch's part in the mean loss over all response tokens of the optimizer step, in nats.

        What is logged is the mean over the tokens of this batch, in all processes.
        """
        num_tokens, of_parts = (batch["labels"][:, 1:] != IGNORED).sum(), []

        def loss(part: dict[str, Tensor]) -> Tensor:
            nats = -self.token_log_probabilities(part).sum()
            of_parts.append(nats.detach())
            return mean_over_step(nats, num_tokens, self.in_step, "tokens")

        total = self.summed_over_parts(loss, batch, len(batch["input_ids"]))
        mean_loss = mean_over_ranks(torch.stack(of_parts).sum() / num_tokens, num_tokens)
        self.log_metrics({"loss": mean_loss, "lr": self._lr()}, batch_size=len(batch["input_ids"]))
        return total

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over each example's response tokens, shape (B,), in nats."""
        with torch.no_grad():
            return mean_nats(self.token_log_probabilities(batch), batch["labels"])

    def _lr(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])
