"""What the stages share that choose among teachers: reading a pool and its scores, and work on many prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from montessori_pl.data.records import Example, Score, read_records
from montessori_pl.routing import Prompt, ResponsePool, Router
from montessori_pl.stages.base import EXAMPLES, ROUTING, SCORES, StageContext, StageError

CHUNK = 256
"""Prompts whose numbers are kept at a time: what a kill can cost."""


def read_pool(context: StageContext) -> ResponsePool:
    """The responses of the stage that `examples` names.

    Raises:
        StageError: nobody says who wrote a response, or there are not two teachers.
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
    directory.mkdir(exist_ok=True)
    context.progress.start(len(prompts))
    chunks = []
    for start in range(0, len(prompts), CHUNK):
        path, chunk = directory / f"{start:08d}.safetensors", prompts[start : start + CHUNK]
        if not path.exists():
            draft = path.with_suffix(".draft")
            save_file({"rows": compute(chunk).contiguous()}, draft)
            draft.replace(path)
        chunks.append(load_file(path)["rows"])
        context.progress.advance(len(chunk))
    return torch.cat(chunks)
