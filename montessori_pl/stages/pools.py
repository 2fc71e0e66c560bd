"""What the stages share that choose among teachers: a pool of responses, the scores of each, and the router's place."""

from pathlib import Path

from montessori_pl.records import Example, Score, read_records
from montessori_pl.routing import ResponsePool, Router
from montessori_pl.stages.base import ROUTING, StageContext, StageError


def read_pool(context: StageContext) -> ResponsePool:
    """The responses of the stage that `examples` names.

    Raises:
        StageError: nobody says who wrote a response, or there are not two teachers.
    """
    directory = context.inputs["examples"]
    assert directory is not None
    try:
        pool = ResponsePool.of(read_records(directory / "examples.jsonl", Example))
    except ValueError as error:
        raise StageError(f"{context.key}: {error}") from error
    if len(pool.teachers) < 2:
        raise StageError(
            f"{context.key} chooses among teachers, and there are not two in {directory}: found "
            f"{', '.join(pool.teachers) or 'no response'}"
        )
    return pool


def read_scores(context: StageContext, setting: str) -> list[Score]:
    """The scores of the stage that the setting names."""
    directory = context.inputs[setting]
    assert directory is not None
    return read_records(directory / "scores.jsonl", Score)


def save_router(context: StageContext, router: Router) -> None:
    """Leave the router where `load_router` looks for it."""
    directory: Path = context.directory / ROUTING
    directory.mkdir(exist_ok=True)
    router.save(directory)
