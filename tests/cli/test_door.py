"""What the program settles before any library is imported, for those that it will import."""

import os
import subprocess
import sys

import pytest

BEGIN = """
from montessori_pl.__main__ import main
try:
    main(["verify", "--help"])
except SystemExit:
    pass
"""


def begun(then: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Let a process come in by the door, into a pipe, and do this."""
    env = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | environment
    return subprocess.run([sys.executable, "-c", BEGIN + then], capture_output=True, text=True, check=True, env=env)


@pytest.mark.parametrize(("asked", "shown"), [({}, False), ({"TQDM_DISABLE": ""}, True)])
def test_no_bars_of_libraries_in_a_log_file(asked: dict[str, str], shown: bool) -> None:
    """Unless a user wants them there."""
    done = begun("from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='reading'): pass", **asked)
    assert ("reading" in done.stderr) is shown


def test_a_notebook_that_draws_by_what_is_not_installed_here() -> None:
    done = begun("import matplotlib.pyplot; print('drawn')", MPLBACKEND="module://no_such_package.backend")
    assert done.stdout.endswith("drawn\n")
