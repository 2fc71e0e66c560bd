"""Local data influence: what one optimizer step on an example does to the loss on a reference set."""

from montessori_pl.influence.agreement import Agreement, agreement
from montessori_pl.influence.control_variate import ControlVariateInfluence
from montessori_pl.influence.dataset import score_dataset
from montessori_pl.influence.exact import ExactInfluence, one_step
from montessori_pl.influence.first_order import FirstOrderInfluence
from montessori_pl.influence.frozen import FrozenLayers, computing_in_float32
from montessori_pl.influence.functional import Batch, LossFn, ResponseLosses, trainable_parameters
from montessori_pl.influence.memory import (
    MemoryPlan,
    activation_budget,
    default_budget,
    gradient_tokens,
    plan_memory,
    row_blocks,
)
from montessori_pl.influence.noise import Noise
from montessori_pl.influence.per_example import one_by_one, per_example_gradients
from montessori_pl.influence.projection import GradientProjection
from montessori_pl.influence.references import Reduction, ReferenceSet
from montessori_pl.influence.results import Influence
from montessori_pl.influence.scorer import InfluenceScorer, Method
from montessori_pl.influence.selection import Candidate, Choice
from montessori_pl.influence.updates import SGD, AdamMoments, AdamW, ClippedGradient, Params, UpdateRule

__all__ = [
    "SGD",
    "AdamMoments",
    "AdamW",
    "Agreement",
    "Batch",
    "Candidate",
    "Choice",
    "ClippedGradient",
    "ControlVariateInfluence",
    "ExactInfluence",
    "FirstOrderInfluence",
    "FrozenLayers",
    "GradientProjection",
    "Influence",
    "InfluenceScorer",
    "LossFn",
    "MemoryPlan",
    "Method",
    "Noise",
    "Params",
    "Reduction",
    "ReferenceSet",
    "ResponseLosses",
    "UpdateRule",
    "activation_budget",
    "agreement",
    "computing_in_float32",
    "default_budget",
    "gradient_tokens",
    "one_by_one",
    "one_step",
    "per_example_gradients",
    "plan_memory",
    "row_blocks",
    "score_dataset",
    "trainable_parameters",
]
