"""The processes of a run end together."""

import signal
from pathlib import Path

import pytest
from small_programs import Ended, Program

BODY = """
rank = int(os.environ["RANK"])
with STOP.handled(resumes=True):
    with (peers := Peers(Path(sys.argv[1]))).together():
        STOP.place = "iteration_1/trained"
        ready()
        {}
"""
SLEEPS = "time.sleep(60)"
LISTENING = "while not (Path(sys.argv[1]) / '.processes').exists(): time.sleep(0.01)"
NAMED = {"MONTESSORI_PL_SESSION": "one", "WORLD_SIZE": "3"}


def start(root: Path, *bodies: str, **environment: str) -> list[Program]:
    """A run of several processes, each of which does something else."""
    return [
        Program(BODY.format(body), [str(root)], {**NAMED, **environment, "RANK": str(number)})
        for number, body in enumerate(bodies)
    ]


def ends(programs: list[Program]) -> list[Ended]:
    """Wait for all."""
    return [program.end() for program in programs]


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_one_is_killed(killed: int, tmp_path: Path) -> None:
    """The first one says who it was, and the others, that it was the first."""
    programs = [program.ready() for program in start(tmp_path, SLEEPS, SLEEPS, SLEEPS)]
    programs[killed].process.send_signal(signal.SIGKILL)
    ended = ends(programs)
    assert [one.status for one in ended] == [-9 if number == killed else 1 for number in range(3)]
    who_speaks = [0] if killed else [1, 2]
    for number, one in enumerate(ended):
        said = (
            f"error: process {killed} of this run ended without a word, as by SIGKILL or for lack of memory; stopped "
            "in iteration_1/trained; the same command goes on from here\n"
        )
        assert one.err == (said if number in who_speaks else "")


@pytest.mark.parametrize("asked", [0, 1])
def test_one_gets_a_signal(asked: int, tmp_path: Path) -> None:
    """All end by it, and the first one says so."""
    programs = [program.ready() for program in start(tmp_path, SLEEPS, SLEEPS, SLEEPS)]
    programs[asked].process.send_signal(signal.SIGTERM)
    ended = ends(programs)
    assert [one.status for one in ended] == [143] * 3
    said = "stopped by SIGTERM in iteration_1/trained; the same command goes on from here\n"
    assert [one.err for one in ended] == [said, "", ""]


@pytest.mark.parametrize(("error", "status"), [("ValueError", 2), ("RuntimeError", 1)])
def test_one_fails(error: str, status: int, tmp_path: Path) -> None:
    """As by a mistake that only one of them finds, on its own machine.

    Its own end is what becomes of the error further up; where that takes long, the run's end overtakes it.
    """
    ended = ends(start(tmp_path, SLEEPS, f"raise {error}('no file here')"))
    assert ended[0].status == status
    assert "error: process 1 of this run failed: no file here; stopped in iteration_1/trained" in ended[0].err
    assert ended[1].status == status or (ended[1].status == 1 and f"{error}: no file here" in ended[1].err)


def test_the_first_fails(tmp_path: Path) -> None:
    """It has said why: the others say nothing, also one that comes when it has gone."""
    first = start(tmp_path, "raise ValueError('no file here')")[0]
    assert "no file here" in first.end().err
    second = Program(BODY.format(SLEEPS), [str(tmp_path)], {**NAMED, "RANK": "1"}).end()
    assert (second.status, second.err) == (2, "")


def test_a_collective_fails_because_another_has_ended(tmp_path: Path) -> None:
    """What is shown is the end of the other, and not what came of it here."""
    other = "raise RuntimeError('connection closed by peer')"
    programs = start(tmp_path, SLEEPS, f"time.sleep(1); {other}")
    programs[0].ready().process.send_signal(signal.SIGTERM)
    ended = ends(programs)
    assert [one.status for one in ended] == [143, 143]
    assert "closed by peer" not in ended[1].err


def test_success_ends_nobody(tmp_path: Path) -> None:
    ended = ends(start(tmp_path, "pass", "time.sleep(1)", "time.sleep(1)"))
    assert [(one.status, one.err) for one in ended] == [(0, "")] * 3


@pytest.mark.parametrize("name", ["none", "job-1"])
def test_what_an_earlier_start_has_left_says_nothing(name: str, tmp_path: Path) -> None:
    """Under torchrun: without a name of its own its parent names a start, and a name may be that of the next start."""
    torchrun = {"MONTESSORI_PL_SESSION": "", "SLURM_JOB_ID": "", "TORCHELASTIC_RUN_ID": name}
    fails = "peers.open(); time.sleep(1); raise ValueError('earlier')"
    ends([program.ready() for program in start(tmp_path, fails, SLEEPS, **torchrun)])
    # The second process is there first: it neither ends with the first one of the earlier start, nor goes in before it
    # is let in.
    waits = "peers.wait_until_open(); print('in', time.time())"
    second = Program(BODY.format(waits), [str(tmp_path)], {**NAMED, **torchrun, "RANK": "1"}).ready()
    first = Program(
        BODY.format("time.sleep(3); print('opens', time.time()); peers.open(); time.sleep(2)"),
        [str(tmp_path)],
        {**NAMED, **torchrun, "RANK": "0"},
    )
    ended = [second.end(), first.end()]
    assert [one.status for one in ended] == [0, 0], ended
    went_in, opened = (float(one.out.split()[-1]) for one in ended)
    assert went_in >= opened


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """Also one that has no file yet, and does not listen to SIGTERM."""
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    lines = f"""
with STOP.handled(resumes=True):
    together = Peers(Path(sys.argv[1]))
    with together.together():
        together.before_children()
        together.watch_children([subprocess.Popen([sys.executable, "-c", {child!r}])])
        time.sleep(60)
"""
    program = Program(lines, [str(tmp_path)], {"RANK": "0", "WORLD_SIZE": "1"}).ready()
    ended = program.end(signal.SIGTERM)  # which comes back when the child has closed its output too
    assert ended.status == 143
    assert ended.seconds < 30


@pytest.mark.parametrize(
    ("last", "how"),
    [("raise SystemExit(3)", "ended with status 3"), ("os.kill(os.getpid(), 9)", "was ended by SIGKILL")],
)
def test_a_child_ends_before_it_has_a_file(last: str, how: str, tmp_path: Path) -> None:
    lines = f"""
with STOP.handled(resumes=True):
    together = Peers(Path(sys.argv[1]))
    with together.together():
        together.before_children()
        together.watch_children([subprocess.Popen([sys.executable, "-c", "import os; {last}"])])
        time.sleep(60)
"""
    ended = Program(lines, [str(tmp_path)], {"RANK": "0", "WORLD_SIZE": "1"}).end()
    assert ended.status == 1
    assert f"error: process 1 of this run {how}; stopped" in ended.err


def test_one_process_leaves_nothing(tmp_path: Path) -> None:
    """It has nobody to tell."""
    ended = Program(BODY.format("pass"), [str(tmp_path)], {"RANK": "0", "WORLD_SIZE": "1"}).end()
    assert ended.status == 0
    assert list(tmp_path.iterdir()) == []
