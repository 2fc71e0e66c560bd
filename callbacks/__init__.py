"""The plugins that ship with Montessori PL; they enter a recipe by `class_path`, as a stranger's plugin would."""

from callbacks.controls import RandomSignal, ResponseLengthSignal
from callbacks.gradient_cosine import GradientCosineSignal
from callbacks.influence_during_training import InfluenceDuringTraining
from callbacks.influence_probe import InfluenceProbeCallback
from callbacks.instruction_difficulty import IFDSignal
from callbacks.judge import JudgeSignal
from callbacks.projected_gradient import ProjectedGradientSignal
from callbacks.rank_surprisal import RankSurprisalSignal
from callbacks.recorded_quality import RecordedQualitySignal
from callbacks.reward_model import RewardModelSignal
from callbacks.solve_rate import SolveRateSignal
from callbacks.training_loss import TrainingLossSignal

__all__ = [
    "GradientCosineSignal",
    "IFDSignal",
    "InfluenceDuringTraining",
    "InfluenceProbeCallback",
    "JudgeSignal",
    "ProjectedGradientSignal",
    "RandomSignal",
    "RankSurprisalSignal",
    "RecordedQualitySignal",
    "ResponseLengthSignal",
    "RewardModelSignal",
    "SolveRateSignal",
    "TrainingLossSignal",
]
