"""A preview on the console, and as one HTML page that needs nothing beside it.

What models write is shown as text: it is escaped in the page, and control characters do not reach the terminal.
"""

from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from montessori_pl.estimates.preview import PreviewedSample, StagePreview

LONGEST = 400
"""Characters of a text on the console; the page has all of it."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 110em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { border: 1px solid #ccc; padding: .5em; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.4 ui-monospace, monospace; margin: 0; }
.rejected { background: #fdf1f0; } .accepted { background: #f1f8f1; } .note { color: #865400; }
"""


def print_preview(previews: Sequence[StagePreview], console: Console) -> None:
    """Print the samples of each stage: the first prompt in full, then completions beside what became of them."""
    for preview in previews:
        console.print(f"\n{preview.key}: {preview.verdict()}", markup=False)
        for sentence in (*preview.notes, preview.expectation()):
            if sentence:
                console.print(f"  {sentence}", markup=False)
        if not preview.samples:
            continue
        console.print("\n--- its first prompt", markup=False)
        console.print(Text(visible(preview.samples[0].prompt)))
        table = Table(show_lines=True, expand=True)
        table.add_column("completion", ratio=1)
        table.add_column("verdict, instruction and response", ratio=1)
        for sample in preview.samples:
            table.add_row(Text(_short(sample.completion)), Text(_outcome(sample)))
        console.print(table)


def preview_page(previews: Sequence[StagePreview], title: str) -> str:
    """The same as HTML, with every text in full."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for preview in previews:
        parts += [f"<h2>{escape(preview.key)}</h2>", f"<p>{escape(preview.verdict())}</p>"]
        parts += [f'<p class="note">{escape(note)}</p>' for note in preview.notes]
        parts.append(f"<p>{escape(preview.expectation())}</p>")
        names = ("prompt", "completion", "verdict", "instruction", "response")
        parts.append(f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>")
        for one in preview.samples:
            verdict = f"{one.reason}\n{one.detail}" if one.reason else "accepted"
            texts = (one.prompt, one.completion, verdict, one.instruction, one.response)
            cells = "".join(f"<td><pre>{escape(visible(text))}</pre></td>" for text in texts)
            parts.append(f'<tr class="{"rejected" if one.reason else "accepted"}">{cells}</tr>')
        parts.append("</table>")
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def visible(text: str) -> str:
    """A text in which control characters, and others that steer what is shown, are spelled out."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def _short(text: str) -> str:
    shown = visible(text.strip())
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."


def _outcome(sample: PreviewedSample) -> str:
    verdict = f"rejected: {sample.reason} ({sample.detail})" if sample.reason else "accepted"
    texts = [("", verdict), ("instruction: ", sample.instruction), ("response: ", sample.response)]
    return "\n".join(f"{name}{_short(text)}" for name, text in texts if text)
