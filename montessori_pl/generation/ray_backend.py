"""Generation by Ray: replicas of another engine, on the devices of one machine or of a cluster."""

import importlib.util
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from montessori_pl.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource, load_chat_template
from montessori_pl.processes.stop import SIGNALS

MOST_DEATHS = 3
"""Replicas that may die one after another, with no call answered in between, before the run ends."""
SECONDS_BETWEEN_LOOKS = 1.0
OF_OUR_OWN = {
    # Replicas are the work itself, and no background: beside any other program they would come to a standstill.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables of a Ray that is started here, where the user has not set them."""


class RayBackend(GenerationBackend):
    """Deals requests out to replicas of another engine, each an actor of Ray with devices of its own.

    A replica takes as many requests as come to it if all take the same number, or `requests_per_call`, and the next
    when it has answered. One that dies, alone or with its machine, is replaced where the cluster has room, and only the
    requests that it had not answered are asked again. Completions depend on their requests alone, as far as those of
    the engine do; who has answered is not recorded. A run may change to this engine and back, and change its settings,
    at any time.

    All machines must see the working directory under the same path, and have the same packages.

    Args:
        engine: what each replica is.
        replicas: how many; null takes as many as the cluster has room for.
        num_gpus: GPUs of a replica, as many as its engine uses; several share one GPU by a fraction; null takes 1 where
            the cluster has any, else 0.
        num_cpus: CPU cores of a replica; it computes with as many threads.
        address: `host:port` of a cluster, `auto` for this machine's; null starts Ray here and ends it afterwards.
        requests_per_call: requests that a replica takes at once; null deals out each call evenly.
        start_timeout: seconds in which one of the replicas must have loaded its model.
    """

    replicates = "engine"

    def __init__(
        self,
        engine: GenerationBackend,
        replicas: PositiveInt | None = None,
        num_gpus: NonNegativeFloat | None = None,
        num_cpus: PositiveInt = 1,
        address: Text | None = None,
        requests_per_call: PositiveInt | None = None,
        start_timeout: PositiveFloat = 900.0,
    ) -> None:
        if not engine.loads_weights or isinstance(engine, RayBackend):
            raise ValueError(
                f"RayBackend runs replicas of an engine that loads a model, found engine {type(engine).__name__}; name "
                "TransformersBackend, VLLMBackend or one of your own"
            )
        if (engines := getattr(engine, "data_parallel_size", 1)) > 1:
            raise ValueError(f"each replica is one engine, found data_parallel_size {engines}; set replicas instead")
        if address not in (None, "auto") and not re.fullmatch(r"[^/]+:\d+", str(address)):
            raise ValueError(f"address of RayBackend is auto or host:port, found {address!r}")
        self.engine, self.replicas, self.num_gpus, self.num_cpus = engine, replicas, num_gpus, num_cpus
        self.address, self.requests_per_call, self.start_timeout = address, requests_per_call, start_timeout
        self.continues_turns = engine.continues_turns  # type: ignore[misc]
        self.price = engine.price
        self._source: ModelSource | None = None
        self._chat: ChatTemplate | None = None
        self._cluster: _Cluster | None = None

    def check(self, source: ModelSource) -> None:
        """As the engine does."""
        self.engine.check(source)

    def check_environment(self, source: ModelSource) -> None:
        """Look for Ray, and for what the engine needs."""
        if importlib.util.find_spec("ray") is None:
            raise ValueError("RayBackend needs Ray: pip install 'montessori-pl[ray]'")
        self.engine.check_environment(source)

    def context(self, chat_template: ChatTemplate | None) -> int | None:
        """The engine's."""
        return self.engine.context(chat_template)

    def load(self, source: ModelSource) -> None:
        """Take this model; replicas that run load it when they are asked next."""
        self._chat, self._source = load_chat_template(source), source

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether prompt and completion stay within the engine's context."""
        assert self._chat is not None, "load a model first"
        limit = self.context(self._chat)
        return limit is None or len(self._chat.prompt_ids(messages)) + sampling.max_tokens <= limit

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Deal the requests out, and wait for the last.

        Raises:
            ValueError: no replica can be started, or replicas die one after another.
        """
        assert self._source is not None, "load a model first"
        if not requests:
            return []
        if self._cluster is None:
            self.refuse_other_processes()
            self._cluster = _Cluster(self)
        share = self.requests_per_call or -(-len(requests) // self._cluster.size)
        shares = [requests[start : start + share] for start in range(0, len(requests), share)]
        try:
            answers = self._cluster.ask(self._source, shares, sampling)
        except BaseException:
            self._stop()  # what is still being answered must not be waited for
            raise
        return [completion for answer in answers for completion in answer]

    def close(self) -> None:
        """End the replicas, and Ray where it was started here."""
        self._stop()
        self._source = self._chat = None

    def _stop(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


class Replica:
    """One engine, in a process that Ray has started.

    Args:
        engine: which is not loaded.
        directory: the working directory of the run.
        num_threads: with which it computes.
    """

    def __init__(self, engine: GenerationBackend, directory: str, num_threads: int) -> None:
        if not Path(directory).is_dir():
            raise ValueError(
                f"{socket.gethostname()} does not see {directory}, the working directory of the run; all machines of "
                "the cluster must see it under this path"
            )
        os.chdir(directory)
        torch.set_num_threads(num_threads)
        self.engine, self.source = engine, None

    def load(self, source: ModelSource) -> None:
        """Make this model the one that is asked."""
        self.engine.load(source)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """What the engine makes of them."""
        return self.engine.generate(requests, sampling)


@dataclass(eq=False)
class _Member:
    """A replica as it is seen from here."""

    actor: Any
    born: int
    """Deaths that had been counted when it began."""
    source: ModelSource | None = None
    """The model that it was told to load last."""


class _Cluster:
    """The replicas, and who of them does what."""

    def __init__(self, backend: RayBackend) -> None:
        import ray

        self.ray, self.backend = ray, backend
        self._begin()
        try:
            there = ray.cluster_resources()
            num_gpus = backend.num_gpus if backend.num_gpus is not None else min(1.0, there.get("GPU", 0.0))
            needs = {"GPU": num_gpus, "CPU": float(backend.num_cpus)}
            room = min(int(there.get(kind, 0.0) / number + 1e-6) for kind, number in needs.items() if number)
            if not room:
                raise ValueError(
                    f"a replica needs {_counted(needs)}, and the whole cluster has {_counted(there)}; lower num_gpus "
                    "or num_cpus of RayBackend, or add machines"
                )
        except BaseException:
            self.close()
            raise
        self.size = backend.replicas or room
        # Ray itself would start a dead one again without its model: we replace it.
        self._actor_class = ray.remote(num_gpus=num_gpus, num_cpus=backend.num_cpus, max_restarts=0)(Replica)
        self._members: list[_Member] = []
        self._doing: dict[Any, tuple[_Member, int | None]] = {}
        """What is awaited: of which replica, and the share that it answers; none while it loads its model. Those that
        load may be awaited from one call of `ask` to the next, and forever where the cluster has no room for them."""
        self._deaths = 0
        """Since the last answer. The replicas of a machine die together, which counts as one."""

    def ask(
        self, source: ModelSource, shares: Sequence[Sequence[Request]], sampling: Sampling
    ) -> list[list[Completion]]:
        """The answers to each share of the requests."""
        answers: dict[int, list[Completion]] = {}
        waiting = deque(range(len(shares)))
        last_worked = time.monotonic()
        while len(answers) < len(shares):
            self._hand_out(source, shares, sampling, waiting, at_most=len(shares) - len(answers))
            done, _ = self.ray.wait(list(self._doing), timeout=SECONDS_BETWEEN_LOOKS)
            for ref in done:
                member, share = self._doing.pop(ref)
                try:
                    answer = self.ray.get(ref)
                except self.ray.exceptions.RayTaskError as error:  # the engine's own, which it would raise again
                    raise error.cause or error from None
                except self.ray.exceptions.RayError as error:
                    if share is not None:
                        waiting.appendleft(share)
                    self._lose(member, error)
                else:
                    if share is not None:
                        answers[share] = answer
                        self._forget_deaths()
            now = time.monotonic()
            if any(share is not None for _, share in self._doing.values()):
                last_worked = now
            elif now > last_worked + self.backend.start_timeout:
                raise ValueError(
                    f"no replica has loaded {source.backbone} within {self.backend.start_timeout:g} seconds "
                    f"(start_timeout of RayBackend); free in the cluster: {_counted(self.ray.available_resources())}"
                )
        return [answers[number] for number in range(len(shares))]

    def close(self) -> None:
        """End the replicas; a cluster that was there before stays."""
        with _our_signals():
            self.ray.shutdown()

    def _hand_out(
        self,
        source: ModelSource,
        shares: Sequence[Sequence[Request]],
        sampling: Sampling,
        waiting: deque[int],
        at_most: int,
    ) -> None:
        """Let there be replicas, at most so many, and give those that do nothing something to do."""
        while len(self._members) < min(self.size, at_most):
            arguments = self.backend.engine, os.getcwd(), self.backend.num_cpus
            self._members.append(_Member(self._actor_class.remote(*arguments), born=self._deaths))
        busy = [member for member, _ in self._doing.values()]
        for member in self._members:
            if member in busy:
                continue
            if member.source != source:
                member.source = source
                self._doing[member.actor.load.remote(source)] = member, None
            elif waiting:
                share = waiting.popleft()
                self._doing[member.actor.generate.remote(shares[share], sampling)] = member, share

    def _lose(self, member: _Member, error: Exception) -> None:
        self._members.remove(member)
        if member.born == self._deaths:  # it has begun after the last that counted
            self._deaths += 1
        if isinstance(cause := getattr(error, "cause", None), Exception):  # raised by the constructor
            raise cause from None
        if self._deaths >= MOST_DEATHS:
            said = " ".join(str(error).split())
            raise ValueError(
                f"replicas of RayBackend have died {self._deaths} times one after another without an answer, as for "
                f"lack of memory; the last words: {said}"
            )

    def _forget_deaths(self) -> None:
        self._deaths = 0
        for member in self._members:
            member.born = 0

    def _begin(self) -> None:
        for name, value in OF_OUR_OWN.items():
            os.environ.setdefault(name, value)
        settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if self.backend.address is not None:
            settings["address"] = self.backend.address
        else:
            settings |= {"address": "local", "include_dashboard": False}
        with _our_signals():
            try:
                _look_for(self.backend.address)
                self.ray.init(**settings)
            except (ConnectionError, RuntimeError) as error:
                where = self.backend.address or "this machine"
                raise ValueError(f"Ray does not start at {where}: {' '.join(str(error).split())}") from error


def _look_for(address: str | None) -> None:
    """Ray itself would wait for ten minutes.

    Raises:
        ValueError: nobody is there.
    """
    host, _, port = (address or "").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error}") from error


@contextmanager
def _our_signals() -> Iterator[None]:
    """Ray takes signals for itself when it begins, and leaves none of them handled when it ends."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in handlers.items():
                if handler is not None:
                    signal.signal(signum, handler)


def _counted(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0.0):g} {name}" for kind, name in (("GPU", "GPUs"), ("CPU", "CPU cores")))
