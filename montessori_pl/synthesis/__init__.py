"""Asking a teacher for instructions, and deciding which of its answers are kept."""

from montessori_pl.synthesis.base import SelfInstruct, Synthesizer

__all__ = ["SelfInstruct", "Synthesizer"]
