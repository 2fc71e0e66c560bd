"""The command `init`: looks at models, files and machine, and writes a commented recipe that fits them by its plan."""

import argparse
import dataclasses
import importlib.util
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from montessori_pl.batches.sources import DataSources
from montessori_pl.cli.common import (
    DEBUG,
    CommandError,
    CommandParser,
    add_debug,
    errors_end_in_a_sentence,
    path_argument,
)
from montessori_pl.cli.fit import planned, quiet
from montessori_pl.data.text import printable
from montessori_pl.drafts.choices import SMALLEST, Draft, Endpoint
from montessori_pl.drafts.models import LookedAt, look_at
from montessori_pl.drafts.recipe_text import recipe_text
from montessori_pl.drafts.texts import look_at_texts
from montessori_pl.estimates.devices import devices_named, this_machine
from montessori_pl.estimates.seconds import duration
from montessori_pl.pipeline.resources import RunPlan
from montessori_pl.pipeline.resources_table import does_not_fit, sentences
from montessori_pl.run_directory.atomic import write_atomically
from montessori_pl.synthesis.answer_formats import ANSWER_FORMS

PROGRAM = "python -m montessori_pl init"
SHARE = 0.8
"""Of the hours that are asked for a plan may take so much: it is no measurement."""
MAX_PLANS = 4
"""A plan takes seconds; counts are right after two or three."""

Planner = Callable[[Draft], RunPlan]


def main(arguments: Sequence[str]) -> None:
    """The command. Mistakes of the user end in one sentence and exit status 2.

    Args:
        arguments: what stands behind `init`.
    """
    quiet()
    with errors_end_in_a_sentence(DEBUG in arguments):
        _init(_parser().parse_args(arguments), shlex.join(["python", "-m", "montessori_pl", "init", *arguments]))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Write a commented recipe for your models and files that fits a machine and a time by its plan. "
        "Nothing is run.",
    )
    parser.add_argument("--student", required=True, metavar="MODEL", help="Hub id, directory or GGUF file.")
    parser.add_argument(
        "--teacher", required=True, metavar="MODEL", help="The same; or, with --base_url, what an endpoint calls it."
    )
    parser.add_argument(
        "--seed_tasks", required=True, metavar="FILE", help="Instructions that the teacher sees as examples."
    )
    parser.add_argument(
        "--reference", required=True, metavar="FILE", help="What the student should become good at; [a:b] takes rows."
    )
    parser.add_argument(
        "--test",
        metavar="FILE",
        help="Held out for evaluation (default: a part of a reference file of 64 rows or more).",
    )
    parser.add_argument("--base_url", metavar="URL", help="The teacher answers at this OpenAI-compatible endpoint.")
    parser.add_argument(
        "--api_key_env",
        metavar="NAME",
        help="Environment variable of its key (default: OPENAI_API_KEY, none if local).",
    )
    parser.add_argument(
        "--price", type=float, nargs=2, metavar=("IN", "OUT"), help="US dollars for a million tokens of the endpoint."
    )
    parser.add_argument(
        "--gpus", metavar="GPUS", help="The run will have these, such as 8xH100 or 1x24 (default: this machine)."
    )
    parser.add_argument(
        "--answer_format", choices=ANSWER_FORMS, help="How the teacher says its instruction (default: by its size)."
    )
    parser.add_argument(
        "--prompt", metavar="NAME", help="The request: a shipped one, or a text file (default: by the answer format)."
    )
    parser.add_argument("--hours", type=float, default=6.0, help="Hours that the run may take (default: 6).")
    parser.add_argument(
        "--output", type=path_argument, default=Path("recipe.yaml"), metavar="FILE", help="(default: recipe.yaml)"
    )
    add_debug(parser)
    return parser


