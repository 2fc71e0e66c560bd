"""`python -m montessori_pl` is the command `montessori-pl`: the entry point, which hands over to the subcommands."""

import os
import sys
from importlib import import_module

from montessori_pl.cli.common import DEBUG, show_on_any_terminal
from montessori_pl.processes.stop import STOP

BESIDE = {name: f"montessori_pl.cli.{name}" for name in ("compare", "export", "init", "report", "verify")}
"""Commands beside `fit`; all but `init` go without the seconds that importing it takes. Each module has a `main`."""
SPIN_COUNT = 20_000
"""How often a thread of PyTorch's looks for the others before it sleeps: tens of microseconds. OpenMP's default of
300,000 is milliseconds of a core for every operation in which another process has taken the other core; see
`benchmarks/waiting_threads.py`."""


def main(arguments: list[str] | None = None) -> None:
    """The program.

    Args:
        arguments: the command line without the program's name; none takes the process's own.
    """
    show_on_any_terminal()
    # A notebook's kernel names a way of its own for figures, which may not be installed here: we draw into files.
    os.environ["MPLBACKEND"] = "agg"
    if not sys.stderr.isatty():  # libraries' bars: in a log file every step of them would stay
        os.environ.setdefault("TQDM_DISABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when PyTorch is loaded, which is later
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    given = sys.argv[1:] if arguments is None else arguments
    command = next((place for place, argument in enumerate(given) if argument != DEBUG), 0)
    beside = BESIDE.get(given[command]) if given else None
    with STOP.handled(resumes=beside is None):
        if beside is not None:
            import_module(beside).main([*given[:command], *given[command + 1 :]])
        else:
            from montessori_pl.cli.fit import main as fit

            fit(arguments)


if __name__ == "__main__":
    main()
