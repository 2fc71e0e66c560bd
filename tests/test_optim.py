"""Learning-rate schedules at points computed by hand, and settings that contradict themselves."""

import math
from typing import Any

import pytest
import torch

from montessori_pl.optim import TrainingSettings


def rates(num_steps: int, **settings: Any) -> list[float]:
    """The learning rate of each step for a peak of 1, and the one after the last."""
    training = TrainingSettings(lr=1.0, **settings)
    optimizer = training.optimizer([torch.nn.Parameter(torch.zeros(1))])
    scheduler = training.scheduler(optimizer, num_steps)
    found = []
    for _ in range(num_steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_linear_warmup_rises_over_the_whole_run_and_peaks_at_its_end() -> None:
    """Four steps: k/4 at step k; the peak, which the influence probe takes over, stands behind the last one."""
    assert rates(4, schedule="linear_warmup") == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_linear_falls_to_zero() -> None:
    assert rates(4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_constant_stays() -> None:
    assert rates(3, schedule="constant") == [1, 1, 1, 1]


def test_wsd_warms_up_stays_and_decays() -> None:
    """Ten steps by shares .1/.5/.4: one of warm-up from 0, five at the peak, four along half a cosine.

    The decay begins at step 6; at a share p of it the rate is (1 + cos(pi p)) / 2: 1, .8536, .5, .1464, 0.
    """
    low, high = (1 - math.sqrt(0.5)) / 2, (1 + math.sqrt(0.5)) / 2
    assert rates(10, schedule="wsd") == pytest.approx([0, 1, 1, 1, 1, 1, 1, high, 0.5, low, 0])


def test_wsd_ends_at_the_smallest_ratio() -> None:
    """With .2 everything between 0 and 1 is squeezed between .2 and 1: half of the way is .6."""
    found = rates(10, schedule="wsd", min_lr_ratio=0.2)
    assert found[8] == pytest.approx(0.6)
    assert found[10] == pytest.approx(0.2)
    assert found[1:7] == pytest.approx([1.0] * 6)


def test_wsd_of_a_run_too_short_for_its_shares() -> None:
    """Two steps: no whole step of warm-up, one at the peak, and one of decay."""
    assert rates(2, schedule="wsd") == pytest.approx([1, 1, 0])
    assert rates(1, schedule="wsd") == pytest.approx([1, 0])


def test_optimizer_has_the_settings() -> None:
    training = TrainingSettings(lr=0.5, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.25)
    (group,) = training.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.8, 0.9), 1e-3, 0.25)
    assert TrainingSettings(lr=1, epochs=3, accumulate_grad_batches=2).trainer_arguments() == {
        "max_epochs": 3,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
    }


def test_shares_of_wsd_are_checked() -> None:
    with pytest.raises(ValueError, match=r"wsd\[0\]: expected float >= 0 and <= 1, found -0\.1"):
        TrainingSettings(lr=1, wsd=(-0.1, 0.6, 0.5))
    with pytest.raises(ValueError, match=r"the shares of wsd must sum to 1, found \("):
        TrainingSettings(lr=1, wsd=(0.1, 0.5, 0.5))
    TrainingSettings(lr=1, schedule="linear", wsd=(0.1, 0.5, 0.5))


@pytest.mark.parametrize(
    "name", ["epochs", "batch_size", "accumulate_grad_batches", "max_length", "checkpoint_every_n_steps"]
)
def test_counts_are_checked(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected int >= 1.*, found 0"):
        TrainingSettings(lr=1, **settings)
