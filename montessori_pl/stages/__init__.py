"""The stages of which recipes are made, one file each."""

from montessori_pl.stages.align_student import AlignStudent
from montessori_pl.stages.align_teacher import AlignTeacher
from montessori_pl.stages.answer import Answer
from montessori_pl.stages.base import Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.collapse_guard import CollapseGuard
from montessori_pl.stages.evaluate import Evaluate
from montessori_pl.stages.pair import Pair
from montessori_pl.stages.recorded_examples import RecordedExamples
from montessori_pl.stages.score import Score
from montessori_pl.stages.select_best import SelectBest
from montessori_pl.stages.synthesize import Synthesize
from montessori_pl.stages.train_student import TrainStudent

__all__ = [
    "AlignStudent",
    "AlignTeacher",
    "Answer",
    "CollapseGuard",
    "Evaluate",
    "Input",
    "Kind",
    "Pair",
    "RecordedExamples",
    "Score",
    "SelectBest",
    "Stage",
    "StageContext",
    "StageError",
    "Synthesize",
    "TrainStudent",
]
