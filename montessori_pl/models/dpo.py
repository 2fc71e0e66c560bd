"""Direct preference optimization (DPO, arXiv 2305.18290) of a causal language model on completions of its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from montessori_pl.bounds import Bounds, Text, checked
from montessori_pl.losses import IGNORED, DPOOutput, PairLoss, dpo_loss
from montessori_pl.models.language_module import OF_PREFERENCES
from montessori_pl.models.loading import Attention, BaseDtype, LoraSettings
from montessori_pl.models.policy import PolicyModule
from montessori_pl.models.ranks import mean_over_ranks, mean_over_step

Beta = Annotated[float, Bounds(gt=0, le=1000)]
SFTWeight = Annotated[float, Bounds(ge=0, le=1000)]
Smoothing = Annotated[float, Bounds(ge=0, lt=0.5)]
"""A share of pairs believed to be the wrong way round: of half of them, nothing would be learned."""


class Objective(NamedTuple):
    """What is trained on a batch, and its parts."""

    loss: Tensor
    """The loss of the pairs, and the likelihood's share in it."""
    pair_loss: Tensor
    """Weighted mean of the pairs' losses."""
    nll: Tensor
    """Weighted negative log-likelihood of the chosen completions, in nats per token."""


class DPOModule(PolicyModule):
    """Learns to prefer the chosen completion of each pair to the rejected one.

    The reference policy is the model before this training: its base with the adapter switched off, or the adapter that
    was there before, kept frozen beside the one that is trained; where all weights are trained, a frozen copy of them.

    Args:
        backbone: hub id, local directory, GGUF file, or a name of the embedded classroom.
        lora: the adapter that is trained; null trains all weights.
        beta: strength of the pull towards the reference policy.
        loss_type: `sigmoid` is DPO's; `sigmoid` with label smoothing (cDPO), `robust` and `ipo` trust the pairs less
            (see `losses.dpo_loss`). `sft` learns the chosen completions and nothing else: the best of n, as in RAFT
            (arXiv 2304.06767), weighted if the pairs are.
        label_smoothing: for `sigmoid` and `robust`, the share of pairs believed to be the wrong way round.
        sft_weight: weight of the negative log-likelihood of the chosen completions, per token; it equals TRL's
            `loss_type: [LOSS, sft]` with `loss_weights: [1, sft_weight]`. DPO alone widens margins also by making both
            completions unlikely, and what becomes likely instead is not measured. `loss_type: sft` needs one above 0.
        chat_template: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        chat_template_kwargs: what the chat template is told apart from the messages, as by `apply_chat_template`, for
            example `enable_thinking: false`; null tells it nothing.
        base_dtype: precision of the frozen base under an adapter; the adapter itself is in float32.
        trust_remote_code: whether code that lies beside the backbone is run (`auto_map` of its configuration).
        attn_implementation: how attention is computed: `eager`, `sdpa`, `flash_attention_2`, `flash_attention_3` or
            `flex_attention`; null leaves it to Transformers, which takes `sdpa` where the model has it.
    """

    for_training = ("beta", "loss_type", "label_smoothing", "sft_weight")

    def __init__(
        self,
        backbone: str,
        lora: LoraSettings | None,
        beta: float,
        loss_type: PairLoss,
        label_smoothing: float,
        sft_weight: float,
        chat_template: str = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        base_dtype: BaseDtype = "float32",
        trust_remote_code: bool = False,
        attn_implementation: Attention | None = None,
    ) -> None:
        super().__init__(
            backbone, lora, chat_template, base_dtype, chat_template_kwargs, trust_remote_code, attn_implementation
        )
        check_loss(loss_type, label_smoothing, sft_weight)
        self.beta, self.loss_type, self.label_smoothing, self.sft_weight = beta, loss_type, label_smoothing, sft_weight

    def dpo(self, batch: dict[str, Tensor]) -> tuple[DPOOutput, Tensor, Tensor]:
        """The DPO loss of a batch of 2B sequences: B chosen, then the B rejected of the same prompts.

        Returns:
            losses and rewards, and the policy's log-probabilities of the chosen and of the rejected, each (B,).
        """
        policy, reference = self.log_probabilities(batch)
        chosen, rejected = policy.chunk(2)
        reference_chosen, reference_rejected = reference.chunk(2)
        chosen_tokens, rejected_tokens = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).chunk(2)
        output = dpo_loss(
            *(chosen, rejected, reference_chosen, reference_rejected),
            beta=self.beta,
            loss_type=self.loss_type,
            label_smoothing=self.label_smoothing,
            lengths=(chosen_tokens, rejected_tokens),
        )
        return output, chosen, rejected

    def objective(
        self,
        losses: Tensor,
        chosen: Tensor,
        weights: Tensor,
        num_tokens: Tensor | int,
        in_step: Mapping[str, int] = MappingProxyType({}),
    ) -> Objective:
        """Weighted mean of the pairs' losses, with the chosen completions' negative log-likelihood per token.

        Args:
            losses: loss of each pair, shape (B,).
            chosen: the policy's log-probability of each chosen completion, shape (B,).
            weights: how much each pair counts, shape (B,).
            num_tokens: labelled tokens of all chosen completions together.
            in_step: where these pairs are a part of an optimizer step, how much that holds: then each mean is the part
                in the mean over the step (`mean_over_step`).
        """
        pair_loss = mean_over_step((weights * losses).sum(), len(losses), in_step, "pairs")
        nll = mean_over_step(-(weights * chosen).sum(), num_tokens, in_step, "tokens")
        return Objective(pair_loss + self.sft_weight * nll, pair_loss, nll)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The batch's part in the objective of the optimizer step: its means are over all pairs and tokens of the step.

        What is logged are the means over this batch, in all processes.
        """
        num_pairs = len(batch["weights"])
        num_tokens = (batch["labels"][:num_pairs, 1:] != IGNORED).sum()
        in_step = self.in_step or {"pairs": num_pairs, "tokens": int(num_tokens), "averaged_batches": 1}
        of_parts: list[tuple[DPOOutput, Tensor, Tensor]] = []

        def loss(part: dict[str, Tensor]) -> Tensor:
            output, chosen, rejected = self.dpo(part)
            detached = dataclasses.replace(output, loss=output.loss.detach())
            of_parts.append((detached, chosen.detach(), rejected.detach()))
            return self.objective(output.loss, chosen, part["weights"], num_tokens, in_step).loss

        total = self.summed_over_parts(loss, batch, num_pairs)
        self._log(batch["weights"], num_tokens, of_parts)
        return total

    def _log(self, weights: Tensor, num_tokens: Tensor, of_parts: Sequence[tuple[DPOOutput, Tensor, Tensor]]) -> None:
        """Log what the parts of a batch have shown."""
        outputs, of_chosen, of_rejected = zip(*of_parts, strict=True)
        output = DPOOutput(
            torch.cat([one.loss for one in outputs]),
            torch.cat([one.chosen_rewards for one in outputs]),
            torch.cat([one.rejected_rewards for one in outputs]),
        )
        chosen, rejected = torch.cat(of_chosen), torch.cat(of_rejected)
        own = self.objective(output.loss, chosen, weights, num_tokens)
        pair_loss = mean_over_ranks(own.pair_loss, len(chosen))
        nll = mean_over_ranks(own.nll, num_tokens)
        of_pairs = {
            "reward_accuracy": output.accuracies,
            "reward_margin": output.margins,
            "chosen_reward": output.chosen_rewards,
            "rejected_reward": output.rejected_rewards,
            "chosen_log_probability": chosen,
            "rejected_log_probability": rejected,
        }
        means = {name: mean_over_ranks(values.mean(), len(chosen)) for name, values in of_pairs.items()}
        metrics = {"loss": pair_loss + self.sft_weight * nll, "chosen_nll": nll, **means}
        self.log_metrics(metrics, batch_size=len(chosen))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the optimizer's moments are of: a probe that takes a step on an example has no use for them."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[OF_PREFERENCES] = True


@checked
class TeacherDPOModule(DPOModule):
    """Learns to prefer completions that helped the student.

    The reference policy is the teacher before alignment, from the second iteration on with its previous adapter. A
    teacher always has an adapter, so that there is never a second base model.

    Args:
        lora: the adapter that is trained.
    """

    def __init__(
        self,
        backbone: Text,
        lora: LoraSettings = LoraSettings(r=16, alpha=32),
        beta: Beta = 0.1,
        loss_type: PairLoss = "sigmoid",
        label_smoothing: Smoothing = 0.0,
        sft_weight: SFTWeight = 0.0,
        chat_template: Text = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
        base_dtype: BaseDtype = "float32",
        trust_remote_code: bool = False,
        attn_implementation: Attention | None = None,
    ) -> None:
        super().__init__(
            *(backbone, lora, beta, loss_type, label_smoothing, sft_weight),
            *(chat_template, chat_template_kwargs, base_dtype, trust_remote_code, attn_implementation),
        )


def check_loss(loss_type: PairLoss, label_smoothing: float, sft_weight: float) -> None:
    """Refuse a smoothing that the loss does not look at, and a loss that learns nothing.

    Raises:
        ValueError: it is one.
    """
    if label_smoothing and loss_type in ("ipo", "sft"):
        raise ValueError(f"label_smoothing is for the loss types sigmoid and robust, found {loss_type!r}")
    if loss_type == "sft" and not sft_weight:
        raise ValueError(
            "loss_type sft learns the likelihood of the chosen completions alone, and sft_weight, its weight, is 0: "
            "set sft_weight to 1.0"
        )
