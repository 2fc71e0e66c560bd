"""Montessori PL: teachers that learn to write the data from which a particular student learns most."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "StudentModule": "montessori_pl.models.student",
    "TeacherDPOModule": "montessori_pl.models.dpo",
}
__all__ = ["StudentModule", "TeacherDPOModule"]  # found by __getattr__


def __getattr__(name: str) -> Any:
    """Import the modules when they are asked for: they bring Lightning and Transformers, which take seconds."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
