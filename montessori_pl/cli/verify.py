"""The command `verify`: whether all that a run has written is still there, as it was written.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import sys
from collections.abc import Sequence

from montessori_pl.cli.common import DEBUG, CommandParser, add_debug, errors_end_in_a_sentence, path_argument
from montessori_pl.run_directory.run_directory import open_run
from montessori_pl.run_directory.verification import verify_stages

PROGRAM = "python -m montessori_pl verify"


def main(arguments: Sequence[str]) -> None:
    """The command. Ends with exit status 1 if something is damaged, and with 2 and a sentence if there is no run.

    Args:
        arguments: what stands behind `verify`.
    """
    with errors_end_in_a_sentence(DEBUG in arguments):
        damaged = _verify(_parser().parse_args(arguments))
    if damaged:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Read everything that a run has written, and compare it with the manifest and the journals. "
        "Nothing is written. The exit status is 1 if a file is missing or changed.",
    )
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="A run directory. The run may still be going on."
    )
    add_debug(parser)
    return parser


def _verify(options: argparse.Namespace) -> int:
    """Print a line for each stage; returns how many are damaged."""
    damaged = count = 0
    for report in verify_stages(open_run(options.run)):
        print(f"{report.key}: {'DAMAGED: ' if report.damaged else ''}{report.found}", flush=True)
        count += 1
        damaged += report.damaged
    if damaged:
        print(
            f"{damaged} of {count} stages are damaged; restore their files, or delete the directory of a stage and run "
            "`fit` to do it again"
        )
    else:
        print(f"all that {options.run} vouches for is there")
    return damaged
