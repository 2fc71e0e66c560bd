"""The section `trainer`: what is refused before anything runs, what is pinned, and loggers, all of which are used."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from recipe_files import Mistake, Recipe

from montessori_pl.cli.fit import main
from montessori_pl.cli.trainer_arguments import (
    _DEFAULTS,
    FREE,
    HARMLESS,
    PINNED,
    REFUSED,
    check_trainer_arguments,
    pinned_arguments,
)
from montessori_pl.config_errors import ConfigError
from montessori_pl.run_directory.tracking import log_distribution, log_numbers

OTHERS: dict[str, Any] = {
    "fast_dev_run": 1,
    "max_time": "00:01:00:00",
    "enable_checkpointing": False,
    "barebones": True,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "default_root_dir": "runs",
}
"""Values that are refused; of other arguments 3 is. What has no such value is left out."""
NEVER = ("inference_mode", "use_distributed_sampler")
"""Switches of which neither side contradicts what stages do."""
MONITOR = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
STOPPER = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss"}}
OBSERVER = {"class_path": "callbacks.InfluenceDuringTraining", "init_args": {"reference": "classroom/reference"}}


def test_every_argument_is_refused_or_pinned_or_free() -> None:
    """A new version of Lightning has to be read."""
    assert sorted([*REFUSED, *PINNED, *FREE]) == sorted(name for name in _DEFAULTS if name != "self")


def test_what_lightning_takes_unasked_is_neither_refused_nor_pinned() -> None:
    """`config.yaml` of a run says all of it."""
    defaults = {name: value for name, value in _DEFAULTS.items() if name != "self"}
    check_trainer_arguments(defaults)
    assert pinned_arguments(defaults) == {}
    for name, values in HARMLESS.items():
        for value in values:
            check_trainer_arguments({**defaults, name: value})


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in NEVER])
def test_what_stages_would_ignore_or_end_early_is_refused(name: str) -> None:
    value = OTHERS.get(name, 3)
    with pytest.raises(ConfigError) as caught:
        check_trainer_arguments({name: value})
    assert str(caught.value) == f"trainer.{name} cannot be {value!r} in a recipe: {REFUSED[name]}"


@pytest.mark.parametrize(
    ("name", "init_args"), [("GradientAccumulationScheduler", {"scheduling": {0: 2}}), ("Timer", {})]
)
def test_callbacks_that_do_the_same_are_refused(name: str, init_args: dict[str, Any]) -> None:
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": init_args}
    for callbacks in (callback, [MONITOR, callback]):
        with pytest.raises(ConfigError, match=rf"^trainer\.callbacks cannot hold a {name} in a recipe: "):
            check_trainer_arguments({"callbacks": callbacks})


@pytest.mark.filterwarnings("ignore:`precision=:UserWarning")  # as the program does
@pytest.mark.parametrize(
    ("arguments", "pinned"),
    [
        ({"precision": "bf16"}, {"precision": "bf16-mixed"}),
        ({"precision": 16}, {"precision": "16-mixed"}),
        ({"precision": 32}, {}),
        ({"precision": "32-true", "gradient_clip_algorithm": "norm"}, {}),
        ({"gradient_clip_algorithm": "value"}, {"gradient_clip_algorithm": "value"}),
        ({"devices": 4, "strategy": "ddp", "logger": MONITOR, "deterministic": True, "log_every_n_steps": 1}, {}),
        ({"callbacks": [MONITOR, OBSERVER]}, {}),
        ({"callbacks": STOPPER}, {"callbacks": [STOPPER]}),
        ({"callbacks": [MONITOR, STOPPER]}, {"callbacks": [STOPPER]}),
    ],
)
def test_what_changes_results_is_pinned(arguments: dict[str, Any], pinned: dict[str, Any]) -> None:
    assert pinned_arguments(arguments) == pinned


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("fsdp", "fsdp"),
        ("deepspeed_stage_3", "deepspeed_stage_3"),
        ({"class_path": "lightning.pytorch.strategies.FSDPStrategy"}, "FSDPStrategy"),
        ({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}, "ModelParallelStrategy"),
    ],
)
def test_strategies_that_leave_checkpoints_in_parts_are_refused(strategy: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer\.strategy cannot be '{name}' in a recipe: .* use fsdp2"):
        check_trainer_arguments({"strategy": strategy})


@pytest.mark.parametrize("strategy", ["fsdp2", {"class_path": "montessori_pl.processes.sharding.FSDP2Strategy"}])
def test_what_looks_at_whole_weights_is_refused_where_they_are_in_parts(strategy: Any) -> None:
    check_trainer_arguments({"strategy": strategy, "callbacks": [MONITOR]})
    check_trainer_arguments({"strategy": "ddp", "callbacks": [OBSERVER]})
    with pytest.raises(ConfigError, match=r"cannot hold a InfluenceDuringTraining with trainer\.strategy fsdp2"):
        check_trainer_arguments({"strategy": strategy, "callbacks": [MONITOR, OBSERVER]})


def test_a_cut_training_does_not_begin(mistake: Mistake, recipe: Recipe) -> None:
    """Nor does the run, whose other stages need no trainer."""
    said = mistake("--config", recipe(), "--trainer.fast_dev_run", "1")
    assert said.startswith("trainer.fast_dev_run cannot be 1 in a recipe: a stage that it ends early would count as")
    assert not Path("run").exists()
    said = mistake("--config", recipe(trainer__logger=True))
    assert said.startswith("trainer.logger is true, which does not say where to log; name loggers by class_path")


@pytest.fixture
def loggers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two loggers of a class beside the recipe that writes down what it gets."""
    Path("logging_of_mine.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\nclass Mine(CSVLogger):\n    '''Mine.'''\n"
    )
    monkeypatch.delitem(sys.modules, "logging_of_mine", raising=False)
    return [
        {"class_path": kind, "init_args": {"save_dir": name, "name": "", "version": ""}}
        for name, kind in (("one", "lightning.pytorch.loggers.CSVLogger"), ("two", "logging_of_mine.Mine"))
    ]


