"""Local data influence: what one optimizer step on an example does to the loss on a reference set."""

from montessori_pl.influence.exact import ExactInfluence, one_step
from montessori_pl.influence.functional import Batch, LossFn, ResponseLosses, trainable_parameters
from montessori_pl.influence.references import ReferenceSet
from montessori_pl.influence.results import Influence
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
    "ReferenceSet",
    "ResponseLosses",
    "UpdateRule",
    "one_step",
    "trainable_parameters",
]
