"""A trial of the models that a run trains, before anything runs: one step and one probe on one short conversation.

What fails about a model fails here within seconds, and not after its training: files without weights, an adapter that
does not fit, a layer that autograd or a probe cannot pass. A trial runs on the CPU, in the first process, and a run
remembers it.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from montessori_pl.batches.collate import collate
from montessori_pl.data.records import Message, stable_id
from montessori_pl.influence import (
    AdamW,
    Batch,
    InfluenceScorer,
    Params,
    ResponseLosses,
    default_budget,
    trainable_parameters,
)
from montessori_pl.influence.functional import gradient
from montessori_pl.influence.memory import COPIES_PER_EXAMPLE, SHARED_COPIES
from montessori_pl.models.loading import (
    ON_GPU_ONLY,
    LoraSettings,
    ModelSource,
    load_chat_template,
    load_config,
    load_model,
    make_trainable,
)
from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.runner import Runner
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.signals.base import SignalCallback
from montessori_pl.stages.base import Kind
from montessori_pl.worlds.names import with_versions

log = logging.getLogger(__name__)

TRIALS = "tried_models"
"""The fact of a run that holds the keys of the trials which have passed."""
LARGEST = 3 * 10**9
"""Parameters of the largest model that is tried with its weights, so that a trial does not take many minutes on a CPU.
Of a larger one, or where memory is short, files, architecture and adapter are looked at, without weights."""
COPIES = SHARED_COPIES + COPIES_PER_EXAMPLE + 2
"""Copies of the trained parameters that a probe of one example on one reference may hold."""
CONVERSATIONS: Sequence[Sequence[Message]] = (
    ({"role": "user", "content": "one and two?"}, {"role": "assistant", "content": "three"}),
    ({"role": "user", "content": "a?"}, {"role": "assistant", "content": "b c"}),
)
"""The example that is learned, and a reference."""


@dataclass(frozen=True)
class Trial:
    """What a run does with a model."""

    section: str
    """Of the recipe file: `student` or `teacher`."""
    source: ModelSource
    """The backbone."""
    lora: LoraSettings | None
    """The adapter that is trained; none trains all weights."""
    probed: bool
    """Whether a signal asks for gradients or takes steps on single examples."""

    @property
    def key(self) -> str:
        """Stands for the trial in the manifest."""
        source = self.source
        backbone, computed = with_versions(source.backbone), (source.base_dtype, source.attn_implementation)
        return stable_id(backbone, *computed, repr(self.lora), self.probed)


def trials(runner: Runner, steps: Sequence[Step]) -> list[Trial]:
    """What these steps will do with the models that they train, without what the run has tried before.

    Args:
        runner: who will run them.
        steps: those that are left; what reads a student that has been trained already is not tried any more.
    """
    probed: dict[tuple[str, bool], bool] = {}  # by section, and whether all weights are trained
    student = runner.student()
    trains_all: dict[str | None, bool] = {None: student.lora is None}
    for step in steps:
        if "teacher" in step.stage.trains:
            probed["teacher", False] = False
        read = [step.inputs[one.setting] for one in step.stage.reads() if one.kind is Kind.STUDENT]
        if step.stage.produces is Kind.STUDENT:
            goes_on = any(trains_all.get(key, False) for key in read)
            trains_all[step.key] = goes_on or trains_all[None] or getattr(step.stage, "all_weights", False)
            probed.setdefault(("student", trains_all[step.key]), False)
        signal = getattr(step.stage, "signal", None)
        if isinstance(signal, SignalCallback) and signal.needs_gradients:
            probed.update({("student", trains_all[key]): True for key in read if key in trains_all})
    wanted = []
    for (section, all_weights), gradients in probed.items():
        module = student if section == "student" else runner.teacher()
        wanted.append(Trial(section, module.source, None if all_weights else module.lora, gradients))
    tried = runner.run_directory.facts.get(TRIALS, [])
    return [trial for trial in wanted if trial.key not in tried]


def by_section(wanted: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The trials of each model, which is loaded once for all of them; an adapter stays on it and comes last."""
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(wanted, key=lambda one: one.lora is not None):
        groups.setdefault(trial.section, []).append(trial)
    return groups


def remember(run_directory: RunDirectory, passed: Sequence[Trial]) -> None:
    """Let a run that is resumed go without these."""
    if passed:
        run_directory.remember(**{TRIALS: [*run_directory.facts.get(TRIALS, []), *(one.key for one in passed)]})


