"""The stages of which recipes are made, one file each; what several of them share stands in rooms beside them."""

from montessori_pl.stages.align_student import AlignStudent
from montessori_pl.stages.align_teacher import AlignTeacher
from montessori_pl.stages.answer import Answer
from montessori_pl.stages.augment import Augment
from montessori_pl.stages.base import Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.combine import Combine
from montessori_pl.stages.evaluate import Evaluate
from montessori_pl.stages.find_mistakes import FindMistakes
from montessori_pl.stages.generating.collapse_guard import CollapseGuard
from montessori_pl.stages.pair import Pair
from montessori_pl.stages.pick_responses import PickResponses
from montessori_pl.stages.recorded_examples import RecordedExamples
from montessori_pl.stages.score import Score
from montessori_pl.stages.select_best import SelectBest
from montessori_pl.stages.select_teacher import SelectTeacher
from montessori_pl.stages.synthesize import Synthesize
from montessori_pl.stages.train_router import TrainRouter
from montessori_pl.stages.train_student import TrainStudent

__all__ = [
    "AlignStudent",
    "AlignTeacher",
    "Answer",
    "Augment",
    "CollapseGuard",
    "Combine",
    "Evaluate",
    "FindMistakes",
    "Input",
    "Kind",
    "Pair",
    "PickResponses",
    "RecordedExamples",
    "Score",
    "SelectBest",
    "SelectTeacher",
    "Stage",
    "StageContext",
    "StageError",
    "Synthesize",
    "TrainRouter",
    "TrainStudent",
]
