"""What the tests of stages share: a tiny model, and a context for a stage called `it`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage_runs import stage_context
from tiny_models import save_tiny_model

from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.stages import StageContext


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def context(tmp_path: Path, backbone: str) -> Callable[..., StageContext]:
    """A context for a stage called `it`, with inputs and whatever else a test replaces."""

    def make(directory: Path = tmp_path / "iteration_1" / "it", **changes: Any) -> StageContext:
        settings: dict[str, Any] = {
            "student": lambda: StudentModule(backbone, lora=LoraSettings(r=2, alpha=4)),
            "teacher": lambda: TeacherDPOModule(backbone),
        }
        return stage_context(directory, **{**settings, **changes})

    return make
