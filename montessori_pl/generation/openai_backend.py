"""Generation by any OpenAI-compatible endpoint: what was paid for is never lost and never paid for twice.

Requests go out in parallel, each answer is kept the moment it arrives, and a request that was answered before, in
whatever session of the run, is not sent again.
"""

import dataclasses
import logging
import random
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any, Literal

from montessori_pl.bounds import Bounds, NonNegativeFloat, PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.data.text import printable
from montessori_pl.generation.base import Completion, GenerationBackend, Price, Request, Sampling
from montessori_pl.generation.endpoint import (
    Endpoint,
    EndpointError,
    RefusedError,
    RetryableError,
    check_address,
    find_key,
    no_answer,
)
from montessori_pl.generation.request_journal import SPENDING, Answer, RequestJournal, request_id, spending_of
from montessori_pl.generation.usage import Usage, prompt_tokens
from montessori_pl.models.loading import ModelSource
from montessori_pl.processes.stop import Stopped
from montessori_pl.run_directory.atomic import write_json

log = logging.getLogger(__name__)

FIRST_WAIT = 0.5
"""Seconds before the first repetition; they double with each further one."""
LONGEST_WAIT = 120.0
"""Seconds before a repetition at most; who is asked to wait longer stops."""
BETWEEN_LOOKS = 0.1
"""Seconds after which a signal is noticed at the latest."""
MOST_REFUSED = 3
"""Requests that are refused before any is answered; then nothing more is sent: the settings may be wrong."""
SHOWN = 80
"""Characters of a request that are shown."""
MAX_SEED = 2**31
"""Seeds of the API are smaller: servers differ in how many bits they take."""


