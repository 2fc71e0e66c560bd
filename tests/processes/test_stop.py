"""A signal ends a process in order, whatever it is doing."""

import signal
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import pytest
from small_programs import Program

SLEEPS = """
with STOP.handled(resumes=True):
    STOP.place = "iteration_1/trained"
    ready()
    time.sleep(60)
"""
SAID = "stopped by {} in iteration_1/trained; the same command goes on from here\n"
SOON = 30.0
"""Seconds, of a busy machine; the programs would go on for a minute."""


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT, SIGHUP, SIGUSR1])
def test_each_signal_has_its_status(signum: signal.Signals) -> None:
    ended = Program(SLEEPS).ready().end(signum)
    assert (ended.status, ended.err) == (128 + signum, SAID.format(signum.name))


def test_without_a_stage() -> None:
    """As while the program imports; and where there is nothing to go on with."""
    lines = "with STOP.handled(resumes={}):\n    ready()\n    time.sleep(60)"
    ended = [Program(lines.format(resumes)).ready().end(SIGTERM) for resumes in (True, False)]
    assert [one.err for one in ended] == [
        "stopped by SIGTERM; the same command goes on from here\n",
        "stopped by SIGTERM\n",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "busy",
    [
        pytest.param("hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", id="native code"),
        pytest.param(
            "while True:\n        try:\n            time.sleep(60)\n        except BaseException:\n            pass",
            id="code that swallows what is raised",
        ),
        pytest.param("atexit.register(time.sleep, 60)", id="its own end"),
        pytest.param("STOP.at_the_end.append(lambda: 1 / 0); time.sleep(60)", id="an end that fails"),
        pytest.param("threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)", id="a thread"),
        pytest.param(
            "class Last:\n        def __del__(self):\n            time.sleep(60)\n    last = Last()\n    del last",
            id="a finalizer, which loses what is raised",
        ),
    ],
)
def test_whatever_it_is_doing(busy: str) -> None:
    lines = f"with STOP.handled(resumes=True):\n    STOP.place = 'iteration_1/trained'\n    ready()\n    {busy}\n"
    ended = Program(lines + "    time.sleep(60)").ready().end(SIGTERM)
    assert ended.status == 143
    assert ended.err.count(SAID.format("SIGTERM")) == 1
    assert ended.seconds < SOON


def test_nothing_is_raised_while_it_is_postponed() -> None:
    """A training goes on to the end of its step."""
    lines = """
with STOP.handled(resumes=True):
    stop.PATIENCE, stop.LIMIT = 30, 40
    with STOP.postponed():
        ready()
        while STOP.reason is None:
            time.sleep(0.01)
        time.sleep(0.2)
        print("saved")
        STOP.check()
        print("not reached")
"""
    ended = Program(lines).ready().end(SIGTERM)
    assert (ended.status, ended.out) == (143, "saved\n")


def test_a_step_that_takes_too_long_is_dropped() -> None:
    lines = """
with STOP.handled(resumes=True):
    stop.LIMIT = 40
    try:
        with STOP.postponed():
            ready()
            time.sleep(60)
    finally:
        print("dropped")
"""
    ended = Program(lines).ready().end(SIGTERM)
    assert (ended.status, ended.out) == (143, "dropped\n")
    assert ended.seconds < SOON


def test_the_last_step_of_a_training() -> None:
    """It ends without having looked, and what follows does not begin."""
    lines = """
with STOP.handled(resumes=True):
    with STOP.postponed():
        ready()
        while STOP.reason is None:
            time.sleep(0.01)
    print("not reached")
"""
    ended = Program(lines).ready().end(SIGTERM)
    assert (ended.status, ended.out) == (143, "")


def test_who_asks_twice_does_not_wait() -> None:
    lines = """
with STOP.handled(resumes=True):
    stop.PATIENCE = stop.LIMIT = 60
    with STOP.postponed():
        ready()
        time.sleep(60)
"""
    ended = Program(lines).ready().end(SIGINT, SIGINT, between=1.3)
    assert ended.status == 130
    assert ended.seconds < SOON


