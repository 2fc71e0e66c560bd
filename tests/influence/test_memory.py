"""Peak memory beyond the model: bounded by the tokens of a batch, whatever the number of probes or references."""

import gc
from collections.abc import Callable

import pytest
import torch
from influence_models import Tokens, collate, make_model
from torch import nn
from torch.profiler import ProfilerActivity, profile

from montessori_pl.influence import (
    AdamW,
    ExactInfluence,
    FirstOrderInfluence,
    ReferenceSet,
    ResponseLosses,
    per_example_gradients,
    trainable_parameters,
)

LENGTH = 32
KIB = 2**10


def examples(num_examples: int) -> list[Tokens]:
    return [Tokens([(number + place) % 50 for place in range(LENGTH)], num_prompt=2) for number in range(num_examples)]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that PyTorch's allocator holds during `work` beyond what it held before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    del result
    return highest


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.set_num_threads(1)
    model = make_model("llama", "lora", torch.float32, num_hidden_layers=1, intermediate_size=64)
    run("exact", model, 2, 2, 2)()  # what is made once for all
    return model


def run(method: str, model: nn.Module, num_references: int, num_probes: int, at_once: int) -> Callable[[], object]:
    """All of it: the reference set, what is computed once, and the probes, four to a batch."""

    def work() -> object:
        loss, params = ResponseLosses(model), trainable_parameters(model)
        references = ReferenceSet(loss, [collate(examples(num_references))], batch_tokens=at_once * LENGTH)
        if method == "exact":
            engine: ExactInfluence | FirstOrderInfluence = ExactInfluence(loss, params, AdamW(lr=1e-3), references)
        else:
            gradients = per_example_gradients(loss, params)
            engine = FirstOrderInfluence(gradients, params, AdamW(lr=1e-3), references, range(2))
        batch = collate(examples(4))
        return [one.centred for _ in range(num_probes // 4) for one in engine(batch)]

    return work


def test_the_ruler_measures() -> None:
    """A tensor of 256 KiB that is made and forgotten, beside one of 64 KiB that stays."""

    def work() -> object:
        kept = torch.ones(64 * KIB // 4)
        for _ in range(3):
            torch.ones(256 * KIB // 4)
        return kept

    assert peak_bytes(work) == pytest.approx(320 * KIB, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "first order"])
def test_peak_memory_grows_with_batch_tokens_alone(model: nn.Module, method: str) -> None:
    base = peak_bytes(run(method, model, num_references=16, num_probes=4, at_once=4))
    more_probes = peak_bytes(run(method, model, num_references=16, num_probes=16, at_once=4))
    more_references = peak_bytes(run(method, model, num_references=48, num_probes=4, at_once=4))
    larger_batches = peak_bytes(run(method, model, num_references=16, num_probes=4, at_once=16))
    tokens = 32 * 2 * 3 * 8 * LENGTH  # the ids, masks and labels of 32 references more, twice

    assert base > 100 * KIB, "there is something to measure"
    assert more_probes < 1.05 * base
    assert more_references < 1.05 * base + 1.25 * tokens
    assert larger_batches > 2 * base
