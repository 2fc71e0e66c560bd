"""The command `compare`: one table over run directories, made from the directories alone.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from montessori_pl.cli.common import DEBUG, CommandParser, add_debug, errors_end_in_a_sentence, named_run, path_argument
from montessori_pl.report.comparison import compare
from montessori_pl.report.formats import as_csv, as_markdown, as_text
from montessori_pl.report.groups import form_groups
from montessori_pl.report.runs import CompareError, Run, read_run
from montessori_pl.run_directory.atomic import write_atomically
from montessori_pl.run_directory.run_directory import listed

PROGRAM = "python -m montessori_pl compare"


def main(arguments: Sequence[str]) -> None:
    """The command. Mistakes of the user end in one sentence and exit status 2.

    Args:
        arguments: what stands behind `compare`.
    """
    with errors_end_in_a_sentence(DEBUG in arguments):
        _compare(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Compare runs in one table. Runs that differ only in their seed form a group. A group is a row.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="A run directory. NAME=DIR puts the run into the group NAME, whatever its settings are.",
    )
    parser.add_argument(
        "--baseline", default="", metavar="NAME", help="Show how far the other groups are from the group NAME."
    )
    parser.add_argument(
        "--student",
        metavar="NAME",
        help="The student whose numbers are shown (default: the last one that was evaluated).",
    )
    parser.add_argument(
        "--format", choices=("text", "csv", "markdown"), default="text", help="The format of the table (default: text)."
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="FILE", help="Write the table to this file instead of printing it."
    )
    add_debug(parser)
    return parser


def _compare(options: argparse.Namespace) -> None:
    output: Path | None = options.output
    if output is not None and not output.absolute().parent.is_dir():
        raise CompareError(f"there is no directory {output.parent} to write {output.name} into; make it first")
    runs = [(name, read_run(root, options.student)) for name, root in map(named_run, options.runs)]
    check_student(options.student, [run for _, run in runs])
    comparison = compare(form_groups(runs), options.baseline)
    if options.format == "csv":
        text = as_csv(comparison)
    elif options.format == "markdown":
        text = as_markdown(comparison)
    else:
        text = as_text(comparison, Console().width)
    if output is not None:
        write_atomically(output, text)
    else:
        sys.stdout.write(text)


def check_student(student: str | None, runs: Sequence[Run]) -> None:
    """Refuse a student that no run has evaluated, where some have evaluated any.

    Raises:
        CompareError: there is none of this name; the sentence lists those that there are.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.students))
    if student is not None and known and student not in known:
        raise CompareError(f"--student names {student!r}, which no run has evaluated; there are: {listed(known)}")
