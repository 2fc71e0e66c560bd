"""A router whose encoder is trained with its head, as in PerSyn (arXiv 2510.10925)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import Rendered
from montessori_pl.models.language_module import LanguageModule
from montessori_pl.models.loading import LoraSettings, ModelSource, save_weights
from montessori_pl.models.ranks import mean_over_ranks, mean_over_step
from montessori_pl.routing.encoder import last_hidden_states
from montessori_pl.routing.head import Head
from montessori_pl.routing.preferences import bradley_terry_loss
from montessori_pl.routing.router import ENCODER

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Compared(NamedTuple):
    """A prompt with what is known of the teachers' responses to it."""

    prompt: Rendered
    """The prompt in tokens."""
    labels: Tensor
    """From `pair_labels`, shape (K, K)."""


def collate_compared(items: Sequence[Compared], pad_id: int) -> dict[str, Tensor]:
    """A batch: `input_ids` and `attention_mask`, each (B, T), and `preferences`, shape (B, K, K)."""
    batch = collate([item.prompt for item in items], pad_id)
    preferences = torch.stack([item.labels for item in items]).float()
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "preferences": preferences}


class RoutingNetwork(nn.Module):
    """A causal language model as encoder, and the coefficient head on it.

    Args:
        encoder: the language model; its own head is not used.
        num_teachers: outputs of the coefficient head.
    """

    encoder: "PreTrainedModel | PeftModel"

    def __init__(self, encoder: "PreTrainedModel | PeftModel", num_teachers: int) -> None:
        super().__init__()
        self.encoder = encoder
        unused = encoder.get_output_embeddings()
        if unused is not None and unused.weight is not encoder.get_input_embeddings().weight:
            unused.requires_grad_(False)  # what takes part in no step must not wait for gradients in one
        self.head = nn.Linear(encoder.config.get_text_config().hidden_size, num_teachers)
        nn.init.zeros_(self.head.weight)  # all teachers alike, until the data says otherwise
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Coefficients, shape (B, K)."""
        coefficients: Tensor = self.head(last_hidden_states(self.encoder, batch).to(self.head.weight.dtype))
        return coefficients


class RouterModule(LanguageModule):
    """Trains an encoder, by an adapter or whole, and the head on it by the Bradley-Terry loss.

    Args:
        encoder: the model to start from.
        lora: the adapter that is trained; none trains all weights.
        num_teachers: among how many it chooses.
    """

    def __init__(self, encoder: ModelSource, lora: LoraSettings | None, num_teachers: int) -> None:
        super().__init__(
            *(encoder.backbone, lora, encoder.chat_template, encoder.base_dtype),
            *(encoder.chat_template_kwargs, encoder.trust_remote_code, encoder.attn_implementation),
        )
        self.num_teachers = num_teachers

    def load(self) -> nn.Module:
        """The encoder with a fresh head."""
        return RoutingNetwork(self.load_language_model(), self.num_teachers)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The batch's part in the mean loss over all pairs of the optimizer step, in nats.

        What is logged is the mean over the pairs of this batch, in all processes.
        """

        def loss(batch: dict[str, Tensor]) -> Tensor:
            mean = bradley_terry_loss(self.network(batch), batch["preferences"])
            compared = (~batch["preferences"].isnan()).sum()
            self.log_metrics({"loss": mean_over_ranks(mean.detach(), compared)}, batch_size=len(batch["input_ids"]))
            return mean_over_step(mean * compared, compared, self.in_step, "comparisons")

        return self.summed_over_parts(loss, batch, num_items=1)

    @property
    def language_model(self) -> "PreTrainedModel | PeftModel":
        """The encoder."""
        return self._routing_network.encoder

    def save_encoder(self, directory: Path) -> None:
        """Save the encoder's weights where a learned router looks for them."""
        save_weights(self._routing_network.encoder, directory / ENCODER)

    def trained_head(self) -> Head:
        """The head as it is now, in float64."""
        head = self._routing_network.head
        return Head(head.weight.detach().double().cpu(), head.bias.detach().double().cpu())

    @property
    def _routing_network(self) -> RoutingNetwork:
        network = self.network
        assert isinstance(network, RoutingNetwork)
        return network
