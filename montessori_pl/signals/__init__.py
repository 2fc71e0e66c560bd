"""What a preference signal is: a Lightning callback that scores examples during `Trainer.predict`."""

from montessori_pl.signals.base import REPORT, SignalCallback
from montessori_pl.signals.scalar import Columns, Direction, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData

__all__ = ["REPORT", "Columns", "Direction", "ScalarSignal", "ScoringData", "SignalCallback"]
