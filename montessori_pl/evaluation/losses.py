"""Loss on held-out answers: nats per response token, the mean over examples."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch

from montessori_pl.batches.collate import collate
from montessori_pl.batches.encoding import encode_examples
from montessori_pl.batches.samplers import length_batches
from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Count, PositiveInt
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example
from montessori_pl.estimates.estimate import Work, passes
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.losses import OutputHead, mean_nats
from montessori_pl.models.loading import ModelSource, best_device, load_chat_template, load_model, move_to


class ResponseLoss(Evaluator):
    """The student's loss on the reference set and, where there is one, on the test set.

    Args:
        batch_tokens: tokens of one batch, padding included.
        max_length: longest conversation in tokens; longer ones are cut on the right, and left out if no response is
            left.
    """

    generates: ClassVar[bool] = False
    fingerprint_excludes: ClassVar[tuple[str, ...]] = ("batch_tokens",)

    def __init__(self, batch_tokens: PositiveInt = 8192, max_length: Count = 1024) -> None:
        self.batch_tokens, self.max_length = batch_tokens, max_length

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """Whether any response of each set has room."""
        for role in self._roles(data):
            examples = data.read(role)
            if not any(encode_examples([one], chat_template, self.max_length)[0] for one in examples):
                raise self._no_room(role, examples)

    def estimate(
        self, data: DataSources, chat_template: ChatTemplate, backend: Callable[[], GenerationBackend]
    ) -> list[Work]:
        """A pass over the reference and the test set."""
        rendered = [
            one
            for role in self._roles(data)
            for one in encode_examples(data.read(role), chat_template, self.max_length)[0]
        ]
        return [passes("losses", sum(len(one.input_ids) for one in rendered))]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`reference_loss` and `test_loss`, each with its standard error over examples.

        Where examples are left out as too long, `reference_left_out` and `test_left_out` say how many.

        Raises:
            ValueError: no example of a set fits.
        """
        metrics = {}
        for role in self._roles(data):
            examples = data.read(role)
            losses = self.losses(student, examples)
            if not len(losses):
                raise self._no_room(role, examples)
            if left_out := len(examples) - len(losses):
                metrics[f"{role}_left_out"] = float(left_out)
            metrics[f"{role}_loss"] = losses.mean().item()
            if len(losses) > 1:
                metrics[f"{role}_loss_standard_error"] = losses.std().item() / math.sqrt(len(losses))
        return metrics

    def _roles(self, data: DataSources) -> list[str]:
        return ["reference", "test"] if data.test is not None else ["reference"]

    def _no_room(self, role: str, examples: Sequence[Example]) -> ValueError:
        return ValueError(
            f"data.{role}: none of the {len(examples)} examples has a response within max_length "
            f"{self.max_length} tokens and the student's context"
        )

    @torch.inference_mode()
    def losses(self, student: ModelSource, examples: Sequence[Example]) -> torch.Tensor:
        """Loss of each example that fits, in their order, in float64, shape (number of those,)."""
        device = best_device()
        model, chat_template = move_to(device, load_model(student)), load_chat_template(student)
        rendered, _ = encode_examples(examples, chat_template, self.max_length)
        head = OutputHead(model)
        losses = torch.empty(len(rendered), dtype=torch.float64)
        for indices in length_batches([len(one.input_ids) for one in rendered], self.batch_tokens):
            batch = collate([rendered[index] for index in indices], chat_template.tokenizer.pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            losses[indices] = mean_nats(head.log_probabilities(**batch), batch["labels"]).double().cpu()
        return losses
