"""The command `export`: what one stage of a run has written, ready for other trainers, with a data card.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from montessori_pl.cli.common import DEBUG, CommandParser, add_debug, errors_end_in_a_sentence, path_argument
from montessori_pl.export.card import write_card
from montessori_pl.export.formats import WRITERS
from montessori_pl.export.hub import check_repository, push
from montessori_pl.export.source import ExportError, Source, choose_stage, read_source
from montessori_pl.run_directory.atomic import directory_written_atomically
from montessori_pl.run_directory.run_directory import open_run

PROGRAM = "python -m montessori_pl export"


def main(arguments: Sequence[str]) -> None:
    """The command. Mistakes of the user end in one sentence and exit status 2.

    Args:
        arguments: what stands behind `export`.
    """
    with errors_end_in_a_sentence(DEBUG in arguments):
        _export(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Export the data of a finished stage for TRL, LLaMA-Factory, axolotl or `datasets`, with a data "
        "card.",
    )
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="A run directory. The run may still be going on."
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="The stage (default: the last finished stage whose data fits the format).",
    )
    parser.add_argument(
        "--iteration", type=int, metavar="N", help="The iteration of the stage (default: the last one)."
    )
    parser.add_argument(
        "--format",
        choices=tuple(WRITERS),
        default="messages",
        help="alpaca and messages: examples for training. dpo: preference pairs. hf: examples with their origin and "
        "their scores, as a saved DatasetDict (default: messages).",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="DIR",
        help="A new directory to write to (default: RUN/export/iteration_N/STAGE-FORMAT).",
    )
    parser.add_argument(
        "--license", metavar="TEXT", help="The license for the card, as the hub spells it, for example apache-2.0."
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="REPOSITORY",
        help="Upload the files to the Hugging Face hub, too, as a data set of this name: `name` or "
        "`organization/name`. It is made if it is not there, private unless you say --public.",
    )
    parser.add_argument(
        "--public", action="store_true", help="With --push_to_hub: a data set that is made can be seen by everybody."
    )
    add_debug(parser)
    return parser


def _export(options: argparse.Namespace) -> None:
    run_directory = open_run(options.run)
    kind, write = WRITERS[options.format]
    key = choose_stage(run_directory, kind, options.stage, options.iteration)
    iteration, _, name = key.partition("/")
    output: Path = options.output or options.run / "export" / iteration / f"{name}-{options.format}"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} exists and is not empty; remove it, or choose another directory with --output")
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    elif options.public:
        raise ExportError("--public says how a data set is pushed; give it together with --push_to_hub")
    source = read_source(run_directory, key, kind)
    command = [*PROGRAM.split(), str(options.run), "--stage", name, "--iteration", iteration.removeprefix("iteration_")]
    command += ["--format", options.format, *(["--license", options.license] if options.license is not None else [])]
    try:
        with directory_written_atomically(output.absolute()) as draft:
            write(source, draft)
            write_card(source, draft, options.format, options.license, shlex.join(command))
    except OSError as error:  # a run directory may be read-only
        raise ExportError(
            f"{output} cannot be written ({error.strerror}); choose another directory with --output"
        ) from error
    print(f"{key}: {source.count} {kind}{_left_out(source)} as {options.format} in {output}")
    if options.push_to_hub is not None:
        print(f"pushed to {push(output, options.push_to_hub, private=not options.public)}")


def _left_out(source: Source) -> str:
    return f" ({source.cut} left out: a completion was cut at its token limit)" if source.cut else ""
