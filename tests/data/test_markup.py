"""Texts of others in Markdown, CSV and on a console are read as they are."""

import io
import logging
import sys

import pytest
from rich.table import Table

from montessori_pl.cli.common import PrintableFormatter, errors_end_in_a_sentence, show_on_any_terminal
from montessori_pl.data.markup import code_span, csv_cell, in_cell, in_markdown
from montessori_pl.data.text import printable, writable
from montessori_pl.export.markdown import code, table
from montessori_pl.run_directory.console import PlainConsole

HOSTILE = "\x1b]0;title\x07\x1b[31mred\r\u202e[link=http://x]\ud800"
SHOWN = r"\x1b]0;title\x07\x1b[31mred\r\u202e[link=http://x]\ud800"


def test_markdown() -> None:
    assert in_markdown("run_3, seed 1: 5 > 4") == "run_3, seed 1: 5 > 4"
    assert in_markdown("<img src=x onerror=f()> &amp; [a](b) `c` **d** \\e") == (
        "&lt;img src=x onerror=f()> &amp;amp; \\[a\\](b) \\`c\\` \\*\\*d\\*\\* \\\\e"
    )
    assert in_markdown("a\n\n# b\x1b") == "a # b\\\\x1b"
    assert in_cell(in_markdown("a|b")) == "a\\|b"


@pytest.mark.parametrize(
    ("text", "span"), [("a", "`a`"), ("a`b``c", "```a`b``c```"), ("`", "`` ` ``"), ("<b>\n", "`<b>`"), ("", "``")]
)
def test_code(text: str, span: str) -> None:
    assert code_span(text) == span


def test_blocks() -> None:
    assert code("a: |\n  ```\n  <script>\n", "yaml") == "````yaml\na: |\n  ```\n  <script>\n````"
    assert table(("x",), [(code_span("a|b"),)]) == "| x |\n| --- |\n| `a\\|b` |"


@pytest.mark.parametrize("start", list("=+-@\t\uff1d"))
def test_no_cell_is_a_formula(start: str) -> None:
    assert csv_cell(f"{start}1+1") == f"'{start}1+1"
    assert csv_cell(f"a{start}1") == f"a{start}1"


def test_control_characters_are_shown() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\tb\nc é 日本 😀 \u200d") == "a\tb\nc é 日本 😀 \u200d"
    assert writable("a\ud83d\ude00\ud83d") == "a\U0001f600\ufffd"


def test_console_shows_texts_as_they_are() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=100, force_terminal=True, color_system=None)
    rows = Table(title=HOSTILE)
    rows.add_column(HOSTILE)
    rows.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(rows)
    assert file.getvalue().count(SHOWN) == 4
    assert not set("\x1b\x07\r\u202e\ud800") & set(file.getvalue())


def test_errors_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (HOSTILE,), None)
    assert PrintableFormatter("%(message)s").format(record) == SHOWN

    def fail(debug: bool) -> None:
        with errors_end_in_a_sentence(debug):
            error = ValueError(HOSTILE)
            error.add_note(HOSTILE)
            raise error

    for debug in (False, True):
        with pytest.raises(SystemExit, match="2"):
            fail(debug)
        said = capsys.readouterr().err
        assert said.endswith(f"error: {SHOWN}\n{SHOWN}\n")
        assert "\x1b" not in said


def test_what_is_nested_too_deeply_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def descend() -> None:
        descend()

    with pytest.raises(SystemExit, match="2"), errors_end_in_a_sentence(False):
        descend()
    assert capsys.readouterr().err.startswith("error: something is nested too deeply to be read")


def test_a_terminal_that_knows_ascii_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream refuses other characters until it is told to escape them; tables have lines of ASCII."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    with pytest.raises(UnicodeEncodeError):
        print("±", file=stream)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        show_on_any_terminal()
        rows = Table("accuracy ± é")
        PlainConsole(width=60).print(rows)
        stream.flush()
    assert b"accuracy \\xb1 \\xe9" in written.getvalue()
    assert b"\\u25" not in written.getvalue(), "a box of lines"
