"""What a trainer predicts with where a signal needs no student."""

import torch
from torch import Tensor, nn

from montessori_pl.models.student import StudentModule


class UnloadedStudent(StudentModule):
    """Stands for the student where a signal looks at the examples alone: its name and chat template, no weights.

    Batches, processes and progress of the prediction are those of any other signal; the losses are NaN.

    Args:
        student: the student that it stands for.
    """

    def __init__(self, student: StudentModule) -> None:
        source = student.source
        super().__init__(
            source.backbone,
            chat_template=source.chat_template,
            chat_template_kwargs=source.chat_template_kwargs,
            trust_remote_code=source.trust_remote_code,
        )
        self.source = source

    def configure_model(self) -> None:
        """Load nothing."""
        return

    @property
    def network(self) -> nn.Module:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "the signal asks for the student's weights, and says by needs_student = False that it needs none; "
            "set needs_student = True in its class"
        )

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """No losses: NaN for each example, shape (B,)."""
        return torch.full((len(batch["input_ids"]),), torch.nan)
