"""What a person sees while a recipe runs: one live line for the stage, or, in a log file, a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from montessori_pl.run_directory.console import PlainConsole

SECONDS_BETWEEN_LINES = 30.0
"""How often progress is written where the output is not a terminal."""
SECONDS_BETWEEN_TICKS = 10.0
"""How often the time spent is kept: what a kill can take from the clock."""


class Progress:
    """Progress of one stage.

    Args:
        show: called with what is done and the total (none when it is not known).
        tick: called every few seconds with the seconds since the last call.
    """

    def __init__(self, show: Callable[[float, float | None], None], tick: Callable[[float], None]) -> None:
        self._show, self._tick = show, tick
        self._last_tick = time.monotonic()
        self.done: float = 0
        self.total: float | None = None

    def start(self, total: float | None, done: float = 0) -> None:
        """Say how much there is to do, and how much was done in earlier sessions."""
        self.total, self.done = total, done
        self._show(self.done, self.total)

    def advance(self, amount: float = 1) -> None:
        """Say that more has been done."""
        self.done += amount
        self._show(self.done, self.total)
        if time.monotonic() - self._last_tick > SECONDS_BETWEEN_TICKS:
            self.tick()

    def tick(self) -> None:
        """Keep the time that has passed."""
        now = time.monotonic()
        self._tick(now - self._last_tick)
        self._last_tick = now


class ConsoleDisplay:
    """Shows stages on a console.

    Args:
        console: a terminal gets a live line with rate and time left, anything else plain lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole()

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text)

    @contextmanager
    def stage(self, title: str, tick: Callable[[float], None]) -> Iterator[Progress]:
        """Show a stage while the block runs."""
        show, close = self._live(title) if self.console.is_terminal else self._lines(title)
        progress = Progress(show, tick)
        try:
            yield progress
        finally:
            close()
            progress.tick()

    def _live(self, title: str) -> tuple[Callable[[float, float | None], None], Callable[[], None]]:
        columns = [
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        live = RichProgress(*columns, console=self.console, transient=True)
        task = live.add_task(title, total=None, rate="")
        live.start()

        def show(done: float, total: float | None) -> None:
            speed = live.tasks[0].speed
            live.update(task, completed=done, total=total, rate=f"{speed:.3g}/s" if speed else "")

        return show, live.stop

    def _lines(self, title: str) -> tuple[Callable[[float, float | None], None], Callable[[], None]]:
        start = last = time.monotonic()
        first: float | None = None  # what earlier sessions had done does not count for the rate

        def show(done: float, total: float | None) -> None:
            nonlocal last, first
            first = done if first is None else first
            now = time.monotonic()
            if now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            rate = (done - first) / (now - start)
            left = f", {(total - done) / rate:.0f} s left" if total is not None and rate > 0 else ""
            self.say(f"  {title}: {done:g}{f' of {total:g}' if total is not None else ''}, {rate:.3g}/s{left}")

        return show, lambda: None


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
