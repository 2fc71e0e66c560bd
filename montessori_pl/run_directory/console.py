"""A console for texts that others have written: models, servers, files."""

from typing import Any

from rich.console import Console
from rich.text import Text

from montessori_pl.data.text import printable


class PlainConsole(Console):
    """Shows each text as it is: no markup is read in it, and no control character reaches the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": True, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every text passes here on its way to the screen, also those in tables."""
        return super().render_str(printable(text), **settings)
