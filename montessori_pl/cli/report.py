"""The command `report`: one HTML page on runs, made from their directories alone, and its figures as PNG and CSV.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from montessori_pl.cli.common import DEBUG, CommandParser, add_debug, errors_end_in_a_sentence, named_run, path_argument
from montessori_pl.cli.compare import check_student
from montessori_pl.cli.questions import read_questions
from montessori_pl.report.comparison import RunComparison, compare
from montessori_pl.report.groups import form_groups
from montessori_pl.report.page.page import RunPart, comparison_figures, run_figures, run_part, write_page
from montessori_pl.report.page.run_data import RunData, read_run_data
from montessori_pl.report.page.save_figures import check_can_draw, save_figures
from montessori_pl.report.runs import CompareError, read_run
from montessori_pl.run_directory.atomic import write_atomically

PROGRAM = "python -m montessori_pl report"
PAGE = "report.html"


def main(arguments: Sequence[str]) -> None:
    """The command. Mistakes of the user end in one sentence and exit status 2.

    Args:
        arguments: what stands behind `report`.
    """
    with errors_end_in_a_sentence(DEBUG in arguments):
        _report(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Write one HTML page on runs, finished or not: verdicts, figures, pairs, rejections, answers, "
        "cost. The page needs no network and no file beside it.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="A run directory. The run may still be going on. NAME=DIR puts the run into the group NAME.",
    )
    parser.add_argument(
        "--baseline", default="", metavar="NAME", help="With several runs: compare the other groups with NAME."
    )
    parser.add_argument(
        "--student",
        metavar="NAME",
        help="The student that is compared (default: the last one that was evaluated).",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help=f"The page (default: RUN/{PAGE} for one run, {PAGE} here for several).",
    )
    parser.add_argument(
        "--figures",
        type=path_argument,
        metavar="DIR",
        help="Write each figure as PNG and CSV into this directory, too; needs Matplotlib.",
    )
    add_debug(parser)
    return parser


def _report(options: argparse.Namespace) -> None:
    given = [named_run(argument) for argument in options.runs]
    output: Path = options.output or (given[0][1] / PAGE if len(given) == 1 else Path(PAGE))
    if options.output is not None and not output.absolute().parent.is_dir():
        raise CompareError(f"there is no directory {output.parent} to write {output.name} into; make it first")
    if options.figures is not None:
        check_can_draw()
    comparison = _comparison(given, options.baseline, options.student)
    names = _names(given)
    read = [
        _read(options, number, name, root) for number, (name, (_, root)) in enumerate(zip(names, given, strict=True))
    ]
    parts, runs = [part for part, _ in read], [run for _, run in read]
    page = write_page(parts, runs, comparison, options.student)
    try:
        write_atomically(output, page)
    except OSError as error:  # a run directory may be read-only
        raise CompareError(
            f"{output} cannot be written ({error.strerror}); choose another file with --output"
        ) from error
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB on {len(runs)} run{'s' * (len(runs) > 1)}")
    if options.figures is not None:
        save_figures(comparison_figures(runs, comparison), options.figures)
        print(f"{options.figures}: the figures as PNG and CSV")


def _read(options: argparse.Namespace, number: int, name: str, root: Path) -> tuple[RunPart, RunData]:
    """What the page says of one run, and what a comparison needs of it; its figures are written.

    Args:
        options: of the command.
        number: the run's place on the page.
        name: what the page calls it.
        root: its directory.
    """
    count = len(options.runs)
    run = read_run_data(root, name)
    if options.figures is not None:
        own = options.figures if count == 1 else options.figures / re.sub(r"[^\w.-]", "_", name)
        save_figures([one for some in run_figures(run).values() for one in some], own)
    return run_part(run, read_questions(run), number, count, options.student), run.without_records()


def _comparison(given: Sequence[tuple[str, Path]], baseline: str, student: str | None) -> RunComparison | None:
    """The comparison of several runs; none of one run, and none where no run has finished.

    The page is for runs that go on, too: a baseline that has not finished is left out.
    """
    if len(given) == 1:
        if baseline:
            raise CompareError("--baseline compares several runs, and one is given; name the others, too")
        if student is not None:
            check_student(student, [read_run(given[0][1], student)])
        return None
    runs = [(name, read_run(root, student)) for name, root in given]
    check_student(student, [run for _, run in runs])
    groups = form_groups(runs)
    unfinished = [group.name for group in groups if not group.finished]
    if len(unfinished) == len(groups):
        return None
    return compare(groups, "" if baseline in unfinished else baseline)


def _names(given: Sequence[tuple[str, Path]]) -> list[str]:
    """What the page calls each run: the name that is given to it alone, or else that of its directory.

    Directories of one name have as many parents with them as tell them apart.
    """
    paths = [Path(os.path.abspath(root)) for _, root in given]  # a link keeps its own name
    depth = 1
    while depth < max(len(path.parts) for path in paths) and len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    names = [name for name, _ in given]
    return [
        name if name and names.count(name) == 1 else "/".join(path.parts[-depth:])
        for name, path in zip(names, paths, strict=True)
    ]
