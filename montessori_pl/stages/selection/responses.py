"""What the stages share that choose among teachers: reading a pool and its scores, and work on many prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from montessori_pl.data.records import Example, Score, read_records
from montessori_pl.routing import Prompt, ResponsePool, Router
from montessori_pl.run_directory.durable import make_directory, replace
from montessori_pl.stages.base import EXAMPLES, ROUTING, SCORES, StageContext, StageError
from montessori_pl.synthesis.repetition import TeacherRepetition

CHUNK = 256
"""Prompts whose numbers are kept at a time: what a kill can cost."""


def read_pool(context: StageContext) -> ResponsePool:
    """The responses of the stage that `examples` names.

    Raises:
        StageError: a response has no recorded teacher, or there are fewer than two teachers.
    """
    directory = context.input_dir("examples")
    try:
        pool = ResponsePool.of(read_records(directory / EXAMPLES, Example))
    except ValueError as error:
        raise StageError(f"{context.key}: {error}") from error
    if len(pool.teachers) < 2:
        raise StageError(
            f"{context.key} chooses among teachers, and there are not two in {directory}: found "
            f"{', '.join(pool.teachers) or 'no response'}"
        )
    return pool


MAX_REPEATED_RATE = 0.8
"""Default of the setting `max_repeated_rate`."""


def leave_out_degenerate(pool: ResponsePool, max_repeated_rate: float | None) -> tuple[ResponsePool, dict[str, Any]]:
    """The pool without the teachers whose responses do not depend on the prompt.

    Args:
        pool: the responses.
        max_repeated_rate: the setting; of the teachers that stand out, those are left out whose `repeated_rate` is
            higher.

    Returns:
        the pool, and metrics: `repetition` of all teachers, `teachers_left_out`, and a sentence of `warnings` for each
        teacher that stands out, whether or not it is left out.
    """
    repetition = TeacherRepetition.of(answers[0] for answers in pool.answers.values())
    outliers = repetition.outliers()
    left_out = [
        name
        for name in outliers
        if max_repeated_rate is not None and repetition.teachers[name].repeated_rate > max_repeated_rate
    ]
    warnings = [
        f"{repetition.clause(name)}; "
        + (
            f"it is left out, because more than max_repeated_rate {max_repeated_rate:g} are repeated: set that to "
            "null to keep it"
            if name in left_out
            else "it is kept, and can be chosen"
        )
        for name in outliers
    ]
    metrics = {"repetition": repetition.metrics(), "teachers_left_out": left_out, "warnings": warnings}
    return pool.without(left_out), metrics


def read_pool_scores(context: StageContext, setting: str) -> list[Score]:
    """The scores of the stage that the setting names."""
    return read_records(context.input_dir(setting) / SCORES, Score)


def save_router(context: StageContext, router: Router) -> None:
    """Leave the router where `load_router` looks for it."""
    directory: Path = context.directory / ROUTING
    directory.mkdir(exist_ok=True)
    router.save(directory)


def in_chunks(
    context: StageContext, directory: Path, prompts: Sequence[Prompt], compute: Callable[[Sequence[Prompt]], Tensor]
) -> Tensor:
    """Numbers of all prompts, kept chunk by chunk so that a killed stage goes on at the next one.

    Args:
        context: the stage's.
        directory: where chunks are kept; the stage removes it when it has no more need of it.
        prompts: N prompts.
        compute: makes rows of some of the prompts.

    Returns:
        all rows, shape (N, ...).
    """
    make_directory(directory)
    context.progress.start(len(prompts))
    chunks = []
    for start in range(0, len(prompts), CHUNK):
        path, chunk = directory / f"{start:08d}.safetensors", prompts[start : start + CHUNK]
        if not path.exists():
            draft = path.with_suffix(".draft")
            save_file({"rows": compute(chunk).contiguous()}, draft)
            replace(draft, path)
        chunks.append(load_file(path)["rows"])
        context.progress.advance(len(chunk))
    return torch.cat(chunks)
