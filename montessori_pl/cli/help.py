"""What `--help` shows of a type with bounds."""

import re
from argparse import Action

from jsonargparse import DefaultHelpFormatter


class ReadableTypes(DefaultHelpFormatter):
    """Shows `float > 0` in place of `Annotated[float, > 0]`, and plain `str` of a text that must not be empty."""

    def _expand_help(self, action: Action) -> str:
        text, before = super()._expand_help(action), ""
        while text != before:  # from the inside
            before, text = text, re.sub(r"Annotated\[(\w+(?:\[[^][]*\])?), ([^][]*)\]", _readable, text)
        return text


def _readable(match: re.Match[str]) -> str:
    return match[1] if match[2].startswith("not empty") else f"{match[1]} {match[2]}"
