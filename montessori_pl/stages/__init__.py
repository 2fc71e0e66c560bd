"""The stages of which recipes are made, one file each; what several of them share lies in subpackages."""

from montessori_pl.stages.align_student import AlignStudent
from montessori_pl.stages.align_teacher import AlignTeacher
from montessori_pl.stages.augment import Augment
from montessori_pl.stages.base import Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.build_preferences import BuildPreferences
from montessori_pl.stages.concat_examples import ConcatExamples
from montessori_pl.stages.evaluate import Evaluate
from montessori_pl.stages.generate_responses import GenerateResponses
from montessori_pl.stages.generating.collapse_guard import CollapseGuard
from montessori_pl.stages.generating.self_consistency import SelfConsistency
from montessori_pl.stages.recorded_examples import RecordedExamples
from montessori_pl.stages.reinforce_teacher import ReinforceTeacher
from montessori_pl.stages.route_responses import RouteResponses
from montessori_pl.stages.score_examples import ScoreExamples
from montessori_pl.stages.select_best import SelectBest
from montessori_pl.stages.select_hard_examples import SelectHardExamples
from montessori_pl.stages.select_teacher import SelectTeacher
from montessori_pl.stages.synthesize import Synthesize
from montessori_pl.stages.train_router import TrainRouter
from montessori_pl.stages.train_student import TrainStudent

__all__ = [
    "AlignStudent",
    "AlignTeacher",
    "Augment",
    "BuildPreferences",
    "CollapseGuard",
    "ConcatExamples",
    "Evaluate",
    "GenerateResponses",
    "Input",
    "Kind",
    "RecordedExamples",
    "ReinforceTeacher",
    "RouteResponses",
    "ScoreExamples",
    "SelectBest",
    "SelectHardExamples",
    "SelectTeacher",
    "SelfConsistency",
    "Stage",
    "StageContext",
    "StageError",
    "Synthesize",
    "TrainRouter",
    "TrainStudent",
]
