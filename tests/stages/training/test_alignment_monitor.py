"""The dose of alignment: what is held out, when training stops, and which teacher stays."""

import dataclasses
import inspect
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from alignments import GENTLE, PROMPTS, SEED, WATCH, Align, evaluations_of
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from stage_runs import Killed
from tiny_models import tiny_tokenizer
from torch import Tensor

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.generation import Completion, OpenAIBackend, Request, Sampling, TransformersBackend
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import ModelSource, load_model
from montessori_pl.stages import AlignTeacher, Synthesize
from montessori_pl.stages.base import CHECKPOINT, StageError
from montessori_pl.stages.training import alignment_monitor as dose_module
from montessori_pl.stages.training.alignment_evaluator import Evaluation
from montessori_pl.stages.training.alignment_monitor import AlignmentMonitor, num_held_out, prompts_in_order
from montessori_pl.synthesis.collapse import CollapseLimits

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")  # as the program does

OVERDOSE = dataclasses.replace(GENTLE, lr=1e-1, epochs=4, schedule="constant")
LIMITS = CollapseLimits(divergence=0.3)
AT_THE_END = -1


class Nothing(AlignmentMonitor):
    """Allows no step at all."""

    def beyond(self, first: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
        return ["it moved"]


class Notes(Callback):
    """Notes what every batch holds and the adapter after every step; ends the process before a given batch.

    Or at the end of training, when the last epoch's checkpoint has been written, and the stage's last one has not.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.sequences: list[list[int]] = []
        self.adapters: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.kill_at:
            raise Killed
        self.sequences += batch["input_ids"].tolist()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, TeacherDPOModule)
        weights = {name: parameter.detach().clone() for name, parameter in pl_module.optimized().items()}
        self.adapters[trainer.global_step] = weights

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.kill_at == AT_THE_END:
            raise Killed


def weights_of(directory: Path) -> dict[str, bytes]:
    """The files of an adapter."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"held_out": 1.0}, r"held_out: expected float >= 0 and < 1, found 1\.0"),
            ({"every_n_steps": 0}, "every_n_steps: expected int >= 1, found 0"),
            ({"patience": 0}, "patience: expected int >= 1( or null)?, found 0"),
            ({"num_samples": -1}, "num_samples: expected int >= 0 and <= 1000000, found -1"),
            ({"max_margin": 0.0}, r"max_margin: expected float > 0, found 0\.0"),
            ({"held_out": 0, "max_margin": 1.0}, "need held-out pairs, and held_out is 0"),
            ({"held_out": 0, "choose": "lowest_loss"}, "need held-out pairs, and held_out is 0"),
            ({"held_out": 0, "num_samples": 0}, "monitors nothing; write monitor: null instead"),
        ],
    )
    def test_mistakes_are_one_sentence(self, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            AlignmentMonitor(**settings)

    def test_saving_all_checkpoints_needs_evaluations(self) -> None:
        with pytest.raises(ValueError, match="keeps the adapter of each evaluation, and monitor: null makes none"):
            AlignTeacher("pairs", GENTLE, monitor=None, save_all_checkpoints=True)

    def test_samples_are_drawn_as_synthesize_draws(self) -> None:
        default = inspect.signature(Synthesize).parameters["instruction_sampling"].default
        assert AlignmentMonitor().sampling == default

    def test_written_as_yaml(self) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(AlignTeacher, "stage")
        common = ["--stage.pairs", "p", "--stage.training", '{"lr": 0.1}']
        written = '{"every_n_steps": 5, "limits": {"divergence": null}, "sampling": {"max_tokens": 7}}'
        stage = parser.instantiate_classes(parser.parse_args([*common, "--stage.monitor", written])).stage
        assert stage.monitor.every_n_steps == 5
        assert stage.monitor.limits == CollapseLimits(divergence=None)
        assert stage.monitor.sampling.max_tokens == 7
        assert parser.instantiate_classes(parser.parse_args([*common, "--stage.monitor", "null"])).stage.monitor is None
        assert parser.instantiate_classes(parser.parse_args(common)).stage.monitor == AlignmentMonitor()


def row(step: int, beyond: bool = False, loss: float = 0.0) -> Evaluation:
    return {"step": step, "loss": loss, "beyond": ["too much"] if beyond else []}


class TestDecisions:
    """Which look stays and when training stops, from rows written by hand."""

    @pytest.mark.parametrize(
        ("evaluations", "latest", "lowest"),
        [
            ([row(0)], 0, 0),
            ([row(0, loss=0.1), row(1, loss=0.3), row(2, loss=0.2), row(3, loss=0.4)], 3, 2),
            ([row(0), row(1, loss=0.5), row(2, beyond=True, loss=0.1)], 1, 1),
            ([row(0), row(1, beyond=True), row(2, loss=0.5)], 2, 2),
            ([row(0, loss=0.5), row(1, beyond=True), row(2, beyond=True)], 0, 0),
        ],
    )
    def test_choice(self, evaluations: list[Evaluation], latest: int, lowest: int) -> None:
        assert AlignmentMonitor().choice(evaluations)["step"] == latest
        assert AlignmentMonitor(choose="lowest_loss").choice(evaluations)["step"] == lowest

    @pytest.mark.parametrize(
        ("beyond", "stops"),
        [([], False), ([1], False), ([1, 1], True), ([1, 0, 1], False), ([0, 1, 1], True), ([1, 1, 0], False)],
    )
    def test_stops_after_patience(self, beyond: list[int], stops: bool) -> None:
        evaluations = [row(0), *(row(step, bool(flag)) for step, flag in enumerate(beyond, start=1))]
        assert AlignmentMonitor(patience=2).stops(evaluations) is stops

    def test_limits(self) -> None:
        monitor = AlignmentMonitor(max_margin=2.0)
        first = {"token_entropy": 4.0, "divergence": 0.0, "margin": 0.0}
        assert monitor.beyond(first, {"token_entropy": 3.5, "divergence": 0.2, "margin": 1.9}) == []
        assert monitor.beyond(first, {"token_entropy": 3.0, "divergence": 0.4, "margin": 2.5}) == [
            "entropy of the words 3.00, before 4.00, limit 3.20",
            "divergence from the teacher before alignment, in nats per token 0.40, before 0.00, limit 0.30",
            "margin of the held-out pairs 2.50 nats, limit 2.00",
        ]
        lost = monitor.beyond(first, {"divergence": math.nan, "kl": math.inf, "samples": [""]})
        assert len(lost) == 2, "a number that is none is not within a limit, nor is it where there is no limit"
        assert lost[1] == "no finite number for divergence, kl"


class TestHeldOut:
    def test_share(self) -> None:
        """At least one where any shall be held out, never all."""
        counts = [(10, 0.1), (10, 0.25), (10, 0.0), (3, 0.1), (2, 0.99), (1, 0.5), (0, 0.5)]
        assert [num_held_out(*count) for count in counts] == [1, 2, 0, 1, 1, 0, 0]

    def test_order_depends_on_the_seed_alone(self) -> None:
        prompts = [("", text) for text in PROMPTS] + [("you are kind.", PROMPTS[0])]
        order = prompts_in_order(prompts, 1)
        assert sorted(order) == sorted(prompts)
        assert prompts_in_order([*prompts[::-1], *prompts], 1) == order
        assert any(prompts_in_order(prompts, seed) != order for seed in range(2, 5))

    @pytest.mark.slow
    def test_prompts_stay_whole(self, align: Align, tmp_path: Path) -> None:
        """A held-out prompt is in no batch, any other prompt is, with all its pairs."""
        notes = Notes()
        metrics = align(tmp_path, dataclasses.replace(WATCH, held_out=0.34), notes=notes)
        assert (metrics["pairs"], metrics["held_out_pairs"]) == (8, 4)
        chat_template = ChatTemplate(tiny_tokenizer())
        beginnings = {text: chat_template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS}
        found = {
            text: sum(sequence[: len(ids)] == ids for sequence in notes.sequences) for text, ids in beginnings.items()
        }
        held_out = prompts_in_order([("", text) for text in PROMPTS], SEED)[:2]
        assert found == {text: 0 if ("", text) in held_out else 2 * 2 * GENTLE.epochs for text in PROMPTS}


class TestTraining:
    @pytest.mark.slow
    def test_is_the_same_without_evaluations(self, align: Align, tmp_path: Path) -> None:
        """On the same pairs, with dropout: weights, both moments and metrics are equal, bit for bit."""
        training = dataclasses.replace(GENTLE, accumulate_grad_batches=2)
        without = align(tmp_path / "without", None, training)
        monitored = align(tmp_path / "watched", dataclasses.replace(WATCH, held_out=0), training)
        assert {name: monitored[name] for name in without} == without
        assert (monitored["held_out_pairs"], monitored["warnings"]) == (0, [])
        assert weights_of(tmp_path / "watched" / "weights") == weights_of(tmp_path / "without" / "weights")
        one, two = (torch.load(tmp_path / name / CHECKPOINT, weights_only=False) for name in ("watched", "without"))
        for index, state in one["optimizer_states"][0]["state"].items():
            other = two["optimizer_states"][0]["state"][index]
            assert all(torch.equal(value, other[name]) for name, value in state.items())
        assert not (tmp_path / "without" / "alignment_evaluations.jsonl").exists()
        assert [evaluation["step"] for evaluation in evaluations_of(tmp_path / "watched")] == list(range(7))

    @pytest.mark.slow
    def test_evaluations_are_taken_at_their_steps(self, align: Align, tmp_path: Path) -> None:
        metrics = align(tmp_path, dataclasses.replace(WATCH, every_n_steps=4))
        assert [evaluation["step"] for evaluation in evaluations_of(tmp_path)] == [0, 4, 8, 10]
        assert metrics["monitor"]["evaluations"] == 4
        assert (metrics["monitor"]["selected_step"], metrics["monitor"]["stopped_at_step"]) == (10, None)
        assert metrics["monitor"]["first"].keys() == metrics["monitor"]["chosen"].keys()
        assert not (tmp_path / "adapters").exists()

    @pytest.mark.slow
    def test_evaluations_are_logged(self, align: Align, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path, name="log", version="")
        align(tmp_path, logger=logger)
        logger.save()
        header = (tmp_path / "log" / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"iteration_1/aligned/monitor/margin", "iteration_1/aligned/monitor/kl"} <= set(header)

    @pytest.mark.slow
    def test_live_samples_are_drawn_in_the_batches_of_the_recipe(self, align: Align, tmp_path: Path) -> None:
        """Or a recipe whose batches are small for its GPU would end in the monitor."""
        drawn = []

        class Watched(TransformersBackend):
            def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
                drawn.append(self.max_batch_tokens)
                return super().generate(requests, sampling)

        align(tmp_path / "aligned", backend=lambda: Watched(max_batch_tokens=50))
        assert set(drawn) == {50}

    @pytest.mark.slow
    def test_teachers_are_kept(self, align: Align, backbone: str, tmp_path: Path) -> None:
        """One directory for each look, with the adapter as it was after that step."""
        notes = Notes()
        align(tmp_path, notes=notes, save_all_checkpoints=True)
        assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == [f"step_{n:06d}" for n in range(11)]
        for step, weights in notes.adapters.items():
            saved = load_file(tmp_path / "adapters" / f"step_{step:06d}" / "adapter_model.safetensors")
            named = {name.replace(".default", ""): tensor for name, tensor in weights.items()}
            assert saved.keys() == named.keys()
            assert all(torch.equal(tensor, named[name]) for name, tensor in saved.items())
        load_model(ModelSource(backbone, tmp_path / "adapters" / "step_000003"))
        assert weights_of(tmp_path / "weights") == weights_of(tmp_path / "adapters" / "step_000010")

    @pytest.mark.slow
    def test_lowest_loss(self, align: Align, tmp_path: Path) -> None:
        metrics = align(tmp_path, dataclasses.replace(WATCH, choose="lowest_loss"), OVERDOSE, save_all_checkpoints=True)
        losses = {evaluation["step"]: evaluation["loss"] for evaluation in evaluations_of(tmp_path)[1:]}
        best = min(losses, key=lambda step: losses[step])
        assert metrics["monitor"]["selected_step"] == best < metrics["steps"]
        assert weights_of(tmp_path / "weights") == weights_of(tmp_path / "adapters" / f"step_{best:06d}")

    @pytest.mark.slow
    def test_second_iteration(self, align: Align, tmp_path: Path) -> None:
        """From the previous adapter; a watch that allows nothing leaves exactly that one."""
        align(tmp_path / "first")
        settings = {field.name: getattr(WATCH, field.name) for field in dataclasses.fields(AlignmentMonitor)}
        nothing = Nothing(**settings | {"patience": 1})
        metrics = align(tmp_path / "second", nothing, previous=tmp_path / "first")
        assert (metrics["monitor"]["selected_step"], metrics["monitor"]["stopped_at_step"], metrics["steps"]) == (
            0,
            1,
            1,
        )
        name = "adapter_model.safetensors"
        assert weights_of(tmp_path / "second" / "weights")[name] == weights_of(tmp_path / "first" / "weights")[name]
        assert metrics["warnings"][0].endswith(
            "; alignment was stopped and the teacher as it was before alignment is kept"
        )


class TestOverdose:
    """A hundred times the learning rate."""

    WATCH = dataclasses.replace(WATCH, limits=LIMITS, num_samples=24)

    @pytest.mark.slow
    def test_is_found_and_taken_back(self, align: Align, tmp_path: Path) -> None:
        notes = Notes()
        metrics = align(tmp_path, self.WATCH, OVERDOSE, notes, save_all_checkpoints=True)
        evaluations = evaluations_of(tmp_path)
        stopped, chosen = metrics["monitor"]["stopped_at_step"], metrics["monitor"]["selected_step"]
        assert stopped == metrics["steps"] == max(notes.adapters) < 20, "of twenty steps"
        assert [bool(evaluation["beyond"]) for evaluation in evaluations[-3:]] == [False, True, True]
        assert chosen == stopped - 2
        assert metrics["monitor"]["chosen"]["divergence"] == evaluations[chosen]["divergence"]
        assert metrics["warnings"] == [
            f"at step {stopped} the teacher's writing had moved beyond the limits "
            f"({'; '.join(evaluations[-1]['beyond'])}); alignment was stopped and the teacher of step {chosen} is kept"
        ]
        saved = load_file(tmp_path / "weights" / "adapter_model.safetensors")
        expected = {name.replace(".default", ""): tensor for name, tensor in notes.adapters[chosen].items()}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())
        assert weights_of(tmp_path / "weights") == weights_of(tmp_path / "adapters" / f"step_{chosen:06d}")

    @pytest.mark.slow
    def test_a_gentle_dose_stays_within_the_same_limits(self, align: Align, tmp_path: Path) -> None:
        metrics = align(tmp_path, self.WATCH)
        assert metrics["warnings"] == []
        assert metrics["monitor"]["selected_step"] == metrics["steps"] == 10

    @pytest.mark.slow
    def test_without_patience_to_stop_it_is_said_all_the_same(self, align: Align, tmp_path: Path) -> None:
        metrics = align(tmp_path, dataclasses.replace(self.WATCH, patience=99), OVERDOSE)
        assert metrics["monitor"]["stopped_at_step"] is None
        assert metrics["steps"] == 20
        assert len(metrics["warnings"]) == 1
        assert "alignment was stopped" not in metrics["warnings"][0]