class OpenAIBackend(GenerationBackend):
    """Samples from a model behind an OpenAI-compatible chat endpoint.

    Sends model, messages, temperature, top_p, the token limit and the seed, and a presence penalty where there is one:
    a penalty of 0 is every server's default, and some refuse to hear of penalties. Temperature and top_p are always
    sent, because servers take their defaults from the model. Tell a server by `extra_body`, or when you start it, to
    leave the model's other generation defaults alone, such as a repetition penalty. `extra_body` adds to what is sent,
    replaces, and leaves out.

    An endpoint answers with the model that it has: a teacher or student that was trained in the run is refused.

    Args:
        base_url: address of the API, for example http://localhost:8000/v1; null takes OpenAI's, or what the environment
            variable OPENAI_BASE_URL says. It may be changed in the middle of a run.
        api_key_env: name of the environment variable that holds the key; null for a server that needs none.
        model: name of the model at the endpoint; null takes the backbone's.
        max_concurrency: requests that are sent at the same time.
        timeout: seconds without a sign of life after which an attempt is given up; after four times as many it is given
            up however slowly its answer still comes in. It may be billed all the same.
        max_retries: how often a request is repeated after rate limits, server errors, timeouts and torn answers.
        context_length: positions of the model; prompts are estimated as a token for each four bytes, and those that do
            not fit are made shorter. Null lets everything fit.
        limit_parameter: what the endpoint calls the token limit; OpenAI's newer models want `max_completion_tokens`.
        price: of the endpoint's tokens; each answer counts by the price that was set when it came. Null leaves the cost
            unknown.
        budget: US dollars for all answers of the run together; when they are spent, nothing more is sent. It is
            exceeded by the requests in flight at most. Judges share their answers, and what these cost. Null sets no
            limit.
        extra_body: more parameters of a request; null as a value leaves a parameter out. Each sample is asked for by
            itself also without the `seed`, or with one for all.
    """

    loads_weights = False
    fingerprint_excludes = ("base_url", "api_key_env", "max_concurrency", "timeout", "max_retries", "price", "budget")

    def __init__(
        self,
        base_url: Text | None = None,
        api_key_env: str | None = "OPENAI_API_KEY",
        model: Text | None = None,
        max_concurrency: Annotated[int, Bounds(ge=1, le=10_000)] = 16,
        timeout: Annotated[float, Bounds(gt=0, le=86_400)] = 300.0,
        max_retries: Annotated[int, Bounds(ge=0, le=1000)] = 8,
        context_length: PositiveInt | None = None,
        limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        price: Price | None = None,
        budget: NonNegativeFloat | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        if base_url is not None:
            check_address(base_url)
        if api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):
            raise ValueError("api_key_env is the name of an environment variable, and not the key itself")
        if budget is not None and price is None:
            raise ValueError(f"a budget of {budget} dollars needs a price: set price.input and price.output")
        self.base_url, self.api_key_env, self.model = base_url, api_key_env, model
        self.max_concurrency, self.timeout, self.max_retries = max_concurrency, timeout, max_retries
        self.context_length, self.limit_parameter = context_length, limit_parameter
        self.price, self.budget, self.extra_body = price, budget, extra_body or {}
        self._directory: Path | None = None
        self._journal = RequestJournal(None)
        self._endpoint: Endpoint | None = None
        self._name = ""
        self._answered: set[str] = set()  # settings of which the endpoint has answered a request

    def set_cache_dir(self, directory: Path) -> None:
        """Keep answers and their cost in this directory, and go on from those that lie there."""
        self.refuse_other_processes()
        self._directory, self._journal = directory, RequestJournal(directory)

    def budget_left(self, directory: Path) -> float | None:
        """The budget without what the answers in this directory have cost."""
        dollars = spending_of(directory).dollars(self.price, self._name or self.model or "")
        return self.budget - dollars if self.budget is not None and dollars is not None else None

    def check_environment(self, source: ModelSource) -> None:
        """Look for the client and for the key, though all answers may have been kept; nothing is sent."""
        find_key(self.api_key_env)

    def context(self, chat_template: ChatTemplate | None) -> int | None:
        """What the settings say: the model may lie here under the same name, and be served with another length."""
        return self.context_length

    def load(self, source: ModelSource) -> None:
        """Make this the model that is asked for by name.

        Raises:
            ValueError: the model has weights that were trained in the run.
        """
        if source.weights is not None:
            raise ValueError(
                f"{source.backbone} with the weights in {source.weights} is not what an endpoint answers with; "
                "let the stage take the base model, or choose an engine that loads weights"
            )
        self._name = self.model or source.backbone

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether the estimated prompt and a completion of full length stay within `context_length`."""
        return self.context_length is None or prompt_tokens(messages) + sampling.max_tokens <= self.context_length

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Ask for what has not been answered yet, in parallel.

        Raises:
            EndpointError: the endpoint refuses all requests of this kind, does not answer after all repetitions, or the
                budget is spent. What was in flight by then has been answered and kept.
        """
        bodies = [self._body(request, sampling) for request in requests]
        names = [_name(body, request) for body, request in zip(bodies, requests, strict=True)]
        asked = dict(zip(names, bodies, strict=True))
        if any(name not in self._journal.answers for name in asked):
            try:
                self._ask_missing(asked)
            except EndpointError as error:
                raise EndpointError(f"{error}; {self._journal}, and the same command goes on") from None
            finally:
                self._journal.sync()
                self._report()
        return [self._journal.answers[name].completion() for name in names]

    @property
    def usage(self) -> Usage:
        """What all answers of the run have used."""
        return self._journal.spending.usage

    @property
    def dollars(self) -> float | None:
        """What all answers of the run have cost, each by the price of who was asked; none where there is no price."""
        return self._journal.spending.dollars(self.price, self._name)

    def close(self) -> None:
        """Close the connections; what was kept stays."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        assert self._name, "load a model first"
        body = {
            "model": self._name,
            "messages": [dict(message) for message in request.messages],
            "temperature": float(sampling.temperature),
            "top_p": float(sampling.top_p),
            "presence_penalty": float(sampling.presence_penalty) or None,
            self.limit_parameter: sampling.max_tokens,
            "seed": _seed(request),
        }
        return {name: value for name, value in (body | self.extra_body).items() if value is not None}

    def _ask_missing(self, bodies: Mapping[str, Mapping[str, Any]]) -> None:
        """Ask for those of these requests, by name, that have no answer; their settings are the same.

        Where some are refused and others answered, the former are too long, or about something that is filtered: each
        has an empty answer. Where none is answered, the settings are wrong.
        """
        settings = _settings(next(iter(bodies.values())))
        if any(name in self._journal.answers and not self._journal.answers[name].refused for name in bodies):
            self._answered.add(settings)
        while missing := {name: body for name, body in bodies.items() if name not in self._journal.answers}:
            refused = self._ask_all(missing, settings)
            for name, reason in refused.items():
                if settings not in self._answered:
                    raise EndpointError(f"{reason}, when it is asked {_shown(bodies[name])}")
                self._keep(name, no_answer(bodies[name]))
            if refused:
                name, reason = next(iter(refused.items()))
                counts = f"{len(refused):,} of {len(missing):,} requests are refused, and have an empty answer"
                log.warning("%s; for example %s: %s", counts, _shown(bodies[name]), reason)

    def _ask_all(self, bodies: Mapping[str, Mapping[str, Any]], settings: str) -> dict[str, str]:
        """Ask for these requests, by name; returns which of them are refused, and why."""
        self._check_budget()
        if self._endpoint is None:
            self._endpoint = Endpoint(self.base_url, self.api_key_env, self.timeout)
        endpoint, stop, refused = self._endpoint, threading.Event(), dict[str, str]()

        def ask(name: str) -> None:
            try:
                if self._ask(endpoint, name, bodies[name], stop):
                    self._answered.add(settings)
            except RefusedError as error:
                refused[name] = str(error)
                if settings not in self._answered and len(refused) >= MOST_REFUSED:
                    stop.set()
            except BaseException:
                stop.set()  # nothing more is sent; what is in flight is answered and kept
                raise

        with ThreadPoolExecutor(min(self.max_concurrency, len(bodies))) as pool:
            try:
                futures = [pool.submit(ask, name) for name in bodies]
                # In turns: a signal that another thread has received does not wake one that waits for ever.
                while wait(futures, timeout=BETWEEN_LOOKS).not_done:
                    pass
            except (KeyboardInterrupt, Stopped):
                stop.set()
                log.warning("waiting for the requests in flight, which are paid for")
                raise
        for future in futures:
            future.result()
        return refused

    def _ask(self, endpoint: Endpoint, name: str, body: Mapping[str, Any], stop: threading.Event) -> bool:
        """Ask until there is an answer, or until all must stop; returns whether there is one."""
        attempt = 0
        while not stop.is_set():
            self._check_budget()
            try:
                self._keep(name, endpoint.ask(body))
                return True
            except RetryableError as error:
                if error.billed is not None:
                    self._keep(name, error.billed)
                reason, retry_after = str(error), error.retry_after
            if retry_after is not None and retry_after > LONGEST_WAIT:
                raise EndpointError(f"{reason}, and asks to wait for {retry_after:,.0f} seconds")
            if attempt == self.max_retries:
                raise EndpointError(f"{reason}, {attempt + 1} times in a row")
            stop.wait(_seconds_to_wait(attempt, retry_after))
            attempt += 1
        return False

    def _keep(self, name: str, answer: Answer) -> None:
        """Keep what came back for the request of this name."""
        self._journal.add(dataclasses.replace(answer, id=name, model=self._name, price=self.price))

    def _check_budget(self) -> None:
        dollars = self.dollars
        if self.budget is not None and dollars is not None and dollars >= self.budget:
            raise EndpointError(
                f"the answers of this run have cost ${dollars:,.4f}, and the budget is ${self.budget:,.4f}; "
                "raise the setting budget to go on"
            )

    def _report(self) -> None:
        """Write down what has been spent, for people; nothing here reads it."""
        if self._directory is not None and self._directory.exists():
            content = {**dataclasses.asdict(self.usage), "dollars": self.dollars, "budget": self.budget}
            write_json(self._directory / SPENDING, content)


def _seed(request: Request) -> int:
    """The request's seed as it is sent."""
    return request.seed % MAX_SEED


def _name(body: Mapping[str, Any], request: Request) -> str:
    """What the request is called: by its body, and by its seed where `extra_body` sends none, or one for all.

    Otherwise all samples of a prompt would be one request, and its answer stand for each of them.
    """
    own = body.get("seed") == _seed(request)
    return request_id(body if own else {**body, "seed_of_request": request.seed})


def _settings(body: Mapping[str, Any]) -> str:
    """What all requests have in common that ask this model in this way."""
    return request_id({name: value for name, value in body.items() if name not in ("messages", "seed")})


def _shown(body: Mapping[str, Any]) -> str:
    """The beginning of what is asked last."""
    text = printable(" ".join(body["messages"][-1]["content"].split()))
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + " ...")


def _seconds_to_wait(attempt: int, retry_after: float | None) -> float:
    """Twice as long each time, or what the server asks for, if that is longer: it may ask for 0 seconds, or for a time
    that has passed. Scattered by a quarter, or all would come back at once."""
    # Not the global generator: it belongs to the stages, and threads would draw from it in any order.
    jitter = random.SystemRandom().uniform(0, 0.25)
    seconds = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
    if retry_after is not None and retry_after > seconds:
        return retry_after * (1 + jitter)
    return seconds * (1 - jitter)
