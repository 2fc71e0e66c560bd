"""HTML in which every text is escaped, and pages that need nothing beside them."""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files

from montessori_pl.data.text import printable


class Markup(str):
    """HTML, in which all texts are escaped already."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        content: what stands in it: texts, which are escaped, and `Markup`.
        attributes: `class_` stands for `class`, other `_` for `-`; those that are None are left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{joined(content)}</{name}>")


def joined(content: Iterable[str]) -> Markup:
    """Texts, which are escaped, and `Markup`, one after another; control characters in texts are spelled out."""
    return Markup("".join(one if isinstance(one, Markup) else escape(printable(one), quote=False) for one in content))


def document(title: str, style: str, body: Markup, script: str = "") -> str:
    """A page in light and dark that may load nothing and may run its own script alone.

    Args:
        title: of the page.
        style: CSS beside that of all pages.
        body: what stands on it.
        script: what runs at its end.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        tag("title", title),
        f"<style>{_base_style()}{style}</style>",
    ]
    end = f"<script>{script}</script>" if script else ""
    return f'<!doctype html>\n<html lang="en"><head>{"".join(head)}</head><body>\n{body}\n{end}</body></html>\n'


@cache
def _base_style() -> str:
    return files("montessori_pl.report").joinpath("base.css").read_text(encoding="utf-8")
