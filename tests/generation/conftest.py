"""An endpoint that misbehaves as it is told to, and engines that ask it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import KEY, Engine
from endpoint import FaultyEndpoint

from montessori_pl.generation import OpenAIBackend, openai_backend
from montessori_pl.models.loading import ModelSource


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment holds the key, and repetitions do not wait for long."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai_backend, "FIRST_WAIT", 0.01)


@pytest.fixture
def endpoint() -> Iterator[FaultyEndpoint]:
    with FaultyEndpoint() as running:
        yield running


@pytest.fixture
def engine(endpoint: FaultyEndpoint) -> Iterator[Engine]:
    """Make an engine that asks the endpoint and keeps answers in a directory, if one is given."""
    made: list[OpenAIBackend] = []

    def make(directory: Path | None = None, backbone: str = "a-model", **settings: Any) -> OpenAIBackend:
        made.append(OpenAIBackend(**{"base_url": endpoint.base_url, "timeout": 30, "max_retries": 3, **settings}))
        if directory is not None:
            made[-1].set_cache_dir(directory)
        made[-1].load(ModelSource(backbone))
        return made[-1]

    yield make
    for one in made:
        one.close()
