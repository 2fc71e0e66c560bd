"""For tests of DPO: two preference pairs, and what a model that is loaded anew says of their completions."""

from tiny_models import tiny_tokenizer
from torch import Tensor

from montessori_pl.batches.collate import collate_pairs
from montessori_pl.batches.encoding import encode_pairs
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import PreferencePair
from montessori_pl.losses import sequence_log_probabilities
from montessori_pl.models.loading import ModelSource, load_model


def pair_batch() -> dict[str, Tensor]:
    """Both pairs in one batch."""
    chat_template = ChatTemplate(tiny_tokenizer())
    pairs = [
        PreferencePair(
            id=str(n), prompt=prompt, chosen=chosen, rejected=rejected, chosen_id="c", rejected_id="r", margin=1.0
        )
        for n, (prompt, chosen, rejected) in enumerate([("write", "a task.", "b"), ("ask", "why?", "no no no")])
    ]
    return collate_pairs(encode_pairs(pairs, chat_template, 64), chat_template.tokenizer.pad_token_id)


def slow_log_probabilities(source: ModelSource, batch: dict[str, Tensor]) -> Tensor:
    """Of all completions of the batch, without gradients."""
    logits = load_model(source)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return sequence_log_probabilities(logits, batch["labels"]).detach()
