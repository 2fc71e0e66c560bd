"""The teacher: direct preference optimization (DPO, arXiv 2305.18290) on the completions it has sampled itself."""

from montessori_pl.losses import PairLoss
from montessori_pl.models.dpo import DPOModule
from montessori_pl.models.loading import BaseDtype, LoraSettings


class TeacherDPOModule(DPOModule):
    """Learns to prefer completions that helped the student.

    The reference policy is the teacher before alignment: its base with the adapter switched off, or, from the second
    iteration on, the previous adapter, kept frozen beside the one that is trained. There is never a second base model.

    Args:
        backbone: the teacher's base model: hub id, local directory, or a name of the embedded classroom.
        lora: the adapter that is trained.
        beta: strength of the pull towards the reference policy.
        loss: `sigmoid` is DPO's; `conservative`, `robust` and `ipo` trust the pairs less (see `losses.dpo_loss`).
        label_smoothing: for `conservative` and `robust`, the share of pairs believed to be the wrong way round.
        nll_weight: weight of the negative log-likelihood of the chosen completions, per token. DPO alone widens margins
            also by making both completions unlikely, and what becomes likely instead nobody has looked at.
        chat_template: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        base_dtype: precision of the frozen base; `bfloat16` halves its memory, the adapter stays in float32.
    """

    def __init__(
        self,
        backbone: str = "classroom/teacher",
        lora: LoraSettings = LoraSettings(r=16, alpha=32),
        beta: float = 0.1,
        loss: PairLoss = "sigmoid",
        label_smoothing: float = 0.0,
        nll_weight: float = 0.0,
        chat_template: str = "auto",
        base_dtype: BaseDtype = "float32",
    ) -> None:
        super().__init__(backbone, lora, beta, loss, label_smoothing, nll_weight, chat_template, base_dtype)
