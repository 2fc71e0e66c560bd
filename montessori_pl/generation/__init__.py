"""Engines that sample completions; each is a `GenerationBackend`, chosen by `class_path`."""

from montessori_pl.generation.base import Completion, GenerationBackend, Price, Request, Sampling
from montessori_pl.generation.classroom_judge import ClassroomJudge
from montessori_pl.generation.transformers_backend import TransformersBackend

__all__ = [
    "ClassroomJudge",
    "Completion",
    "GenerationBackend",
    "Price",
    "Request",
    "Sampling",
    "TransformersBackend",
]
