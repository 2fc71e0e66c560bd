"""A preview on the console, and as one HTML page that needs nothing beside it.

What models write is shown as text: it is escaped in the page, and control characters do not reach the terminal.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from montessori_pl.estimates.preview import PreviewedSample, StagePreview
from montessori_pl.report.html import document, joined, tag

LONGEST = 400
"""Characters of a text on the console; the page has all of it."""

_STYLE = """
body { max-width: 110rem; } table { table-layout: fixed; }
.rejected { background: var(--bad-back); } .accepted { background: var(--good-back); }
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
    parts = [tag("h1", title)]
    for preview in previews:
        parts += [tag("h2", preview.key), tag("p", preview.verdict())]
        parts += [tag("p", note, class_="note") for note in preview.notes]
        parts.append(tag("p", preview.expectation()))
        names = ("prompt", "completion", "verdict", "instruction", "response")
        rows = [tag("tr", *(tag("th", name) for name in names))]
        for one in preview.samples:
            verdict = f"{one.reason}\n{one.detail}" if one.reason else "accepted"
            texts = (one.prompt, one.completion, verdict, one.instruction, one.response)
            cells = [tag("td", tag("pre", visible(text))) for text in texts]
            rows.append(tag("tr", *cells, class_="rejected" if one.reason else "accepted"))
        parts.append(tag("table", *rows))
    return document(title, _STYLE, joined(parts))


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