def outcome(directory: Path, metrics: dict[str, Any]) -> Any:
    return (
        (directory / "alignment_evaluations.jsonl").read_bytes(),
        weights_of(directory / "weights"),
        json.dumps(metrics),
    )


def settings_of(kind: str) -> dict[str, Any]:
    """A training that goes to its end, one that is stopped, or one that keeps all teachers."""
    gentle = dataclasses.replace(WATCH, every_n_steps=3, num_samples=4)
    return {
        "monitor": TestOverdose.WATCH if kind == "stopped" else gentle,
        "training": OVERDOSE if kind == "stopped" else GENTLE,
        "save_all_checkpoints": kind == "kept",
    }


@pytest.fixture(scope="module")
def undisturbed(align: Align, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The outcome of a training that nothing disturbs, made once for all tests that ask for the same one."""
    found: dict[str, Any] = {}

    def make(name: str, **settings: Any) -> Any:
        if name not in found:
            directory = tmp_path_factory.mktemp("whole")
            found[name] = outcome(directory, align(directory, **settings))
        return found[name]

    return make


MOMENTS = {
    "an adapter": (dose_module, "save_weights", ""),
    "the rows": (dose_module, "write_json_lines", ""),
    "the chosen adapter": (shutil, "copytree", ""),
    "adapters that go": (os, "replace", "adapters"),
    "adapters that have gone": (shutil, "rmtree", "adapters.draft"),
}
"""What is written or deleted: module, function, and the name of its first argument where it is not the only caller."""


@pytest.mark.slow
class TestKilled:
    """A training that was killed and started again leaves the same evaluations, weights and metrics."""

    @pytest.mark.parametrize("kind", ["to the end", "stopped"])
    def test_before_every_batch(self, align: Align, undisturbed: Callable[..., Any], tmp_path: Path, kind: str) -> None:
        """One training that is killed before each batch, and at its end."""
        settings = settings_of(kind)
        whole = undisturbed(kind, **settings)
        for kill_at in [*range(1, json.loads(whole[2])["steps"] + 1), AT_THE_END]:
            with pytest.raises(Killed):
                align(tmp_path, notes=Notes(kill_at), **settings)
        assert outcome(tmp_path, align(tmp_path, **settings)) == whole

    @pytest.mark.parametrize("survives", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(
        ("kind", "moment"),
        [*((kind, moment) for kind in ("to the end", "stopped") for moment in MOMENTS), ("kept", "the chosen adapter")],
    )
    def test_within_a_look_and_at_the_end(
        self,
        align: Align,
        undisturbed: Callable[..., Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        moment: str,
        survives: bool,
    ) -> None:
        """Before a call or after it, at some evaluations; and once more when all is done, but it is not noted."""
        settings = settings_of(kind)
        whole = undisturbed(kind, **settings)
        num_evaluations = len(whole[0].splitlines())
        owner, function, name = MOMENTS[moment]
        original = getattr(owner, function)
        for call in sorted({1, num_evaluations // 2, num_evaluations}) if owner is dose_module else [1]:
            directory = tmp_path / str(call)
            calls = itertools.count(1)

            def dying(*args: Any, calls: Any = calls, call: int = call, **kwargs: Any) -> None:
                fatal = (not name or Path(args[0]).name == name) and next(calls) == call
                if survives or not fatal:
                    original(*args, **kwargs)
                if fatal:
                    raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(owner, function, dying)
                with pytest.raises(Killed):
                    align(directory, **settings)
            for _ in range(2):
                assert outcome(directory, align(directory, **settings)) == whole
            assert (directory / "adapters").exists() is (kind == "kept")
            assert not list(directory.rglob("*.draft"))


@pytest.mark.slow
@pytest.mark.parametrize("patience", [1, 2, 3, 4])
def test_killed_when_it_has_stopped(align: Align, tmp_path: Path, patience: int) -> None:
    """In the middle of an epoch or at its end: a resumed session finds that training had stopped, and leaves it so."""
    monitor = dataclasses.replace(TestOverdose.WATCH, patience=patience)
    whole = outcome(tmp_path / "whole", align(tmp_path / "whole", monitor, OVERDOSE))
    with pytest.raises(Killed):
        align(tmp_path / "killed", monitor, OVERDOSE, Notes(AT_THE_END))
    notes = Notes()
    assert outcome(tmp_path / "killed", align(tmp_path / "killed", monitor, OVERDOSE, notes)) == whole
    assert not notes.sequences
    assert json.loads(whole[2])["monitor"]["stopped_at_step"] is not None


@pytest.mark.slow
def test_sampled_by_the_engine(align: Align, tmp_path: Path) -> None:
    """The same evaluations as by the policy itself, where both are Transformers'; an endpoint cannot do it."""
    by_engine = dataclasses.replace(WATCH, sampled_by="engine")
    align(tmp_path / "policy")
    align(tmp_path / "engine", by_engine)
    assert evaluations_of(tmp_path / "engine") == evaluations_of(tmp_path / "policy")
    endpoint = partial(OpenAIBackend, base_url="http://localhost:1/v1", api_key_env=None)
    with pytest.raises(StageError, match=r"sampled_by is engine, and OpenAIBackend cannot load what is trained"):
        align(tmp_path / "endpoint", by_engine, backend=endpoint)
