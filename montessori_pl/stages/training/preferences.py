"""What the stages that align share: preference pairs as they are trained on."""

from collections.abc import Sequence
from functools import partial

from montessori_pl.batches.collate import collate_pairs, num_labels
from montessori_pl.batches.encoding import EncodedPair, encode_pairs
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import PreferencePair, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import Work
from montessori_pl.estimates.training import estimate_training
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.base import PAIRS, StageContext, StageError
from montessori_pl.stages.training.fit import TrainingData


def read_pairs(
    context: StageContext, chat_template: ChatTemplate, max_length: int
) -> tuple[list[tuple[PreferencePair, EncodedPair]], int]:
    """The pairs of the stage that the setting `pairs` names, encoded.

    Returns:
        the pairs that fit within `max_length` tokens, and how many were left out as too long.

    Raises:
        StageError: none fits.
    """
    directory = context.input_dir("pairs")
    pairs = read_records(directory / PAIRS, PreferencePair)
    fitting = [(pair, encoded) for pair in pairs for encoded in encode_pairs([pair], chat_template, max_length)]
    if not fitting:
        raise StageError(
            f"{context.key} has nothing to learn: of {len(pairs)} pairs in {directory}, none fits within "
            f"max_length {max_length} tokens"
        )
    return fitting, len(pairs) - len(fitting)


def pair_data(
    pairs: Sequence[EncodedPair], chat_template: ChatTemplate, training: TrainingSettings, context: StageContext
) -> TrainingData:
    """The pairs in batches; a pair is as long as the longer of its sides."""
    return TrainingData(
        pairs,
        [max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) for pair in pairs],
        training.batch_size,
        context.seed,
        partial(collate_pairs, pad_id=chat_template.tokenizer.pad_token_id),
        {"pairs": [1] * len(pairs), "tokens": [num_labels(pair.chosen) for pair in pairs]},
    )


def estimate_alignment(
    context: EstimateContext, chat_template: ChatTemplate, training: TrainingSettings, count: int
) -> Work:
    """Training on so many of the pairs, both sides of each; the reference policy's passes are not counted."""
    encoded = encode_pairs(context.expected_input("pairs").some(), chat_template, training.max_length)
    lengths = [len(pair.chosen.input_ids) + len(pair.rejected.input_ids) for pair in encoded]
    longest = max((len(side.input_ids) for pair in encoded for side in (pair.chosen, pair.rejected)), default=0)
    return estimate_training(training, count, lengths, context.processes, longest)
