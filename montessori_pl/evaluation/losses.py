"""Loss on held-out answers: nats per response token, the mean over examples."""

import math
from collections.abc import Callable, Sequence

import torch

from montessori_pl.data import DataSources, collate, encode_examples, length_batches
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.losses import mean_response_loss
from montessori_pl.models import ModelSource, load_chat, load_model
from montessori_pl.records import Example


class ResponseLoss(Evaluator):
    """The student's loss on the reference set and, where there is one, on the test set.

    Args:
        batch_tokens: tokens of one batch, padding included.
        max_length: longest conversation in tokens; longer ones are cut on the right.
    """

    def __init__(self, batch_tokens: int = 8192, max_length: int = 1024) -> None:
        self.batch_tokens, self.max_length = batch_tokens, max_length

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`reference_loss` and `test_loss`, each with its standard error over examples."""
        roles = ["reference", "test"] if data.test is not None else ["reference"]
        metrics = {}
        for role in roles:
            losses = self._losses(student, data.read(role))
            metrics[f"{role}_loss"] = losses.mean().item()
            metrics[f"{role}_loss_standard_error"] = losses.std().item() / math.sqrt(len(losses))
        return metrics

    @torch.inference_mode()
    def _losses(self, student: ModelSource, examples: Sequence[Example]) -> torch.Tensor:
        """Loss of each example in float64, shape (number of examples,)."""
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        model, chat = load_model(student).to(device), load_chat(student)
        rendered, _ = encode_examples(examples, chat, self.max_length)
        losses = []
        for indices in length_batches([len(one.input_ids) for one in rendered], self.batch_tokens):
            batch = collate([rendered[index] for index in indices], chat.tokenizer.pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            losses.append(mean_response_loss(logits, batch["labels"]).double().cpu())
        return torch.cat(losses)
