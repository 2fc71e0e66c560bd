"""Work in two processes that can talk to each other."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import distributed


def run_rank(rank: int, directory: Path, work: Callable[[int], Any]) -> None:
    """One of two processes: what it finds goes into a file."""
    store = f"file://{directory / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    (directory / f"{rank}.json").write_text(json.dumps(work(rank)))
    distributed.destroy_process_group()


def on_two_ranks(directory: Path, work: Callable[[int], Any]) -> list[Any]:
    """What the work is on each rank. Forked, because importing the libraries anew would take most of the time."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_rank, args=(rank, directory, work)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]