def _init(options: argparse.Namespace, command: str) -> None:
    output: Path = options.output
    _check(options, output)
    device = devices_named(options.gpus) if options.gpus is not None else this_machine()
    elsewhere = options.gpus is not None
    draft = Draft(
        student=_look_at("--student", options.student),
        teacher=_endpoint(options) if options.base_url is not None else _look_at("--teacher", options.teacher),
        texts=look_at_texts(options.seed_tasks, options.reference, options.test),
        device=device,
        vllm=options.base_url is None
        and not device.is_cpu
        and (elsewhere or importlib.util.find_spec("vllm") is not None),
        run=f"checkpoints/{output.stem}",
        asked_format=options.answer_format,
        prompt=options.prompt,
    )

    def text(draft: Draft, about: list[str]) -> str:
        return recipe_text(draft, str(output), " ".join(printable(command).split()), about, options.gpus)

    def plan(draft: Draft) -> RunPlan:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "recipe.yaml"
            path.write_text(text(draft, []), encoding="utf-8")
            gpus = ["--gpus", options.gpus] if elsewhere else []
            return planned(["fit", "--config", str(path), "--dry_run", *gpus])

    draft, found = fit_to(draft, options.hours, plan)
    write_atomically(output, text(draft, _about(draft, found, options.hours)))
    data = DataSources(options.seed_tasks, options.reference, options.test)
    for note in (note for one in data.account().values() for note in one["notes"]):
        print(note)
    print(f"{output} is written: {_counts(draft)}, {duration(found.seconds)} by its plan.")
    for sentence in sentences(found):
        print(sentence)
    print(f"Next: python -m montessori_pl fit --config {shlex.quote(str(output))} --preview 8")


def fit_to(draft: Draft, hours: float, plan: Planner) -> tuple[Draft, RunPlan]:
    """Counts, and whether an adapter is trained, so that a draft has room and ends in time.

    Args:
        draft: with any counts.
        hours: that a run may take.
        plan: the dry run of a draft.

    Raises:
        CommandError: the least that makes sense takes longer, or does not fit.
    """
    budget = SHARE * hours * 3600
    for _ in range(MAX_PLANS):
        found = plan(draft)
        if found.too_large() and draft.all_weights:
            draft = dataclasses.replace(draft, adapter_only=True)
            continue
        for key, one in found.too_large().items():
            raise CommandError(does_not_fit(key, one, found.device))
        fixed = sum(one.compute.seconds for key, one in found.resources.items() if _is_fixed(key, draft))
        wanted = draft.scale * max(0.0, budget - fixed) / max(1e-9, found.seconds - fixed)
        if found.seconds <= budget and (draft.scale >= 1 or wanted < 1.15 * draft.scale):
            return draft, found
        if found.seconds > budget and draft.at_least:
            raise CommandError(
                f"the smallest run that teaches anything ({', '.join(map(str, SMALLEST))} examples, prompts and "
                f"examples) takes {duration(found.seconds)} on {found.device.title}, and --hours {hours:g} leaves "
                f"{duration(budget)} to a plan; give more hours, --gpus, or a smaller model"
            )
        draft = draft.smaller(min(1.0, max(SMALLEST[2] / 10_000, 0.95 * wanted)))
    return draft, plan(draft)


def _is_fixed(key: str, draft: Draft) -> bool:
    """Whether what a stage takes hardly depends on the counts."""
    return key.endswith("/evaluation") or (key.endswith("/influence") and draft.scale < 0.1)


def _check(options: argparse.Namespace, output: Path) -> None:
    if output.exists():
        raise CommandError(f"{output} exists; remove it, or choose another file with --output")
    if not output.absolute().parent.is_dir():
        raise CommandError(f"there is no directory {output.parent} to write {output.name} into; make it first")
    if not 0 < options.hours <= 10_000:
        raise CommandError(f"--hours must be more than 0 and at most 10000, found {options.hours:g}")
    if options.base_url is None and (options.price is not None or options.api_key_env is not None):
        raise CommandError("--price and --api_key_env are of a teacher behind an endpoint; give its --base_url, too")
    if options.price is not None and not all(0 <= one < 1e6 for one in options.price):
        raise CommandError(f"--price must be two numbers of US dollars, found {options.price}")


def _look_at(option: str, backbone: str) -> LookedAt:
    try:
        return look_at(backbone)
    except ValueError as error:
        hint = "; for a model behind an endpoint give --base_url, too" if option == "--teacher" else ""
        raise CommandError(f"{option}: {error}{hint}") from error


def _endpoint(options: argparse.Namespace) -> Endpoint:
    host = urlsplit(options.base_url).hostname or ""
    local = host in ("localhost", "127.0.0.1", "::1")
    key = options.api_key_env or (None if local else "OPENAI_API_KEY")
    return Endpoint(options.teacher, options.base_url, key, tuple(options.price) if options.price else None)


def _about(draft: Draft, found: RunPlan, hours: float) -> list[str]:
    return [
        f"It is planned for {draft.device.title}:",
        f"{duration(found.seconds)} of the {hours:g} hours that were asked for; {SHARE:.0%} of them may be planned.",
        "Learning rates are starting points by the size of the models; they were not tried on your data.",
    ]


def _counts(draft: Draft) -> str:
    warmup, prompts, training = draft.counts
    return f"{warmup} examples to warm up on, {prompts} prompts to probe, {training} examples to train on"
