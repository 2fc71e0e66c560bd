"""Engines that sample completions; each is a `GenerationBackend`, chosen by `class_path`."""

from montessori_pl.generation.base import Completion, GenerationBackend, Price, Request, Sampling
from montessori_pl.generation.classroom_judge import ClassroomJudge
from montessori_pl.generation.endpoint import EndpointError
from montessori_pl.generation.openai_backend import OpenAIBackend
from montessori_pl.generation.ray_backend import RayBackend
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.generation.vllm_backend import VLLMBackend
from montessori_pl.generation.vllm_process import EngineError

__all__ = [
    "ClassroomJudge",
    "Completion",
    "EndpointError",
    "EngineError",
    "GenerationBackend",
    "OpenAIBackend",
    "Price",
    "RayBackend",
    "Request",
    "Sampling",
    "TransformersBackend",
    "VLLMBackend",
]
