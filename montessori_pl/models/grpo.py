"""Group relative policy optimization (GRPO, arXiv 2402.03300) of a teacher on completions that it has sampled."""

import torch
from torch import Tensor

from montessori_pl.losses import IGNORED, PolicyGradientOutput, policy_gradient_loss
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.policy import PolicyModule
from montessori_pl.models.ranks import mean_over_ranks, mean_over_step


class GRPOModule(PolicyModule):
    """Makes completions likelier that are better than the others of their prompt, and the others less likely.

    The reference policy is the teacher's base, whatever it was aligned with before: over many rounds, the pull towards
    it bounds how far the teacher goes in all of them together.

    Args:
        teacher: what is trained, with the source that it goes on from.
        clip: how far below and above 1 a ratio of probabilities counts.
        kl_weight: weight of the divergence from the reference policy.
    """

    reference_is_base = True

    def __init__(self, teacher: TeacherDPOModule, clip: tuple[float, float], kl_weight: float) -> None:
        source = teacher.source
        super().__init__(
            *(teacher.backbone, teacher.lora, teacher.chat_template, source.base_dtype, teacher.chat_template_kwargs),
            *(source.trust_remote_code, source.attn_implementation),
        )
        self.source, self.clip, self.kl_weight = source, clip, kl_weight

    def policy_gradient(self, batch: dict[str, Tensor]) -> PolicyGradientOutput:
        """The loss of each token of a batch that knows its `advantages`, `sampled` and `reference`."""
        answered = batch["labels"][:, 1:] != IGNORED
        return policy_gradient_loss(
            self.token_log_probabilities(batch),
            batch["sampled"][:, 1:],
            batch["reference"][:, 1:],
            batch["advantages"],
            answered,
            self.clip,
            self.kl_weight,
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The batch's part in the mean over all tokens of the optimizer step, as in DAPO (arXiv 2503.14476).

        What is logged are the means over this batch, in all processes.
        """
        num_tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        shown: list[tuple[Tensor, Tensor, Tensor]] = []

        def loss(part: dict[str, Tensor]) -> Tensor:
            output = self.policy_gradient(part)
            total = output.loss.sum()
            shown.append((total.detach(), output.divergence.sum(), output.clipped.sum()))
            in_step = self.in_step or {"tokens": num_tokens, "averaged_batches": 1}
            return mean_over_step(total, num_tokens, in_step, "tokens")

        found = self.summed_over_parts(loss, batch, len(batch["advantages"]))
        sums = (torch.stack(parts).sum() for parts in zip(*shown, strict=True))
        means = [mean_over_ranks(one / num_tokens, num_tokens) for one in sums]
        metrics = dict(zip(("loss", "divergence", "clipped"), means, strict=True))
        self.log_metrics(metrics, batch_size=len(batch["advantages"]))
        return found