@pytest.mark.slow
def test_a_training_logs_everywhere_and_is_pinned(
    mistake: Mistake, recipe: Recipe, loggers: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """All loggers get the losses of the steps and the numbers of the stages. Then the section `trainer` changes."""
    training = {"lr": 1e-3, "batch_size": 4}
    stage = {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": training}}
    stages = {"recipe__trained": stage, "trainer__accelerator": "cpu"}
    main(["fit", "--config", recipe(**stages, trainer__logger=loggers, trainer__log_every_n_steps=1)])
    columns = [Path(name, "metrics.csv").read_text().splitlines()[0].split(",") for name in ("one", "two")]
    assert columns[0] == columns[1]
    assert set(columns[0]) >= {"iteration_1/trained/loss", "iteration_1/trained/steps"}

    capsys.readouterr()
    main(["fit", "--config", recipe(**stages, trainer__callbacks=[MONITOR], trainer__precision=32)])
    assert "All 2 stages had finished" in capsys.readouterr().out
    for changes, what in (
        ({"trainer__precision": "bf16-mixed"}, "trainer.precision: absent then, 'bf16-mixed' now"),
        ({"trainer__callbacks": [STOPPER]}, "trainer.callbacks[0].class_path: absent then, "),
    ):
        said = mistake("--config", recipe(**stages, **changes))
        assert said.startswith("stage iteration_1/trained of run has finished under other settings (")
        assert what in said
        assert "recorded" not in said, "who trains nothing does not depend on it"


class Board(TensorBoardLogger):
    """Keeps histograms and numbers, and needs no TensorBoard."""

    def __init__(self) -> None:
        self.histograms: list[tuple[str, list[float]]] = []
        self.numbers: list[dict[str, float]] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_histogram(self, name: str, values: Any) -> None:
        self.histograms.append((name, values.tolist()))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers.append(dict(metrics))

    def save(self) -> None:
        self.saved = len(self.numbers)


class Tracker(WandbLogger):
    """A logger of Weights & Biases that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log=self.logged.append)


def test_a_distribution_of_values_that_differ_by_rounding_alone() -> None:
    tracker = Tracker()
    log_distribution([tracker], "score", [2 / 3, 2 / 3 + 1e-16])
    assert tracker.logged[0]["score"].histogram == [2]


def test_numbers_and_distributions_go_to_all_loggers() -> None:
    boards: list[Logger] = [Board(), Board()]
    log_distribution(boards, "score", [1.0, 2.0])
    log_numbers(boards, "stage", {"a": 1, "inner": {"b": 2.0}, "text": "no number"})
    for board in boards:
        assert isinstance(board, Board)
        assert board.histograms == [("score", [1.0, 2.0])]
        assert board.numbers == [{"stage/a": 1, "stage/inner/b": 2.0}]
        assert board.saved == 1
