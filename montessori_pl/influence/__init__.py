"""Local data influence: what one optimizer step on an example does to the loss on a reference set."""

from montessori_pl.influence.exact import ExactInfluence, Influence, one_step
from montessori_pl.influence.functional import Batch, LossFn, response_losses, trainable_parameters
from montessori_pl.influence.updates import SGD, AdamMoments, AdamW, Params, UpdateRule

__all__ = [
    "SGD",
    "AdamMoments",
    "AdamW",
    "Batch",
    "ExactInfluence",
    "Influence",
    "LossFn",
    "Params",
    "UpdateRule",
    "one_step",
    "response_losses",
    "trainable_parameters",
]
