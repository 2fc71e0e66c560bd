"""The arguments of the section `trainer`: which a run refuses, which are settings of its results, and which are free.

Stages build their trainers themselves. An argument that they set would be ignored, and one that ends a training early
would leave a model of a few steps that counts as finished. Both are refused with a sentence.
"""

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from lightning.fabric.connector import _convert_precision_to_unified_args as unified_precision
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)

from montessori_pl.config_errors import ConfigError
from montessori_pl.processes.sharding import FSDP2, strategy_name

_TRAINING = "each training stage sets its own: use its setting training.{}"
_SHORT = (
    "a stage that it ends early would count as finished; for a small run, take fewer examples (num_examples, or rows "
    "such as FILE[:16]) and another directory with --run, and for an estimate --dry_run"
)
_VALIDATION = "no stage validates while it trains; a stage Evaluate measures students"
REFUSED = {
    "max_epochs": _TRAINING.format("epochs"),
    "accumulate_grad_batches": _TRAINING.format("accumulate_grad_batches"),
    "gradient_clip_val": _TRAINING.format("gradient_clip_val"),
    "min_epochs": _TRAINING.format("epochs"),
    "min_steps": _TRAINING.format("epochs"),
    "fast_dev_run": _SHORT,
    "max_steps": _SHORT,
    "max_time": _SHORT,
    "limit_train_batches": _SHORT,
    "limit_predict_batches": _SHORT,
    "overfit_batches": _SHORT,
    "limit_val_batches": _VALIDATION,
    "limit_test_batches": _VALIDATION,
    "val_check_interval": _VALIDATION,
    "check_val_every_n_epoch": _VALIDATION,
    "num_sanity_val_steps": _VALIDATION,
    "barebones": "stages need what it switches off: checkpoints, metrics and callbacks",
    "enable_checkpointing": "a training that was stopped goes on from its checkpoint, which every training writes",
    "enable_progress_bar": "the console shows the progress of the stages in its place",
    "enable_model_summary": "the console shows the progress of the stages in its place",
    "reload_dataloaders_every_n_epochs": "a training takes all its batches from one loader, to go on where it stopped",
    "default_root_dir": "stages write into the directory of the run: use --run",
    "inference_mode": "stages set it as their signals need it",
    "use_distributed_sampler": "stages deal out the examples to the processes themselves",
}
"""Arguments that the section must leave as they are, and why."""
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "enable_checkpointing": (True,),
    "enable_progress_bar": (False,),
    "enable_model_summary": (False,),
    "inference_mode": (False,),
    "use_distributed_sampler": (False,),
}
"""Values of refused arguments, apart from their defaults, that ask for what stages do anyway."""
PINNED = ("precision", "gradient_clip_algorithm", "plugins", "callbacks")
"""Arguments that the results depend on: settings of each stage that trains or predicts."""
FREE = (
    *("accelerator", "strategy", "devices", "num_nodes", "sync_batchnorm"),
    *("logger", "log_every_n_steps", "enable_autolog_hparams", "model_registry", "profiler"),
    *("deterministic", "benchmark", "detect_anomaly"),
)
"""Arguments that say where, how fast or how visibly stages work, and change the last digits at most. How many processes
there are changes what a training makes, and a training that has begun keeps their number (`TrainingData`)."""
REFUSED_CALLBACKS: Mapping[type, str] = {
    GradientAccumulationScheduler: REFUSED["accumulate_grad_batches"],
    Timer: REFUSED["max_time"],
}
"""Callbacks that do what a refused argument does."""
OTHER_SHARDING = ("fsdp", "deepspeed", "model_parallel", "modelparallel")
"""What the names of Lightning's strategies begin with that split weights over devices."""
OBSERVERS = (Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar, ThroughputMonitor)
"""Lightning's callbacks that change no result. One of your own says so by `only_observes = True`."""

_DEFAULTS = {name: parameter.default for name, parameter in signature(Trainer.__init__).parameters.items()}


def check_trainer_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what stages would ignore, and what would end them early.

    Args:
        arguments: the section `trainer`.

    Raises:
        ConfigError: one of them is not as it must be.
    """
    for name, why in REFUSED.items():
        if name in arguments and arguments[name] not in (_DEFAULTS[name], *HARMLESS.get(name, ())):
            raise ConfigError(f"trainer.{name} cannot be {arguments[name]!r} in a recipe: {why}")
    for callback in as_list(arguments.get("callbacks")):
        for kind, why in REFUSED_CALLBACKS.items():
            if issubclass(_class_of(callback), kind):
                raise ConfigError(f"trainer.callbacks cannot hold a {kind.__name__} in a recipe: {why}")
    _check_strategy(arguments)
    if arguments.get("logger") is True:
        raise ConfigError(
            "trainer.logger is true, which does not say where to log; name loggers by class_path, for example "
            "lightning.pytorch.loggers.CSVLogger, or say false"
        )


def _check_strategy(arguments: Mapping[str, Any]) -> None:
    """Refuse what splits weights in another way than `fsdp2`, and what cannot look at weights in parts.

    Raises:
        ConfigError: there is such a thing.
    """
    name = strategy_name(arguments.get("strategy"))
    if name == FSDP2:
        for kind in map(_class_of, as_list(arguments.get("callbacks"))):
            if getattr(kind, "needs_whole_weights", False):
                raise ConfigError(
                    f"trainer.callbacks cannot hold a {kind.__name__} with trainer.strategy {FSDP2}: it looks at whole "
                    "weights, and each process holds a part of them; use ddp, or leave it out"
                )
    elif name.lower().startswith(OTHER_SHARDING):
        raise ConfigError(
            f"trainer.strategy cannot be {name!r} in a recipe: checkpoints, and the moments that influence is measured "
            f"with, would be in parts; use {FSDP2}, which holds weights in parts and leaves whole ones, or ddp"
        )


def pinned_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that results depend on, without those that are as they are where nothing is said.

    Args:
        arguments: the section `trainer`.
    """
    found = {name: arguments[name] for name in PINNED if arguments.get(name) is not None}
    if "precision" in found and (precision := unified_precision(found.pop("precision"))) != "32-true":
        found["precision"] = precision
    if found.get("gradient_clip_algorithm") == "norm":  # what Lightning takes where nothing is said
        del found["gradient_clip_algorithm"]
    if callbacks := [one for one in as_list(found.pop("callbacks", None)) if not _only_observes(_class_of(one))]:
        found["callbacks"] = callbacks
    return found


def one_process(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a trainer of one process and one device, the first, of these arguments.

    Args:
        arguments: the section `trainer`.
    """
    devices = arguments.get("devices")
    named = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    first = [int(named[0])] if isinstance(named, list | tuple) and named else 1
    return {"devices": first, "num_nodes": 1, "strategy": "auto"}


def as_list(value: Any) -> list[Any]:
    """One thing, several or none, as Lightning takes callbacks and loggers."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _only_observes(kind: type) -> bool:
    return issubclass(kind, OBSERVERS) or bool(getattr(kind, "only_observes", False))


def _class_of(callback: Mapping[str, Any]) -> type:
    module, _, name = callback["class_path"].rpartition(".")
    found: type = getattr(import_module(module), name)
    return found