def test_the_same_signal_from_two_sides_is_one() -> None:
    """A terminal and a launcher both send it."""
    lines = """
with STOP.handled(resumes=True):
    stop.PATIENCE = stop.LIMIT = 60
    with STOP.postponed():
        ready()
        while STOP.reason is None:
            time.sleep(0.01)
        time.sleep(1.5)
        print("saved")
"""
    ended = Program(lines).ready().end(SIGTERM, SIGTERM, SIGINT)
    assert ended.status in (143, 130)
    assert ended.out == "saved\n"


def test_a_signal_of_which_the_thread_learns_late_is_one() -> None:
    """On a busy machine the main thread may have handled it seconds before; the others must be told all the same."""
    lines = """
import select
wait = select.select

def late(*args):
    found = wait(*args)
    if found[0]:
        time.sleep(1.5)
    return found

select.select = late
with STOP.handled(resumes=True):
    stop.PATIENCE = stop.LIMIT = 60
    STOP.when_asked.append(lambda: print("told"))
    with STOP.postponed():
        ready()
        while STOP.reason is None:
            time.sleep(0.01)
        time.sleep(2.5)
        print("saved")
"""
    ended = Program(lines).ready().end(SIGUSR1)
    assert (ended.status, ended.out) == (138, "told\nsaved\n")


def test_what_was_ignored_stays_ignored() -> None:
    """`nohup` ignores SIGHUP, a script's `&` ignores SIGINT."""
    program = Program(SLEEPS, ignored=[SIGHUP, SIGINT]).ready()
    program.process.send_signal(SIGHUP)
    program.process.send_signal(SIGINT)
    assert program.end(SIGTERM).status == 143


def test_an_error_that_the_signal_has_caused_is_not_shown() -> None:
    lines = """
with STOP.handled(resumes=True):
    ready()
    try:
        time.sleep(60)
    except Stopped:
        raise RuntimeError("the other side has closed the connection")
"""
    ended = Program(lines).ready().end(SIGTERM)
    assert (ended.status, ended.err) == (143, "stopped by SIGTERM; the same command goes on from here\n")


def test_a_forked_child_ends_alone() -> None:
    """Its signals are not its parent's: a worker of a data loader is ended by SIGTERM."""
    lines = """
with STOP.handled(resumes=True):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(1)
    os.kill(child, 15)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15
    time.sleep(0.3)
    ready()
"""
    assert Program(lines).ready().end().status == 0


def test_another_thread_asks() -> None:
    """The main thread waits for a lock, from which only a signal wakes it."""
    lines = """
with STOP.handled(resumes=True):
    STOP.place = "iteration_1/trained"
    reason = Reason("error: process 1 of this run failed: no memory; stopped", 1)
    threading.Timer(0.3, STOP.ask, args=(reason,)).start()
    lock = threading.Lock()
    lock.acquire()
    try:
        lock.acquire()
    finally:
        print("left")
"""
    ended = Program(lines).end()
    assert (ended.status, ended.out) == (1, "left\n")
    assert ended.err == (
        "error: process 1 of this run failed: no memory; stopped in iteration_1/trained; the same command goes on from "
        "here\n"
    )


def test_signals_are_left_as_they_were() -> None:
    lines = """
import signal
before = [signal.getsignal(one) for one in stop.SIGNALS]
with STOP.handled(resumes=True):
    assert [signal.getsignal(one) for one in stop.SIGNALS] != before
assert [signal.getsignal(one) for one in stop.SIGNALS] == before
assert signal.set_wakeup_fd(-1) == -1
STOP.ask(Reason("nobody listens", 1))
with STOP.handled(resumes=True):
    pass
"""
    ended = Program(lines).end()
    assert (ended.status, ended.err) == (0, "")


def test_a_finalizer_swallows_nothing() -> None:
    """Python prints what is raised in `__del__` and goes on."""
    lines = """
class Slow:
    def __del__(self):
        ready()
        time.sleep(1)

with STOP.handled(resumes=False):
    slow = Slow()
    del slow
    time.sleep(60)
"""
    ended = Program(lines).ready().end(signal.SIGTERM)
    assert (ended.status, ended.err) == (143, "stopped by SIGTERM\n")
    assert ended.seconds < 1
