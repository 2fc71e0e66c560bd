"""TrainStudent: all weights under a section that names an adapter, and nothing to learn."""

from collections.abc import Callable
from pathlib import Path

import pytest
from stage_runs import quiet_trainer, write

from montessori_pl.data.records import Example
from montessori_pl.models.loading import ModelSource, load_model
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import StageContext, StageError, TrainStudent

# Lightning's advice on loaders, which the command line silences too.
pytestmark = pytest.mark.filterwarnings("ignore:.*custom batch sampler", "ignore:.*does not have many workers")


@pytest.fixture
def trained(tmp_path: Path, context: Callable[..., StageContext]) -> Path:
    """A student whose model itself was trained."""
    examples = [Example(id=str(n), instruction=f"why {n}?", response="it is so") for n in range(4)]
    directory = write(tmp_path / "data" / "examples.jsonl", examples)
    stage = TrainStudent("data", TrainingSettings(lr=1e-2, batch_size=2), all_weights=True)
    here = context(inputs={"examples": directory}, trainer=quiet_trainer)
    metrics = stage.run(here)
    assert metrics["steps"] == 2
    # Of the tiny model's letters: what is learned is "it is so" and its end, in each of four examples alike.
    assert metrics["length_quantiles"]["responses"] == [9.0] * 21
    assert len(set(metrics["length_quantiles"]["prompts"])) == 1
    return here.directory


def test_the_model_itself_is_saved(trained: Path, backbone: str) -> None:
    assert not (trained / "weights" / "adapter_config.json").exists()
    before = load_model(ModelSource(backbone)).state_dict()
    after = load_model(ModelSource(backbone, trained / "weights")).state_dict()
    assert before.keys() == after.keys()
    assert sum(not before[name].equal(after[name]) for name in before) > len(before) // 2


def test_examples_that_are_too_long(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    examples = [Example(id=str(n), instruction="a" * 30, response="b") for n in range(3)]
    directory = write(tmp_path / "data" / "examples.jsonl", examples)
    with pytest.raises(StageError) as error:
        TrainStudent("data", TrainingSettings(lr=1e-3, max_length=20)).run(context(inputs={"examples": directory}))
    assert str(error.value) == (
        f"iteration_1/it has nothing to learn: of 3 examples in {directory}, none has a response within "
        "max_length 20 tokens"
    )


def test_instructions_that_nobody_has_answered(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    """A student that learned them would learn to say nothing."""
    examples = [Example(id=str(n), instruction="ab", response="c" * n) for n in range(3)]
    directory = write(tmp_path / "data" / "examples.jsonl", examples)
    with pytest.raises(
        StageError, match="1 of 3 examples have no response; let a stage `GenerateResponses` answer them first"
    ):
        TrainStudent("data", TrainingSettings(lr=1e-3)).run(context(inputs={"examples": directory}))
