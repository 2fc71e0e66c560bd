"""The plugins that ship with Montessori PL; they enter a recipe by `class_path`, as a stranger's plugin would."""

from callbacks.influence_during_training import InfluenceDuringTraining
from callbacks.influence_probe import InfluenceProbeCallback

__all__ = ["InfluenceDuringTraining", "InfluenceProbeCallback"]
