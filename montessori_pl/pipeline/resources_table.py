"""Time and memory on the console: a row for each step, the machine, and what does not fit."""

from rich.console import Console
from rich.table import Table

from montessori_pl.estimates.devices import Device
from montessori_pl.estimates.model_size import ModelSize, named
from montessori_pl.estimates.seconds import duration
from montessori_pl.pipeline.resources import Resources, RunPlan


def print_resources(plan: RunPlan, console: Console) -> None:
    """Print what the steps of a run take on its machine.

    Args:
        plan: of the run.
        console: where to.
    """
    table = Table(title="time and memory", title_justify="left")
    table.add_column("stage")
    for name in ("operations", "time", "peak memory,\none device"):
        table.add_column(name, justify="right")
    for key, one in plan.resources.items():
        table.add_row(key, _operations(one.compute.flops), duration(one.compute.seconds), _memory(one))
    table.add_section()
    flops = sum(one.compute.flops for one in plan.resources.values())
    table.add_row("left to do", _operations(flops), duration(plan.seconds), "")
    console.print()
    console.print(table)
    for sentence in sentences(plan):
        console.print(sentence, soft_wrap=False)


def sentences(plan: RunPlan) -> list[str]:
    """The machine, the models, how it is counted, and each step that does not fit with what would make it fit."""
    models = [f"{name}: {_model(size)}" for name, size in plan.models.items()]
    too_large = [f"warning: {does_not_fit(key, one, plan.device)}" for key, one in plan.too_large().items()]
    return [
        f"On {plan.device.title}. Time is computed, at 30 to 35% of the peak for passes and 60% of the bandwidth for "
        "generation; loading models is left out, and a plan may be wrong by half.",
        *models,
        *too_large,
    ]


def does_not_fit(key: str, one: Resources, device: Device) -> str:
    """Of a step that does not fit how much it needs, and which setting would make it fit."""
    assert one.peak is not None
    helps = f"it would fit with {one.helps}" if one.helps else "no setting makes it fit: take a smaller model"
    return (
        f"{key} does not fit: it needs {size_of(one.peak.total)}, most of it {one.peak.largest()}, and {device.title} "
        f"has {size_of(device.memory)}; {helps}"
    )


def size_of(number: float) -> str:
    """Bytes as GB."""
    return f"{number / 1e9:.1f} GB"


def _model(size: ModelSize) -> str:
    trained = f"an adapter of {named(size.trained)} is trained" if size.adapter else "all of them are trained"
    return (
        f"{named(size.parameters)} parameters, {trained}; {size_of(size.weights)} of weights, "
        f"{size.cache * size.itemsize / 1e3:.0f} kB of keys and values for each token"
    )


def _memory(one: Resources) -> str:
    if one.peak is None:
        return "-"
    return size_of(one.peak.total) + ("" if one.fits else "\ndoes not fit")


def _operations(flops: float) -> str:
    return f"{flops:.1e}" if flops else "-"
