"""What a person sees while a recipe runs: live lines for the recipe and its stage, or plain ones now and then."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from montessori_pl.run_directory.console import PlainConsole

SECONDS_BETWEEN_LINES = 30.0
"""How often progress is written where the output is not a terminal."""
SECONDS_BETWEEN_TICKS = 10.0
"""How often the time spent is kept: what a kill can take from the clock."""
SECONDS_BETWEEN_LOOKS = 1.0
"""How often a terminal's line on the recipe is made anew."""
NOTEBOOK = "JPY_PARENT_PID"
"""Set in every process that a Jupyter kernel starts."""


class Progress:
    """Progress of one stage.

    Args:
        show: called with this object whenever there is something new.
        tick: called every few seconds with the seconds since the last call.
    """

    def __init__(
        self,
        show: "Callable[[Progress], None]" = lambda progress: None,
        tick: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._show, self._tick = show, tick
        self._last_tick = time.monotonic()
        self.done: float = 0
        self.total: float | None = None
        self.note = ""
        """What else is worth knowing of the stage by now, in a few words; empty for nothing."""
        self.cost = 0.0
        """US dollars that it has cost so far."""

    def start(self, total: float | None, done: float = 0, note: str = "", cost: float = 0.0) -> None:
        """Say how much there is to do (none when it is not known), and how much was done in earlier sessions."""
        self.total, self.done, self.note, self.cost = total, done, note, cost
        self._show(self)

    def advance(self, amount: float = 1, note: str = "", cost: float = 0.0) -> None:
        """Say that more has been done; note and cost are of the whole stage."""
        self.done, self.note, self.cost = self.done + amount, note, cost
        self._show(self)
        if time.monotonic() - self._last_tick > SECONDS_BETWEEN_TICKS:
            self.tick()

    def tick(self) -> None:
        """Keep the time that has passed."""
        passed = self.since_tick
        self._last_tick += passed
        self._tick(passed)

    @property
    def since_tick(self) -> float:
        """Seconds that have passed and are not kept yet."""
        return time.monotonic() - self._last_tick

    @property
    def share(self) -> float:
        """What is done of the whole, from 0 to 1; 0 where the whole is not known."""
        return min(1.0, self.done / self.total) if self.total else 0.0


class ConsoleDisplay:
    """Shows stages on a console.

    Args:
        console: a terminal gets live lines, anything else plain ones without control characters.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole()

    @property
    def is_live(self) -> bool:
        """Whether lines can be drawn again in place. A notebook's cell is a terminal that knows no way up."""
        return self.console.is_terminal and not self.console.is_dumb_terminal and NOTEBOOK not in os.environ

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    @contextmanager
    def stage(
        self, title: str, tick: Callable[[float], None], of_recipe: Callable[[Progress], str] = lambda progress: ""
    ) -> Iterator[Progress]:
        """Show a stage while the block runs.

        Args:
            title: of the stage.
            tick: as of `Progress`.
            of_recipe: what to say of the whole recipe, given how far the stage is; empty for nothing.
        """
        show, close = self._live(title, of_recipe) if self.is_live else self._lines(title, of_recipe)
        progress = Progress(show, tick)
        if self.is_live:
            show(progress)
        try:
            yield progress
        finally:
            close()
            progress.tick()

    def _live(
        self, title: str, of_recipe: Callable[[Progress], str]
    ) -> tuple[Callable[[Progress], None], Callable[[], None]]:
        live = _LiveLines(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        task = live.add_task(title, total=None, rate="", note="")
        live.start()

        def show(progress: Progress) -> None:
            live.above = live.above or (lambda: of_recipe(progress))
            speed = live.tasks[0].speed
            rate = f"{speed:.3g}/s" if speed else ""
            live.update(task, completed=progress.done, total=progress.total, rate=rate, note=_aside(progress))

        return show, live.stop

    def _lines(
        self, title: str, of_recipe: Callable[[Progress], str]
    ) -> tuple[Callable[[Progress], None], Callable[[], None]]:
        start = last = time.monotonic()
        first: float | None = None  # what earlier sessions had done does not count for the rate

        def show(progress: Progress) -> None:
            nonlocal last, first
            done, total = progress.done, progress.total
            first = done if first is None else first
            now = time.monotonic()
            if now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            rate = (done - first) / (now - start)
            parts = [
                f"{title}: {done:g}{f' of {total:g}' if total is not None else ''}",
                f"{rate:.3g}/s",
                f"{(total - done) / rate:.0f} s left" if total is not None and rate > 0 else "",
                _aside(progress),
            ]
            recipe = of_recipe(progress)
            self.say(f"  {', '.join(filter(None, parts))}{recipe and '; '}{recipe}")

        return show, lambda: None


def _aside(progress: Progress) -> str:
    """What a stage says of itself beside its count."""
    return ", ".join(filter(None, (progress.note, f"${progress.cost:,.2f}" if progress.cost else "")))


class _LiveLines(RichProgress):
    """A bar with a line above it, which is asked for once in a second: it looks at files."""

    above: Callable[[], str] | None = None
    _asked, _text = -math.inf, ""

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None and (now := time.monotonic()) - self._asked >= SECONDS_BETWEEN_LOOKS:
            self._asked, self._text = now, self.above()
        if self._text:
            yield Text(self._text, no_wrap=True, overflow="ellipsis")
        yield from super().get_renderables()


class ProgressCallback(Callback):
    """Reports a trainer's steps as the stage's progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps done by earlier sessions count as done."""
        self.progress.start(float(trainer.estimated_stepping_batches), trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count optimizer steps."""
        self.progress.advance(trainer.global_step - self.progress.done)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count scored examples, all processes together."""
        self.progress.advance(trainer.world_size * len(batch["rows"]))
