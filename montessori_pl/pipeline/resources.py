"""What each step of a recipe takes on a machine: operations, seconds and peak memory, by the models that work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from montessori_pl.estimates.devices import Device
from montessori_pl.estimates.estimate import StepEstimate, Work
from montessori_pl.estimates.memory import Demand, Generation, Peak, Scoring, Training, fits, what_helps
from montessori_pl.estimates.model_size import ModelSize, model_size
from montessori_pl.estimates.seconds import Compute, generated, passed, trained_on
from montessori_pl.generation import OpenAIBackend, RayBackend, TransformersBackend, VLLMBackend
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.optim import TrainingSettings
from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.runner import Runner
from montessori_pl.processes.sharding import FSDP2, strategy_name
from montessori_pl.signals.base import SignalCallback
from montessori_pl.stages.base import Kind

VLLM_AT_ONCE = 256
"""Sequences that vLLM samples together at most, as its own default is."""
ENDPOINT_TOKENS = 40
"""Tokens in a second that an endpoint is taken to write for each of the requests that are sent together."""


def processes_of(trainer: Mapping[str, Any], elsewhere: Device) -> int:
    """Processes that the section `trainer` asks for on GPUs that are elsewhere.

    Raises:
        ValueError: there are not so many.
    """
    devices = trainer.get("devices", "auto")
    nodes = trainer.get("num_nodes") or 1
    named = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else None
    asked = elsewhere.count if named is None else named * nodes
    if asked > elsewhere.count:
        raise ValueError(f"trainer.devices asks for {asked} GPUs, and --gpus names {elsewhere.count}; name as many")
    return asked


@dataclass(frozen=True)
class TrainerShape:
    """What the section `trainer` says that speed and memory depend on."""

    processes: int
    """Devices that train together."""
    mixed: bool
    """Whether it computes in half precision on weights in float32."""
    sharded: bool
    """Whether stages that can hold weights in parts do so."""

    @classmethod
    def of(cls, trainer: Mapping[str, Any], processes: int) -> "TrainerShape":
        """As the section says, with so many processes."""
        mixed = "16-mixed" in str(trainer.get("precision"))
        return cls(processes, mixed, sharded=strategy_name(trainer.get("strategy")) == FSDP2)


@dataclass(frozen=True)
class Resources:
    """What one step takes."""

    model: ModelSize | None
    """The model that does most of it; none for a step without any, and for one behind an endpoint."""
    compute: Compute
    """Of all its work."""
    peak: Peak | None
    """Of one device; none where no model is loaded here."""
    fits: bool = True
    """Whether that has room."""
    helps: str | None = None
    """Where it has none, a setting with which it would."""


@dataclass(frozen=True)
class RunPlan:
    """A dry run: what each step takes."""

    steps: Sequence[StepEstimate]
    """Requests, tokens, steps and dollars."""
    resources: Mapping[str, Resources]
    """Operations, seconds and memory, by key, of the steps that are left and can be estimated."""
    device: Device
    """On what."""
    models: Mapping[str, ModelSize]
    """The models that are loaded, by section."""

    @property
    def seconds(self) -> float:
        """Of all that is left."""
        return sum(one.compute.seconds for one in self.resources.values())

    def too_large(self) -> dict[str, Resources]:
        """The steps that do not fit, by key."""
        return {key: one for key, one in self.resources.items() if not one.fits}


class ResourcePlanner:
    """Plans the steps of a recipe on a device.

    Args:
        runner: who would run them.
        steps: all of them.
        device: on what.
        trainer: how is trained.
    """

    def __init__(self, runner: Runner, steps: Sequence[Step], device: Device, trainer: TrainerShape) -> None:
        self.runner, self.device, self.trainer = runner, device, trainer
        self.sizes: dict[str, ModelSize] = {}
        self._whole = _trains_all_weights(runner, steps)

    def plan(self, steps: Sequence[Step], estimates: Sequence[StepEstimate]) -> RunPlan:
        """The plan of steps that have these estimates."""
        resources = {
            step.key: self._resources(step, one.estimate.work)
            for step, one in zip(steps, estimates, strict=True)
            if one.estimate is not None and not one.finished and one.estimate.work
        }
        return RunPlan(estimates, resources, self.device, self.sizes)

    def _resources(self, step: Step, works: Iterable[Work]) -> Resources:
        total, demands = Compute(), list[tuple[Compute, Demand]]()
        for work in works:
            compute, demand = self._of(step, work)
            total += compute
            if demand is not None:
                demands.append((compute, demand))
        if not demands:
            return Resources(None, total, None)
        _, largest = max(demands, key=lambda one: one[1].peak(self.device).total)
        _, longest = max(demands, key=lambda one: one[0].seconds)
        whether = fits(largest, self.device)
        helps = None if whether else what_helps(largest, self.device)
        return Resources(longest.size, total, largest.peak(self.device), whether, helps)

    def _of(self, step: Step, work: Work) -> tuple[Compute, Demand | None]:
        if work.steps:
            return self._training(step, work)
        if work.max_requests or work.requests:
            return self._generation(step, work)
        return self._passes(step, work)

    def _training(self, step: Step, work: Work) -> tuple[Compute, Demand | None]:
        settings = getattr(step.stage, "training", None)
        if not isinstance(settings, TrainingSettings) or step.stage.produces not in (Kind.STUDENT, Kind.TEACHER):
            return Compute(), None  # a small head, such as a router's
        size = self._teacher() if step.stage.produces is Kind.TEACHER else self._student(self._whole[step.key])
        pairs = any(one.kind is Kind.PAIRS for one in step.stage.reads())
        training = Training(
            size,
            rows=settings.batch_size * (2 if pairs else 1),
            longest=work.longest,
            mixed=self.trainer.mixed,
            activation_memory=settings.activation_memory,
            recompute=settings.gradient_checkpointing,
            shards=self.trainer.processes if self.trainer.sharded and step.stage.shards_weights else 1,
            processes=self.trainer.processes,
        )
        again, devices = bool(settings.gradient_checkpointing), self.trainer.processes
        compute = trained_on(size, work.tokens, self.device, devices, again)
        if pairs:  # the reference policy is asked once for each pair
            compute += passed(size, work.tokens / settings.epochs, self.device, devices)
        return compute, training

    def _passes(self, step: Step, work: Work) -> tuple[Compute, Demand | None]:
        read = [step.inputs[one.setting] for one in step.stage.reads() if one.kind is Kind.STUDENT]
        whole = any(self._whole.get(key, False) for key in read if key is not None) or self._whole[None]
        size, signal = self._student(whole), getattr(step.stage, "signal", None)
        gradients = isinstance(signal, SignalCallback) and signal.needs_gradients
        batch = getattr(signal, "reference_batch_tokens", 0) or getattr(step.stage, "batch_tokens", 8192)
        scoring = Scoring(
            size,
            work.longest,
            min(batch, work.tokens),
            references=len(self.runner.data.read("reference")) if gradients else 0,
            gradients=gradients,
            memory_budget=getattr(signal, "memory_budget", None),
        )
        devices = self.trainer.processes if step.stage.distributed else 1
        return passed(size, work.tokens, self.device, devices, gradients), scoring

    def _generation(self, step: Step, work: Work) -> tuple[Compute, Demand | None]:
        engine, size = self._asked(step, work)
        if isinstance(engine, OpenAIBackend):
            return Compute(0.0, work.completion_tokens / (ENDPOINT_TOKENS * engine.max_concurrency)), None
        if size is None:
            return Compute(), None
        count, samples = max(1, work.requests), getattr(step.stage, "samples_per_prompt", 1)
        together = getattr(step.stage, "prompts_per_batch", count) * samples
        read = work.prompt_tokens / (samples if work.what == "instructions" else 1)  # once for all samples of a prompt
        context = (work.prompt_tokens + work.completion_tokens) / count
        compiled, parallel, share, copies = False, 1, 1.0, 1
        if isinstance(engine, RayBackend):  # the devices of the plan are known, those of a cluster are not
            copies, engine = engine.replicas or 1, engine.engine
            together = max(1, together // copies)
        batch_tokens = getattr(engine, "max_batch_tokens", 16384)
        if isinstance(engine, VLLMBackend):
            compiled, share = not self.device.is_cpu, engine.gpu_memory_utilization
            parallel, copies = engine.tensor_parallel_size, copies * engine.data_parallel_size
            room = max(0.0, share * self.device.memory * parallel - size.weights)
            at_once = min(VLLM_AT_ONCE, room // max(1.0, context * size.cache * size.itemsize))
            batch_tokens = max(work.longest, engine.max_model_len or 0)
        else:
            at_once = batch_tokens // max(1, work.longest)
            batch_tokens = min(batch_tokens, together * work.longest)
        at_once = max(1.0, min(at_once, together, count))
        compute = generated(size, read, work.completion_tokens, at_once, context, self.device, compiled)
        compute = Compute(compute.flops, compute.seconds / (copies * parallel))
        return compute, Generation(size, batch_tokens, parallel, share)

    def _asked(self, step: Step, work: Work) -> tuple[GenerationBackend | None, ModelSize | None]:
        """The engine that does this work, and the model that it runs; none of either where they are not known."""
        pool = self.runner.pool
        names = [name for name in step.stage.teacher_names() if name in pool]
        name = work.engine if work.engine in pool else names[0] if names else ""
        if name:
            member = pool[name]
            engine = (member.generation or self.runner.backend)()
            return engine, self._size(f"teachers.{name}", member.source(), None) if engine.loads_weights else None
        if work.engine:
            return None, None  # a judge
        if any(one.kind is Kind.TEACHER for one in step.stage.reads()) or step.stage.produces is Kind.TEACHER:
            alone = step.stage.produces is Kind.TEACHER  # the alignment monitor samples from the model that is trained
            return TransformersBackend(device="cpu") if alone else self.runner.backend(), self._teacher()
        student = self._student(self._whole[None])
        scores = step.stage.produces is Kind.SCORES  # a signal asks the student that it scores for, which is loaded
        return TransformersBackend(device="cpu") if scores else self.runner.backend(), student

    def _student(self, whole: bool) -> ModelSize:
        module = self.runner.student()
        name = "student" if not whole or module.lora is None else "student, all weights"
        if whole:  # `LanguageModule.train_all_weights`
            module.train_all_weights()
        return self._size(name, module.source, module.lora)

    def _teacher(self) -> ModelSize:
        module = self.runner.teacher()
        return self._size("teacher", module.source, module.lora)

    def _size(self, name: str, source: Any, lora: Any) -> ModelSize:
        if name not in self.sizes:
            self.sizes[name] = model_size(source, lora)
        return self.sizes[name]


def _trains_all_weights(runner: Runner, steps: Sequence[Step]) -> dict[str | None, bool]:
    """Of each step that trains a student, and of the student itself (None), whether all weights are trained."""
    found: dict[str | None, bool] = {None: runner.student().lora is None}
    for step in steps:
        if step.stage.produces is Kind.STUDENT:
            read = [step.inputs[one.setting] for one in step.stage.reads() if one.kind is Kind.STUDENT]
            goes_on = any(found.get(key, False) for key in read)
            found[step.key] = goes_on or found[None] or getattr(step.stage, "all_weights", False)
    return found
