"""Replicas of an engine by Ray: the engine's own answers, whoever gives them and whoever dies."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from montessori_pl.cli.fit import main
from montessori_pl.generation import OpenAIBackend, RayBackend, Request, Sampling, TransformersBackend, VLLMBackend
from montessori_pl.generation.ray_backend import _Cluster
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.fingerprint import pinned

TEACHER, STUDENT = ModelSource("classroom/teacher"), ModelSource("classroom/student")
SAMPLED = Sampling(temperature=1.0, top_p=0.9, max_tokens=16)
ENGINE = '''
import os, time
from pathlib import Path

from montessori_pl.generation import TransformersBackend


class Watched(TransformersBackend):
    """Writes down what it is asked, in a process of which number, and does not hurry."""

    asked = Path({asked!r})

    def load(self, source):
        self.note("loads", source.backbone)
        super().load(source)

    def generate(self, requests, sampling):
        self.note(*(str(request.seed) for request in requests))
        time.sleep({seconds})
        {does}
        return super().generate(requests, sampling)

    def note(self, *words):
        with open(self.asked, "a") as file:  # one write, which others do not interrupt
            file.write(" ".join([str(os.getpid()), *words]) + "\\n")
'''


def requests(number: int) -> list[Request]:
    return [
        Request(messages=[{"role": "user", "content": f"first: word {n % 17} of {n % 5}"}], seed=n)
        for n in range(number)
    ]


def alone(number: int, source: ModelSource = STUDENT) -> list[Any]:
    """What the engine answers without Ray."""
    engine = TransformersBackend(device="cpu")
    engine.load(source)
    return engine.generate(requests(number), SAMPLED)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Make an engine as a user would plug one in, by a module of the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(does: str = "", seconds: float = 0.0) -> TransformersBackend:
        name = f"watched_{request.node.name.partition('[')[0]}"
        (tmp_path / f"{name}.py").write_text(
            ENGINE.format(asked=str(tmp_path / "asked.txt"), does=does, seconds=seconds)
        )
        made: TransformersBackend = importlib.import_module(name).Watched(device="cpu")
        return made

    return make


def calls(directory: Path) -> list[tuple[int, list[str]]]:
    """The process of each call of `load` and `generate`, and what it was asked."""
    path = directory / "asked.txt"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(pid), words) for pid, *words in lines]


def asked(directory: Path) -> list[tuple[int, list[str]]]:
    return [(pid, words) for pid, words in calls(directory) if words[0] != "loads"]


def test_refuses_what_has_no_replicas() -> None:
    """Servers are replicated by whoever runs them, and an engine's own copies are counted once."""
    with pytest.raises(ValueError, match=r"an engine that loads a model, found engine OpenAIBackend"):
        RayBackend(OpenAIBackend(base_url="http://localhost:1/v1", api_key_env=None))
    with pytest.raises(ValueError, match=r"found engine RayBackend"):
        RayBackend(RayBackend(TransformersBackend()))
    with pytest.raises(ValueError, match=r"found data_parallel_size 2; set replicas instead"):
        RayBackend(VLLMBackend(data_parallel_size=2))


def test_says_how_to_install_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(ValueError, match=r"RayBackend needs Ray: pip install 'montessori-pl\[ray\]'"):
        RayBackend(TransformersBackend()).check_environment(STUDENT)


def test_a_run_may_change_to_it() -> None:
    """It is pinned as the engine of which it makes replicas."""
    engine = {"class_path": "montessori_pl.generation.VLLMBackend", "init_args": {"dtype": "float32"}}
    replicas = {
        "class_path": "montessori_pl.generation.RayBackend",
        "init_args": {"engine": engine, "replicas": 4, "address": "auto"},
    }
    assert pinned({"generation": replicas}) == pinned({"generation": engine})


def test_what_it_takes_from_the_engine() -> None:
    """Which requests there may be, and how long."""
    backend = RayBackend(VLLMBackend(max_model_len=64))
    assert backend.context(None) == 64
    assert backend.continues_turns
    engine = RayBackend(TransformersBackend())
    engine.load(STUDENT)
    message = [{"role": "user", "content": "first: cat dog"}]
    assert engine.fits(message, Sampling(max_tokens=16))
    assert not engine.fits(message, Sampling(max_tokens=100_000))


