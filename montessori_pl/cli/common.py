"""What the commands share: a parser, mistakes in one sentence, and `--debug`, which shows their traceback.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import copy
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from montessori_pl.data.text import printable

DEBUG = "--debug"
"""The option that shows tracebacks. It may stand anywhere, also in front of the command."""


class PrintableFormatter(logging.Formatter):
    """Logs without control characters, for they may repeat what a model or a server has said."""

    def format(self, record: logging.LogRecord) -> str:
        """The line that is shown."""
        return printable(super().format(record))


class CommandError(ValueError):
    """Why a command cannot do what it is asked, in a sentence for the user."""


class CommandParser(argparse.ArgumentParser):
    """Raises its mistakes instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Say it in one sentence."""
        raise CommandError(f"{message}; `{self.prog} --help` lists what exists")


def expand_home(settings: Any) -> Any:
    """Settings, nested as they are, with the home directory in place of the `~` with which a path may begin.

    A shell does this only for a word that begins with it, so not in a recipe file nor in `--run=~/run`. Any text is
    taken for a path that begins with `~/` or `~USER/`, whatever its setting: those of plug-ins and loggers too.
    """
    if isinstance(settings, str):
        return os.path.expanduser(settings)  # leaves other text as it is
    if isinstance(settings, Path):
        return Path(expand_home(str(settings)))
    if isinstance(settings, list | tuple):
        return type(settings)(map(expand_home, settings))
    if isinstance(settings, dict):
        return {name: expand_home(value) for name, value in settings.items()}
    if isinstance(settings, argparse.Namespace):  # jsonargparse's are this kind, too
        found = copy.copy(settings)
        vars(found).update({name: expand_home(value) for name, value in vars(settings).items()})
        return found
    return settings


def path_argument(argument: str) -> Path:
    """A path on the command line, for `argparse`."""
    return Path(expand_home(argument))


def named_run(argument: str) -> tuple[str, Path]:
    """`NAME=DIR` -> both; a directory that has such a name itself stays one, without a name."""
    name, equals, directory = argument.partition("=")
    whole = path_argument(argument)
    return (name, path_argument(directory)) if equals and not whole.is_dir() else ("", whole)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """List `--debug` in the help of a command; who parses is not told of it, because it is no setting."""
    parser.add_argument(DEBUG, action=_Listed, help="Show the Python traceback of an error above its message.")


class _Listed(argparse.Action):
    """An option without a value that leaves no trace in what is parsed."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, *arguments: Any, **options: Any) -> None:
        """Do nothing."""


def show_on_any_terminal() -> None:
    """Let an output that knows ASCII alone show escapes, such as `\\xb1` for ±, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what stands in for one in a notebook may not have it
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def errors_end_in_a_sentence(debug: bool) -> Iterator[None]:
    """Mistakes of the user within the block end the program with one sentence and exit status 2.

    Notes of the error, such as where its traceback is kept, stand below the sentence.

    Args:
        debug: whether the traceback stands above it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        _end(str(error), error, debug)
    except SyntaxError as error:
        _end(f"{error.filename}, line {error.lineno}, is no Python: {error.msg}", error, debug)
    except RecursionError as error:
        _end("something is nested too deeply to be read: a recipe, an option or a file", error, debug)


def _end(sentence: str, error: BaseException, debug: bool) -> NoReturn:
    if debug:
        print(printable(_whole_traceback(error)), end="", file=sys.stderr)
    print(printable(f"error: {sentence}"), *map(printable, getattr(error, "__notes__", ())), sep="\n", file=sys.stderr)
    sys.exit(2)


def _whole_traceback(error: BaseException) -> str:
    """With the errors in place of which it was raised, also where `from None` hides them."""
    one: BaseException | None = error
    while one is not None:
        one.__suppress_context__ = False
        one = one.__cause__ or one.__context__
    return "".join(traceback.format_exception(error))
