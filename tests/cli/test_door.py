"""What the program settles before any library is imported, for those that it will import."""

import os
import subprocess
import sys

import pytest

from montessori_pl.__main__ import SPIN_COUNT

BEGIN = """
from montessori_pl.__main__ import main
try:
    main(["verify", "--help"])
except SystemExit:
    pass
"""


def begun(then: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Let a process come in by the door, into a pipe, and do this."""
    own = ("TQDM_DISABLE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    env = {name: value for name, value in os.environ.items() if name not in own} | environment
    return subprocess.run([sys.executable, "-c", BEGIN + then], capture_output=True, text=True, check=True, env=env)


@pytest.mark.parametrize(("asked", "shown"), [({}, False), ({"TQDM_DISABLE": ""}, True)])
def test_no_bars_of_libraries_in_a_log_file(asked: dict[str, str], shown: bool) -> None:
    """Unless a user wants them there."""
    done = begun("from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='reading'): pass", **asked)
    assert ("reading" in done.stderr) is shown


def test_a_notebook_that_draws_by_what_is_not_installed_here() -> None:
    done = begun("import matplotlib.pyplot; print('drawn')", MPLBACKEND="module://no_such_package.backend")
    assert done.stdout.endswith("drawn\n")


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch comes with another OpenMP there")
@pytest.mark.parametrize(
    ("asked", "turns"),
    [({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_how_long_threads_wait_before_they_sleep(asked: dict[str, str], turns: str) -> None:
    """What OpenMP itself says when PyTorch loads it; what a user has said stands."""
    done = begun("import torch", OMP_DISPLAY_ENV="verbose", **asked)
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