@pytest.mark.slow
def test_answers_of_the_engine_by_two_replicas(watched: Any, tmp_path: Path) -> None:
    """Both work; another model is loaded by the replicas that are there; and signals stay the caller's."""
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append("signal"))
    backend = RayBackend(watched(seconds=0.2), replicas=2, requests_per_call=5)
    try:
        for source in (STUDENT, TEACHER):
            backend.load(source)
            assert backend.generate(requests(40), SAMPLED) == alone(40, source)
        assert backend.generate([], SAMPLED) == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert arrived == ["signal"]
        backend.close()
        os.kill(os.getpid(), signal.SIGTERM)
        assert arrived == ["signal"] * 2
    finally:
        backend.close()
        signal.signal(signal.SIGTERM, before)
    assert len({pid for pid, _ in calls(tmp_path)}) == 2
    assert Counter(tuple(words) for _, words in calls(tmp_path) if words[0] == "loads") == {
        ("loads", "classroom/student"): 2,
        ("loads", "classroom/teacher"): 2,
    }
    assert [len(words) for _, words in asked(tmp_path)] == [5] * 16


@pytest.mark.slow
def test_a_replica_is_killed(watched: Any, tmp_path: Path) -> None:
    """Another one takes its place, and asks what it has not answered, and nothing else."""

    def kill() -> None:
        while len(asked(tmp_path)) < 4:
            time.sleep(0.05)
        killed.append(asked(tmp_path)[0][0])
        os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    killer = threading.Thread(target=kill)
    backend = RayBackend(watched(seconds=0.5), replicas=1, requests_per_call=4)
    backend.load(STUDENT)
    killer.start()
    try:
        assert backend.generate(requests(48), SAMPLED) == alone(48)
    finally:
        backend.close()
        killer.join()
    found = asked(tmp_path)
    assert len({pid for pid, _ in found}) == 2
    again = {seed for seed, times in Counter(seed for _, words in found for seed in words).items() if times > 1}
    in_flight = next(words for pid, words in reversed(found) if pid == killed[0])
    assert again == set(in_flight)


