"""The command `export`: what one stage of a run has written, ready for others: data, or a student, with a card.

Imports models, which takes seconds, for a student alone.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from montessori_pl.cli.common import DEBUG, CommandParser, add_debug, errors_end_in_a_sentence, path_argument
from montessori_pl.export.card import write_card
from montessori_pl.export.formats import WRITERS
from montessori_pl.export.hub import RepositoryKind, check_repository, push
from montessori_pl.export.source import STUDENT, ExportError, Source, choose_stage, read_source
from montessori_pl.run_directory.atomic import directory_written_atomically
from montessori_pl.run_directory.run_directory import RunDirectory, open_run

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
        description="Export the data of a finished stage for TRL, LLaMA-Factory, axolotl or `datasets`, or the student "
        "that it has trained for Transformers, PEFT or vLLM, with a card.",
    )
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="A run directory. The run may still be going on."
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="The stage (default: the last finished stage that holds what the format takes).",
    )
    parser.add_argument(
        "--iteration", type=int, metavar="N", help="The iteration of the stage (default: the last one)."
    )
    parser.add_argument(
        "--format",
        choices=(*WRITERS, STUDENT),
        default="messages",
        help="alpaca and messages: examples for training. dpo: preference pairs. hf: examples with their origin and "
        "their scores, as a saved DatasetDict. student: weights with tokenizer and chat template (default: messages).",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="With --format student: add an adapter to its base, and write a whole model.",
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
        help="Upload the files to the Hugging Face hub, too, as a data set or a model of this name: `name` or "
        "`organization/name`. It is made if it is not there, private unless you say --public.",
    )
    parser.add_argument(
        "--public", action="store_true", help="With --push_to_hub: what is made can be seen by everybody."
    )
    add_debug(parser)
    return parser


def _export(options: argparse.Namespace) -> None:
    run_directory = open_run(options.run)
    kind = STUDENT if options.format == STUDENT else WRITERS[options.format][0]
    key = choose_stage(run_directory, kind, options.stage, options.iteration)
    iteration, _, name = key.partition("/")
    output: Path = options.output or options.run / "export" / iteration / f"{name}-{options.format}"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} exists and is not empty; remove it, or choose another directory with --output")
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    elif options.public:
        raise ExportError("--public says how something is pushed; give it together with --push_to_hub")
    if options.merge and kind != STUDENT:
        raise ExportError("--merge makes a whole model of an adapter; give it together with --format student")
    command = [*PROGRAM.split(), str(options.run), "--stage", name, "--iteration", iteration.removeprefix("iteration_")]
    command += ["--format", options.format, *(["--merge"] if options.merge else [])]
    command += ["--license", options.license] if options.license is not None else []
    what, write = (_student if kind == STUDENT else _data)(run_directory, key, options, shlex.join(command))
    try:
        with directory_written_atomically(output.absolute()) as draft:
            write(draft)
    except OSError as error:  # a run directory may be read-only
        raise ExportError(
            f"{output} cannot be written ({error.strerror}); choose another directory with --output"
        ) from error
    print(f"{key}: {what} in {output}")
    if options.push_to_hub is not None:
        on_hub: RepositoryKind = "model" if kind == STUDENT else "dataset"
        print(f"pushed to {push(output, options.push_to_hub, on_hub, private=not options.public)}")


Writer = Callable[[Path], None]
"""Writes into an empty directory."""


def _data(run_directory: RunDirectory, key: str, options: argparse.Namespace, command: str) -> tuple[str, Writer]:
    """Read examples or pairs; returns what they are, and what writes them."""
    kind, write_rows = WRITERS[options.format]
    source = read_source(run_directory, key, kind)

    def write(directory: Path) -> None:
        write_rows(source, directory)
        write_card(source, directory, options.format, options.license, command)

    return f"{source.count} {kind}{_left_out(source)} as {options.format}", write


def _student(run_directory: RunDirectory, key: str, options: argparse.Namespace, command: str) -> tuple[str, Writer]:
    """Look at a student; returns what it is, and what writes it."""
    from transformers.utils.logging import disable_progress_bar

    from montessori_pl.export.student import read_student, write_model_card, write_student

    disable_progress_bar()
    student = read_student(run_directory, key, options.merge)

    def write(directory: Path) -> None:
        write_student(student, directory)
        write_model_card(student, directory, options.license, command)

    return f"{'an adapter' if student.stays_adapter else 'a model'} and its tokenizer", write


def _left_out(source: Source) -> str:
    if source.unanswered:
        return f" ({source.unanswered} left out: an instruction has no response)"
    return f" ({source.cut} left out: a completion was cut at its token limit)" if source.cut else ""
