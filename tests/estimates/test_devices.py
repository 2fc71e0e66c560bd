"""Devices by name, and this machine's speed."""

import pytest

from montessori_pl.estimates.devices import CONTEXT, GIB, GPUS, devices_named, this_machine


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("H100", "H100", 1),
        ("8xH100", "H100", 8),
        ("h100X8", "H100", 8),
        ("4090", "4090", 1),
        ("2x4090", "4090", 2),
        ("4090x2", "4090", 2),
        ("4xA100-40", "A100-40", 4),
    ],
)
def test_names(text: str, name: str, count: int) -> None:
    found = devices_named(text)
    assert (found.name, found.count, found.memory) == (name, count, GPUS[name].memory)


@pytest.mark.parametrize(("text", "like", "count"), [("1x24", "4090", 1), ("8x80", "A100", 8), ("1x48GB", "L40S", 1)])
def test_gigabytes(text: str, like: str, count: int) -> None:
    """As fast as the smallest known one of that size; CUDA takes its part."""
    found = devices_named(text)
    assert (found.flops, found.count) == (GPUS[like].flops, count)
    assert found.memory == int(text.partition("x")[2].removesuffix("GB")) * 0.99 * GIB - CONTEXT


@pytest.mark.parametrize("text", ["x", "8x", "0xH100", "H1000", "1x2", "24", "1x2x3", "-1xH100", "1x999", "8 xH100"])
def test_what_names_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="write their number and name, such as 8xH100"):
        devices_named(text)


def test_this_machine_has_a_speed() -> None:
    found = this_machine()
    assert found.flops > 1e8
    assert found.bandwidth > 1e8
    assert found.memory > 1e8