@pytest.mark.slow
def test_a_machine_of_the_cluster_is_lost(watched: Any, tmp_path: Path) -> None:
    """Amid 500 requests one of two nodes goes, for good: none is lost, none asked twice but those in flight there."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)

    def kill() -> None:
        while len(asked(tmp_path)) < 12 or len({pid for pid, _ in asked(tmp_path)}) < 2:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    backend = RayBackend(watched(seconds=0.3), address=cluster.address, requests_per_call=10)
    backend.load(STUDENT)
    killer.start()
    try:
        assert backend.generate(requests(500), SAMPLED) == alone(500)
    finally:
        backend.close()
        killer.join()
        cluster.shutdown()
    found = asked(tmp_path)
    times = Counter(seed for _, words in found for seed in words)
    assert set(times) == {str(number) for number in range(500)}
    assert set(times.values()) <= {1, 2}
    again = {seed for seed, number in times.items() if number > 1}
    last = [{*next(words for pid, words in reversed(found) if pid == one)} for one in {pid for pid, _ in found}]
    assert not again or again in last
    assert {len(words) for _, words in found} == {10}


class Lost(Exception):
    """What Ray says of an actor that is gone."""


class SmallRay:
    """Ray as far as a cluster asks it: calls end in the order of their names, or by the death of their actor.

    Args:
        dies: whether the replica with this number dies when it is asked.
    """

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=Lost)

    def __init__(self, dies: Callable[[int], bool]) -> None:
        self.dies, self.started = dies, 0

    def start(self, *arguments: Any) -> SimpleNamespace:
        number, self.started = self.started, self.started + 1
        calls = {
            "load": SimpleNamespace(remote=lambda source: (0, number, ())),
            "generate": SimpleNamespace(remote=lambda share, sampling: (1, number, tuple(share))),
        }
        return SimpleNamespace(**calls)

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [min(calls, key=lambda call: (call[0], not self.dies(call[1]), call[1]))], []

    def get(self, call: Any) -> Any:
        if call[0] and self.dies(call[1]):
            raise Lost(f"replica {call[1]} is gone")
        return list(call[2])


def a_cluster(dies: Callable[[int], bool], size: int) -> Any:
    ray = SmallRay(dies)
    cluster = _Cluster.__new__(_Cluster)
    cluster.ray, cluster.size = ray, size
    cluster.backend = cast(Any, SimpleNamespace(engine=None, num_cpus=1, start_timeout=5.0))
    cluster._actor_class = SimpleNamespace(remote=ray.start)
    cluster._members, cluster._doing, cluster._deaths = [], {}, 0
    return cluster


def test_replicas_of_one_machine_die_together_which_is_one_death() -> None:
    """Four of eight, and all of twelve, go at once: others take their place, and every share is answered."""
    shares = [[number] for number in range(20)]
    for first, size in ((4, 8), (12, 12)):
        cluster = a_cluster(lambda number, first=first: number < first, size)
        assert cluster.ask(STUDENT, shares, SAMPLED) == shares
        assert cluster.ray.started == size + first


def test_replicas_that_die_again_and_again_end_the_run() -> None:
    """Twelve at once, those in their place, and those in theirs: three times, whatever number there is."""
    for size in (1, 12):
        cluster = a_cluster(lambda number: True, size)
        with pytest.raises(ValueError, match=r"have died 3 times one after another without an answer.*is gone"):
            cluster.ask(STUDENT, [[number] for number in range(20)], SAMPLED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("raise ValueError('the prompt has no end')", r"^the prompt has no end$"),
        ("os._exit(9)", r"replicas of RayBackend have died 3 times one after another without an answer"),
    ],
)
def test_what_fails_everywhere_ends_the_run(does: str, says: str, watched: Any, tmp_path: Path) -> None:
    """An error of the engine is not tried again; a death is, but not for ever."""
    backend = RayBackend(watched(does), replicas=1)
    backend.load(STUDENT)
    try:
        with pytest.raises(ValueError, match=says):
            backend.generate(requests(4), SAMPLED)
    finally:
        backend.close()
    assert len(asked(tmp_path)) == (3 if "exit" in does else 1)


@pytest.mark.slow
def test_says_what_the_cluster_lacks(tmp_path: Path) -> None:
    """Room for one replica, or a cluster at all."""
    backend = RayBackend(TransformersBackend(device="cpu"), num_cpus=4096)
    backend.load(STUDENT)
    with pytest.raises(ValueError, match=r"a replica needs 0 GPUs, 4096 CPU cores, and the whole cluster has 0 GPUs"):
        backend.generate(requests(1), SAMPLED)
    for address, says in {
        "127.0.0.1:9": r"no Ray cluster answers at 127\.0\.0\.1:9: .*refused",
        "auto": r"Ray does not start at auto: ",
        "nowhere": r"address of RayBackend is auto or host:port, found 'nowhere'",
    }.items():
        with pytest.raises(ValueError, match=says):
            asks(RayBackend(TransformersBackend(device="cpu"), address=address))


def asks(backend: RayBackend) -> None:
    backend.load(STUDENT)
    backend.generate(requests(1), SAMPLED)


@pytest.mark.slow
def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    """Neither replicas nor Ray itself."""
    program = (
        "from montessori_pl.generation import RayBackend, Request, Sampling, TransformersBackend\n"
        "from montessori_pl.models.loading import ModelSource\n"
        "backend = RayBackend(TransformersBackend(device='cpu'), replicas=1)\n"
        "backend.load(ModelSource('classroom/student'))\n"
        "backend.generate([Request(messages=[{'role': 'user', 'content': 'a'}], seed=0)], Sampling(max_tokens=2))\n"
        "print('answered', flush=True)\n"
        "input()\n"
    )
    mark = f"montessori-{os.getpid()}"
    environment = {**os.environ, "A_TEST": mark}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "answered\n"
        assert len(members(mark)) > 3
        process.kill()
    end = time.monotonic() + 180  # Ray's agents look for the others now and then
    while members(mark) and time.monotonic() < end:
        time.sleep(0.2)
    assert not members(mark)


def members(mark: str) -> list[int]:
    """The processes that have inherited an environment variable."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"A_TEST={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
        except OSError:  # it has ended since
            continue
    return found


@pytest.mark.slow
def test_records_of_a_run_are_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With replicas and without; and a run that has finished without them has nothing left to do with them."""
    sampling = {"temperature": 1.0, "max_tokens": 24}
    written = {
        "num_examples": 24,
        "prompts_per_batch": 16,
        "synthesizer": {"class_path": "SelfInstruct", "init_args": {"prompt": "classroom"}},
        "instruction_sampling": sampling,
        "response_sampling": sampling,
    }
    config = {
        "student": {"class_path": "StudentModule", "init_args": {"backbone": "classroom/student"}},
        "teacher": {"class_path": "TeacherDPOModule", "init_args": {"backbone": "classroom/teacher"}},
        "generation": {"class_path": "TransformersBackend"},
        "data": {"seed_tasks": "classroom/seed_tasks[:16]", "reference": "classroom/reference[:8]"},
        "trainer": {"logger": False},
        "recipe": {"written": {"class_path": "Synthesize", "init_args": written}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    by_ray = ["--generation=RayBackend", "--generation.engine=TransformersBackend", "--generation.replicas=2"]
    common = ["fit", "--config", str(tmp_path / "recipe.yaml")]
    main([*common, "--run", str(tmp_path / "one")])
    main([*common, "--run", str(tmp_path / "two"), *by_ray])
    one, two = ((tmp_path / run / "iteration_1/written/examples.jsonl").read_bytes() for run in ("one", "two"))
    assert one == two
    capsys.readouterr()
    main([*common, "--run", str(tmp_path / "one"), *by_ray])
    assert "nothing was left to do" in capsys.readouterr().out