def try_model(wanted: Sequence[Trial]) -> None:
    """Load a backbone, and do with it what its trials say, one after another.

    Args:
        wanted: of one section, in the order of `by_section`.

    Raises:
        ValueError: one of them fails.
    """
    source = wanted[0].source
    if source.attn_implementation in ON_GPU_ONLY:
        source = dataclasses.replace(source, attn_implementation=None)
    quantized = getattr(load_config(source), "quantization_config", None)
    if quantized is not None:
        raise ValueError(
            f"the backbone {source.backbone!r} is quantized ({_method(quantized)}); what is trained or measured needs "
            "weights in floating point: give the model that it was made from (base_dtype bfloat16 halves its memory)"
        )
    model = load_model(source, weights=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    whole = count <= LARGEST and _bytes_needed(model, wanted) <= default_budget(torch.device("cpu"))
    if whole:
        model = load_model(source)
    else:
        log.info(
            "%s: %.1f billion parameters are too many for a trial before the run, in the time or memory that there is; "
            "only its files are looked at",
            *(wanted[0].section, count / 1e9),
        )
    chat_template = load_chat_template(source)
    rendered = [chat_template.render(one) for one in CONVERSATIONS]
    if not all(any(one.completion_mask) for one in rendered):
        raise ValueError(
            f"the backbone {source.backbone!r} has {chat_template.context} positions (max_position_embeddings), which "
            f"leave no room for an answer behind {CONVERSATIONS[0][0]['content']!r}"
        )
    example, reference = (collate([one], chat_template.tokenizer.pad_token_id) for one in rendered)
    with torch.random.fork_rng(devices=[]):
        for trial in wanted:
            network = make_trainable(model, trial.lora)
            if whole:
                _try(network, trial, example, reference)


def _bytes_needed(model: nn.Module, wanted: Sequence[Trial]) -> int:
    """The weights, and where all of them are trained their gradients, or what a probe holds; adapters are small."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    copies = [COPIES if trial.probed else 1 for trial in wanted if trial.lora is None]
    return weights * (1 + max(copies, default=0))


def _try(network: nn.Module, trial: Trial, example: Batch, reference: Batch) -> None:
    """One step, and one probe if there will be any."""
    name = type(getattr(network, "get_base_model", lambda: network)()).__name__
    model = f"{trial.source.backbone!r} ({name}, {'all weights' if trial.lora is None else 'LoRA'})"
    with _failing(f"{model} cannot be trained"):
        network.train()
        gradients = _ordinary_gradient(network, example)
    network.eval()
    with _failing(f"{model} cannot be used"):
        _check_causal(network, example)
    if not trial.probed:
        return
    with _failing(f"the influence of examples on {model} cannot be measured"):
        _check_reached(gradients)
        if trial.source.base_dtype == "float32":
            _check_gradient(network, example)
        # What fits where the run is, which may be a GPU, is not for this machine's memory to say.
        budget = COPIES * sum(parameter.nbytes for parameter in trainable_parameters(network).values())
        influences = [
            InfluenceScorer(network, AdamW(lr=1e-4), [reference], method=method, memory_budget=budget)(example)[
                0
            ].centred
            for method in ("exact", "first_order")
        ]
        if not torch.tensor(influences).isfinite().all():
            raise ValueError(f"it is {influences[0]} by the exact method and {influences[1]} to first order")


def _ordinary_gradient(network: nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """The gradient of each trained parameter as a training computes it; none where it takes no part."""
    logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = nn.functional.cross_entropy(logits[0, :-1].float(), batch["labels"][0, 1:])
    if not loss.isfinite():
        raise ValueError(f"its loss on a short conversation is {loss.item()}")
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    if not all(one.isfinite().all() for one in gradients if one is not None):
        raise ValueError("its gradient on a short conversation is not finite, as where weights are far too large")
    return dict(zip(trained, gradients, strict=True))


@torch.no_grad()
def _check_causal(network: nn.Module, batch: Batch) -> None:
    """No token may see what comes behind it: the losses of padded examples rely on it."""
    ids = batch["input_ids"]
    other = ids.clone()
    other[:, -1] = ids[:, 0] if ids[0, 0] != ids[0, -1] else ids[:, 0] - 1
    before, after = (
        network(input_ids=one, attention_mask=batch["attention_mask"]).logits[:, :-1] for one in (ids, other)
    )
    if (before - after).abs().max() > 0.01 * before.abs().max():
        raise ValueError("its predictions depend on the tokens behind them: it is no causal language model")


def _check_reached(gradients: Mapping[str, Tensor | None]) -> None:
    if unreached := [name for name, one in gradients.items() if one is None]:
        raise ValueError(
            f"{len(unreached)} of {len(gradients)} trained parameters get no gradient from a conversation (first: "
            f"{unreached[0]}), so that there are no moments of them with which a step could be taken; name in "
            "lora.target_modules only modules that every token passes"
        )


def _check_gradient(network: nn.Module, batch: Batch) -> None:
    """The probe's gradient, without attention mask and through `functional_call`, is that of a training."""
    params = trainable_parameters(network)
    found, expected = (
        torch.cat([gradients[name].flatten() for name in params])
        for gradients in (
            gradient(ResponseLosses(network), params, batch),
            cast("Params", _ordinary_gradient(network, batch)),
        )
    )
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item()):
        raise ValueError("a probe's gradient is not that of a training; does the model keep states of its own?")


def _method(quantized: object) -> object:
    """The name of a method of quantization, as a configuration in memory or in JSON holds it."""
    get = quantized.get if isinstance(quantized, Mapping) else lambda name: getattr(quantized, name, None)
    return get("quant_method") or "unknown method"


@contextmanager
def _failing(sentence: str) -> Iterator[None]:
    """Whatever a model raises becomes the end of a sentence."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{sentence}: {error}") from error
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(f"{sentence} ({type(error).__name__}: {first_line})") from error
