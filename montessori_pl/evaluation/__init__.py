"""Evaluators say what a student is worth; each is an `Evaluator`, chosen by `class_path`."""

from montessori_pl.evaluation.base import Evaluator
from montessori_pl.evaluation.exact_match import ExactMatch
from montessori_pl.evaluation.gym_accuracy import GymAccuracy
from montessori_pl.evaluation.lm_eval_harness import LMEvalHarness
from montessori_pl.evaluation.losses import ResponseLoss
from montessori_pl.evaluation.mt_bench import MTBench
from montessori_pl.evaluation.win_rate import WinRate

__all__ = ["Evaluator", "ExactMatch", "GymAccuracy", "LMEvalHarness", "MTBench", "ResponseLoss", "WinRate"]
