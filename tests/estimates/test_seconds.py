"""Operations and seconds, by hand."""

import dataclasses

import pytest

from montessori_pl.estimates.devices import Device
from montessori_pl.estimates.model_size import ModelSize
from montessori_pl.estimates.seconds import COMPUTED, GENERATED, READ, generated, passed, trained_on

GPU = Device("a GPU", memory=80e9, flops=1e15, bandwidth=1e12)
SIZE = ModelSize(
    backbone="a",
    parameters=10**9,
    multiplied=10**9,
    trained=10**9,
    itemsize=2,
    cache=10_000,
    vocabulary=1000,
    layers=None,
    adapter=False,
)


def test_six_n_d_where_all_weights_are_trained() -> None:
    assert trained_on(SIZE, 1000, GPU, 1).flops == 6e12
    assert trained_on(SIZE, 1000, GPU, 1, again=True).flops == 8e12
    assert trained_on(SIZE, 1000, GPU, 4).seconds == pytest.approx(6e12 / (4 * 1e15 * COMPUTED[False]))


def test_gradients_of_each_example_take_longer_on_a_cpu() -> None:
    cpu = dataclasses.replace(GPU, is_cpu=True)
    assert passed(SIZE, 1000, cpu, 2).seconds == pytest.approx(2e12 / (2 * 1e15 * 0.3))
    assert passed(SIZE, 1000, cpu, 2, gradients=True).seconds == pytest.approx(2e12 / (2 * 1e15 * 0.15))


def test_four_n_d_under_an_adapter() -> None:
    adapted = dataclasses.replace(SIZE, trained=10**6, adapter=True)
    assert trained_on(adapted, 1000, GPU, 1).flops == 4e12 + 2e9


def test_generation_reads_the_weights_at_each_step() -> None:
    """100 tokens one after another read 2 GB each; of 64 sequences together, each step reads their cache as well."""
    alone = generated(SIZE, 0, 100, at_once=1, context=0, device=GPU, compiled=True)
    assert alone.seconds == pytest.approx(100 * 2e9 / (1e12 * READ))
    many = generated(SIZE, 0, 6400, at_once=64, context=500, device=GPU, compiled=True)
    assert many.seconds == pytest.approx(100 * (2e9 + 64 * 500 * 10_000 * 2) / (1e12 * READ))


def test_generation_of_very_many_is_bound_by_computing() -> None:
    found = generated(SIZE, 0, 10**6, at_once=10_000, context=0, device=GPU, compiled=True)
    assert found.seconds == pytest.approx(2e9 * 10**6 / (1e15 * GENERATED[False]))
    assert passed(SIZE, 1000, GPU, 1).flops == 2e12
