"""Asking a teacher for instructions, and deciding which of its answers are kept."""

from montessori_pl.synthesis.base import Magpie, SelfInstruct, Synthesizer

__all__ = ["Magpie", "SelfInstruct", "Synthesizer"]
