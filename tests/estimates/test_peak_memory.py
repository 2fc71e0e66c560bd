"""Peak memory of a model whose numbers can be added up by hand."""

import dataclasses

import pytest

from montessori_pl.estimates.devices import Device, devices_named
from montessori_pl.estimates.memory import Generation, Scoring, Training, fits, what_helps
from montessori_pl.estimates.model_size import ModelSize
from montessori_pl.influence.memory import LayerSizes

GPU = Device("a GPU", memory=80e9, flops=1e15, bandwidth=3e12)
EIGHT_BILLION = ModelSize(
    backbone="llama",
    parameters=8 * 10**9,
    multiplied=8 * 10**9,
    trained=8 * 10**9,
    itemsize=4,
    cache=2 * 32 * 8 * 128,
    vocabulary=128_256,
    layers=LayerSizes(layers=32, width=4096, kept=15 * 4096 + 4 * 14336),
    adapter=False,
)
ADAPTED = dataclasses.replace(EIGHT_BILLION, trained=42 * 10**6, itemsize=2, adapter=True)


def test_training_of_all_weights_by_hand() -> None:
    """Weights 32 GB, gradient twice and two moments 128 GB, casts 16 GB; the activations of one row of 1024 tokens."""
    peak = Training(EIGHT_BILLION, rows=1, longest=1024, mixed=True).peak(GPU)
    assert peak.weights == 32e9
    assert peak.trained == 128e9 + 16e9
    kept = 32 * (15 * 4096 + 4 * 14336)
    assert peak.activations == 1024 * kept * 2 + 3 * 4 * min(1024 * 128_256, 2**24)


def test_batch_takes_no_more_than_activations_may() -> None:
    """Sixteen rows of 7.8 GB each: two have room in a quarter of the memory, and one in 9 GB."""
    peak = Training(ADAPTED, rows=16, longest=1024, mixed=True).peak(GPU)
    row = 1024 * 32 * (15 * 4096 + 4 * 14336) * 2
    assert peak.activations == 2 * row + 3 * 4 * 2**24
    less = Training(ADAPTED, rows=16, longest=1024, mixed=True, activation_memory=9 * 10**9).peak(GPU)
    assert less.activations == row + 3 * 4 * 2**24


def test_parts_on_a_cpu_leave_gaps() -> None:
    """Of four rows of 400 MB two go together in 1 GB, and nearly a third of them stays while the next two come."""
    cpu = dataclasses.replace(GPU, is_cpu=True)
    layers = LayerSizes(layers=1, width=10, kept=1000)
    small = dataclasses.replace(ADAPTED, itemsize=4, vocabulary=0, layers=layers)
    peak = Training(small, rows=4, longest=100_000).peak(cpu)
    assert peak.activations == 1.3 * 2 * 100_000 * 1000 * 4
    assert Training(small, rows=2, longest=100_000).peak(cpu).activations == 2 * 100_000 * 1000 * 4


def test_row_that_is_too_long_is_computed_again() -> None:
    """32 inputs of layers and one layer, in place of 32 layers."""
    peak = Training(ADAPTED, rows=1, longest=8192, mixed=True).peak(devices_named("1x24"))
    assert peak.activations == 8192 * (15 * 4096 + 4 * 14336 + 32 * 4096) * 2 + 3 * 4 * 2**24


def test_eight_billion_on_eight_gpus_of_80_gb() -> None:
    """All weights do not fit into one of them, and do where they are split over all."""
    whole = Training(EIGHT_BILLION, rows=4, longest=1024, mixed=True, processes=8)
    assert not fits(whole, devices_named("8x80"))
    assert what_helps(whole, devices_named("8x80")) == "trainer.strategy: fsdp2 over 8 devices"
    assert fits(dataclasses.replace(whole, shards=8), devices_named("8x80"))


def test_eight_billion_on_one_gpu_of_24_gb() -> None:
    """An adapter on bfloat16 fits; on float32 it does not, and the sentence says what would."""
    device = devices_named("1x24")
    adapter = Training(ADAPTED, rows=2, longest=1024, mixed=True)
    assert fits(adapter, device)
    in_float32 = dataclasses.replace(adapter, size=dataclasses.replace(ADAPTED, itemsize=4))
    assert not fits(in_float32, device)
    assert what_helps(in_float32, device) == "base_dtype: bfloat16"
    whole = Training(EIGHT_BILLION, rows=2, longest=1024, mixed=True)
    assert what_helps(whole, device) == "an adapter (lora, no all_weights) with base_dtype: bfloat16"


def test_nothing_helps_a_model_that_is_far_too_large() -> None:
    huge = dataclasses.replace(ADAPTED, parameters=4 * 10**11)
    assert what_helps(Training(huge, rows=1, longest=128), devices_named("1x24")) is None


def test_probe_keeps_gradients_of_references_that_have_room() -> None:
    """Two moments, eight copies, and one for each of 64 references."""
    peak = Scoring(ADAPTED, longest=512, batch_tokens=4096, references=64, gradients=True).peak(GPU)
    assert peak.trained == (2 + 8 + 64) * 42 * 10**6 * 4
    plain = Scoring(ADAPTED, longest=512, batch_tokens=4096).peak(GPU)
    assert plain.trained == 0


@pytest.mark.parametrize(("parallel", "whether"), [(1, False), (2, True)])
def test_vllm_over_two_gpus(parallel: int, whether: bool) -> None:
    """16 GB of weights and 4096 tokens of 131 kB want more than 0.9 of 17.6 GB."""
    asked = Generation(ADAPTED, batch_tokens=4096, parallel=parallel, share=0.9)
    assert fits(asked, devices_named("2x18")) is whether


def test_remedy_of_generation() -> None:
    asked = Generation(dataclasses.replace(ADAPTED, itemsize=4), batch_tokens=4096, share=0.9)
    assert what_helps(asked, devices_named("1x24")) == "base_dtype: bfloat16"
