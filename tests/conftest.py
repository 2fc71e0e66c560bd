"""What the tests share: one thread, no network, and recipes of the classroom that finish in seconds."""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything is imported: libraries read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    JSONARGPARSE_DEPRECATION_WARNINGS="off",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)

import pytest
import torch
import yaml
from hypothesis import settings as hypothesis_settings

from montessori_pl.processes.stop import SIGNALS

pytest.register_assert_rewrite("killing")  # whose assertions say what differs as well

# Machines that are busy take their time; what takes too long runs into pytest's own limit.
hypothesis_settings.register_profile("patient", deadline=None)
hypothesis_settings.load_profile("patient")

ROOT = Path(__file__).parents[1]

SLOWEST = (
    "test_signals.py",
    "test_kill_and_resume_recipes.py",
    "test_distributed.py",
    "test_kill_and_resume.py",
    "test_dry_run.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_accumulate.py",
    "test_alignment_monitor.py",
    "test_classroom_study.py",
    "test_recorded_teachers.py",
    "test_llm2llm.py",
)
"""Files that take longest, from about five minutes down to one."""


@pytest.hookimpl(trylast=True)  # when what the command line leaves out has gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where two workers share the files, put the longest first, so that both end at about the same time."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    paths = dict.fromkeys(item.path for item in items)
    turns = {path: (_turn(path), place) for place, path in enumerate(paths)}
    items.sort(key=lambda item: turns[item.path])


def _turn(path: Path) -> int:
    """When it is a file's turn: those that are long, then the rest."""
    return SLOWEST.index(path.name) if path.name in SLOWEST else len(SLOWEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs vLLM where it is not installed."""
    if item.get_closest_marker("vllm") is not None and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM: make test-vllm")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes need not survive a loss of power, and a slow disk would take longer than all computing.

    Those that simulate one (`power_loss.py`) put their own disk in this place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower with two threads, and results may differ in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def signals_stay_as_they_were() -> Iterator[None]:
    """A handler that a library leaves behind is inherited by what later tests fork, which SIGTERM then cannot end."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        if handler is not None:  # else it is no Python function, and stays
            signal.signal(signum, handler)


@pytest.fixture
def small_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """For vLLM one core, and one GiB for keys and values."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a shipped recipe with counts that finish in seconds, without a logger; returns the file.

    The file lies in a directory of its own, and so will its run.

    Keyword arguments replace settings of stages: `tiny_recipe(trained={"training.lr": 1e-4})`; `config` replaces
    settings outside the recipe: `tiny_recipe(config={"data.test": "..."})`.
    """

    def write(name: str = "iter1.yaml", **changes: dict[str, Any]) -> Path:
        config = yaml.safe_load((ROOT / "configs" / name).read_text())
        counts: dict[str, dict[str, Any]] = {
            "warmup_data": {"num_examples": 24, "prompts_per_batch": 4},
            "probing_data": {"num_prompts": 8, "prompts_per_batch": 4, "samples_per_prompt": 2},
            "training_data": {"num_examples": 48, "prompts_per_batch": 4},
            "new_data": {"num_examples": 24, "prompts_per_batch": 4},
            "influence": {"batch_tokens": 16, "signal.init_args.calibration_examples": 2},
            "influence_2": {"signal.init_args.calibration_examples": 2, "signal.init_args.method": "exact"},
            "influence_3": {"signal.init_args.calibration_examples": 2, "signal.init_args.method": "first_order"},
            "influence_after": {"max_examples": 8, "signal.init_args.calibration_examples": 2},
            "warmup": {"training.checkpoint_every_n_steps": 1, "training.batch_size": 8},
            "aligned_teacher": {
                "training.checkpoint_every_n_steps": 1,
                "training.batch_size": 4,
                "monitor": {
                    "every_n_steps": 2,
                    "num_samples": 8,
                    "sampling": {"presence_penalty": 0.0, "max_tokens": 40},
                },
            },
            "trained": {"training.checkpoint_every_n_steps": 1},
        }
        for source in (counts, changes):
            for stage, settings in source.items():
                if stage == "config":
                    target = config
                elif stage in config["recipe"]:
                    target = config["recipe"][stage]["init_args"]
                else:
                    continue
                if source is counts and config["recipe"][stage]["class_path"] in (
                    "GenerateResponses",
                    "ConcatExamples",
                    "SelectBest",
                ):
                    continue  # they take as many as there are
                for dotted, value in settings.items():
                    *path, last = dotted.split(".")
                    node = target
                    for part in path:
                        node = node[part]
                    node[last] = value
        directory = tmp_path_factory.mktemp("recipe")
        config["run"] = str(directory / "run")
        config["trainer"]["logger"] = False
        sizes = {"seed_tasks": 64, "reference": 16, "test": 32}
        config["data"] = {role: f"{source}[:{sizes[role]}]" for role, source in config["data"].items()}
        path = directory / name
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return write
