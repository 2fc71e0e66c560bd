"""What was paid for is never lost and never paid for twice: against an endpoint that fails in every way it can."""

import dataclasses
import email.utils
import functools
import json
import logging
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import (
    PROMPT_TOKENS,
    TOKENS,
    FaultyEndpoint,
    Misbehaviour,
    answer_to,
    completion,
    content,
    dropped,
    hang,
    send,
    status,
    torn,
    torn_at_the_end,
)
from tiny_models import save_tiny_model

from montessori_pl.cli import main
from montessori_pl.generation import (
    Completion,
    EndpointError,
    OpenAIBackend,
    Price,
    Request,
    Sampling,
    TransformersBackend,
    openai_backend,
    request_journal,
)
from montessori_pl.generation.endpoint import _retry_after
from montessori_pl.generation.request_journal import ANSWERS, Answer, RequestJournal
from montessori_pl.models import ModelSource
from montessori_pl.pinning import pinned
from montessori_pl.records import read_records

ROOT = Path(__file__).parents[2]
KEY = "sk-secret-0123456789"
SAMPLING = Sampling(max_tokens=20)
PRICE = Price(input=100, output=400)
DOLLARS = 0.003
"""Of one answer: 10 prompt tokens at 100 and 5 sampled tokens at 400 dollars for a million."""

Engine = Callable[..., OpenAIBackend]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment holds the key, and repetitions do not wait for long."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai_backend, "FIRST_WAIT", 0.01)


@pytest.fixture
def endpoint() -> Iterator[FaultyEndpoint]:
    with FaultyEndpoint() as running:
        yield running


@pytest.fixture
def engine(endpoint: FaultyEndpoint) -> Iterator[Engine]:
    """Make an engine that asks the endpoint and keeps answers in a directory, if one is given."""
    made: list[OpenAIBackend] = []

    def make(directory: Path | None = None, backbone: str = "a-model", **settings: Any) -> OpenAIBackend:
        made.append(OpenAIBackend(**{"base_url": endpoint.base_url, "timeout": 30, "max_retries": 3, **settings}))
        if directory is not None:
            made[-1].keep(directory)
        made[-1].load(ModelSource(backbone))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(question: str, seed: int = 0) -> Request:
    return Request(messages=[{"role": "user", "content": question}], seed=seed)


def asks(number: int) -> list[Request]:
    return [ask(f"question {index}", seed=index) for index in range(number)]


def expected(requests: list[Request]) -> list[Completion]:
    """What the endpoint answers to these."""
    return [
        Completion(
            text=answer_to(request.messages[-1]["content"], request.seed),
            finished=True,
            num_tokens=TOKENS,
            num_prompt_tokens=PROMPT_TOKENS,
        )
        for request in requests
    ]


def kept(directory: Path) -> list[Answer]:
    return read_records(directory / ANSWERS, Answer)


PASSING: dict[str, Misbehaviour] = {
    "rate limit": status(429),
    "rate limit with a time": status(429, Retry_After="0.02"),
    "lock timeout": status(409),
    "server error": status(500),
    "bad gateway": status(502, Content_Type="text/html"),
    "overloaded": status(503, Retry_After="0"),
    "hang": hang(),
    "torn body": torn,
    "torn JSON": torn_at_the_end,
    "HTML": content("<html>Bad gateway</html>"),
    "dropped connection": dropped,
    "empty body": content(""),
    "a number": content(3),
    "no choices": content({"object": "chat.completion"}),
    "empty choices": content({"choices": []}),
    "choices of another kind": content({"choices": "none"}),
    "no message": content({"choices": [{"finish_reason": "stop"}]}),
    "no text": content(completion(None)),
    "an error with status 200": content({"error": {"message": "upstream is busy"}}),
}


class TestAnswers:
    """Completions of a willing endpoint."""

    def test_order_is_that_of_the_requests(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
        """Of eight at a time, which must all be there before one is answered, the later ones are answered earlier."""
        requests = asks(40)
        together = threading.Barrier(8, timeout=20)

        def answer(question: str, seed: int) -> dict[str, Any]:
            together.wait()
            time.sleep(0.01 * (7 - seed % 8))
            return completion(answer_to(question, seed))

        endpoint.answer = answer
        assert engine(tmp_path, max_concurrency=8).generate(requests, SAMPLING) == expected(requests)
        assert [answer.text for answer in kept(tmp_path)] != [one.text for one in expected(requests)]
        assert endpoint.most_in_flight == 8
        assert endpoint.asked == Counter({f"question {index}": 1 for index in range(40)})

    def test_what_is_sent(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        """Everything that decides the answer; a penalty only where there is one, and the seed in 31 bits."""
        sampling = Sampling(temperature=0.6, top_p=0.8, presence_penalty=1.0, max_tokens=7)
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]
        request = Request(messages=messages, seed=2**62 + 5)  # type: ignore[arg-type]
        engine().generate([request], sampling)
        engine(model="another").generate([ask("a")], Sampling(temperature=1, top_p=1))
        assert endpoint.bodies[0] == {
            "model": "a-model",
            "messages": messages,
            "temperature": 0.6,
            "top_p": 0.8,
            "presence_penalty": 1.0,
            "max_tokens": 7,
            "seed": 5,
        }
        assert endpoint.bodies[1] == {
            "model": "another",
            "messages": [{"role": "user", "content": "a"}],
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 1024,
            "seed": 0,
        }
        assert endpoint.keys == {KEY}

    def test_extra_parameters_add_replace_and_leave_out(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        extra = {"top_k": 5, "temperature": 0.25, "seed": None}
        engine(extra_body=extra, limit_parameter="max_completion_tokens").generate([ask("a")], SAMPLING)
        assert endpoint.bodies == [
            {
                "model": "a-model",
                "messages": [{"role": "user", "content": "a"}],
                "temperature": 0.25,
                "top_p": 0.9,
                "max_completion_tokens": 20,
                "top_k": 5,
            }
        ]

    @pytest.mark.parametrize(
        ("text", "reason", "finished"),
        [
            ("whole", "stop", True),
            ("", "stop", True),
            ("cut", "length", False),
            (None, "length", False),
            ("cut", "content_filter", False),
            (None, "content_filter", False),
            ("whole", None, True),
        ],
    )
    def test_finished_unless_it_was_cut(
        self, endpoint: FaultyEndpoint, engine: Engine, text: str | None, reason: Any, finished: bool
    ) -> None:
        """What was cut may have no text at all: a reasoning model that is still thinking. It is paid for, and kept."""
        endpoint.answer = lambda question, seed: completion(text, reason)
        (answer,) = engine().generate([ask("a")], SAMPLING)
        assert (answer.text, answer.finished, answer.num_tokens) == (text or "", finished, TOKENS)
        assert endpoint.asked["a"] == 1

    def test_tokens_are_estimated_where_the_server_does_not_count(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        """A token for each four bytes, and four for a turn: 9 bytes and é twice are 13 bytes, 4 tokens; 3 letters 1."""
        endpoint.answer = lambda question, seed: completion("été rouge 7", usage=False)
        (answer,) = engine(tmp_path, price=PRICE).generate([ask("abc")], SAMPLING)
        assert (answer.num_prompt_tokens, answer.num_tokens) == (5, 4)
        assert kept(tmp_path)[0].estimated
        spending = json.loads((tmp_path / "spending.json").read_text())
        assert spending["num_estimated"] == 1
        assert spending["dollars"] == pytest.approx((5 * 100 + 4 * 400) / 1e6)

    def test_context_length(self, engine: Engine) -> None:
        """20 letters are estimated as 5 tokens and 4 for the turn, so that 91 of 100 are left."""
        messages = ask("a" * 20).messages
        assert engine(context_length=100).fits(messages, Sampling(max_tokens=91))
        assert not engine(context_length=100).fits(messages, Sampling(max_tokens=92))
        assert engine().fits(messages, Sampling(max_tokens=10**6))

    def test_server_without_a_key(
        self, endpoint: FaultyEndpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key that lies in the environment is not sent to a server that needs none."""
        assert engine(api_key_env=None).generate([ask("a")], SAMPLING)[0].text
        monkeypatch.delenv("OPENAI_API_KEY")
        assert engine(api_key_env=None).generate([ask("b")], SAMPLING)[0].text
        assert KEY not in endpoint.keys

    def test_trained_weights_are_refused(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"with the weights in .* is not what an endpoint answers with"):
            engine().load(ModelSource("a-model", tmp_path))

    def test_nothing_asked_nothing_sent(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        assert engine().generate([], SAMPLING) == []
        assert not endpoint.bodies


class TestFaults:
    """Everything that can go wrong on the way."""

    @pytest.mark.parametrize("fault", PASSING)
    def test_what_passes_is_repeated(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, fault: str
    ) -> None:
        """Two requests of eight fail once and twice: all are answered, in order, and nobody else is asked again."""
        requests = asks(8)
        endpoint.faults["question 2"] = [PASSING[fault]]
        endpoint.faults["question 5"] = [PASSING[fault]] * 2
        timeout = 1 if fault == "hang" else 30
        assert engine(tmp_path, timeout=timeout).generate(requests, SAMPLING) == expected(requests)
        again = {"question 2": 2, "question 5": 3}
        assert endpoint.asked == Counter({f"question {index}": 1 for index in range(8)} | again)
        assert set(endpoint.answered.values()) == {1}
        assert len([answer for answer in kept(tmp_path) if answer.usable]) == 8

    @pytest.mark.parametrize("fault", PASSING)
    def test_what_does_not_pass_ends_in_a_sentence(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, fault: str
    ) -> None:
        """After two repetitions; the same command goes on and asks for nothing that is there."""
        requests = asks(5)
        endpoint.faults["question 3"] = [PASSING[fault]] * 3
        timeout = 1 if fault == "hang" else 30
        with pytest.raises(EndpointError, match="3 times in a row") as error:
            engine(tmp_path, max_retries=2, max_concurrency=1, timeout=timeout).generate(requests, SAMPLING)
        assert f"3 answers are kept in {tmp_path / ANSWERS}, and the same command goes on" in str(error.value)
        assert endpoint.asked["question 3"] == 3
        assert engine(tmp_path).generate(requests, SAMPLING) == expected(requests)
        assert set(endpoint.answered.values()) == {1}

    @pytest.mark.parametrize(
        ("code", "said", "sentence"),
        [
            (400, "maximum context length", r"HTTP status 400 \(maximum context length\)"),
            (401, "wrong key", r"does not accept the key in OPENAI_API_KEY \(HTTP status 401"),
            (403, "not in your country", r"HTTP status 403 \(not in your country\)"),
            (404, "no model of that name", r"HTTP status 404 \(no model of that name\)"),
            (422, "unexpected field", r"HTTP status 422 \(unexpected field\)"),
        ],
    )
    def test_what_cannot_pass_ends_at_once(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, code: int, said: str, sentence: str
    ) -> None:
        """What is in flight is answered and kept; nothing further is sent."""
        endpoint.seconds = 0.2
        endpoint.faults["question 1"] = [status(code, said)]
        with pytest.raises(EndpointError, match=sentence) as error:
            engine(tmp_path, max_concurrency=4).generate(asks(40), SAMPLING)
        assert "\n" not in str(error.value)
        assert endpoint.asked["question 1"] == 1
        assert 1 < len(endpoint.bodies) <= 5
        assert len(kept(tmp_path)) == endpoint.answered.total() == len(endpoint.bodies) - 1
        assert f"{len(kept(tmp_path))} answers are kept" in str(error.value)

    def test_server_that_wants_a_key(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        endpoint.faults["a"] = [status(401)]
        with pytest.raises(EndpointError, match="does not accept a request without a key"):
            engine(api_key_env=None).generate([ask("a")], SAMPLING)

    def test_nobody_there(self, engine: Engine) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(
            EndpointError, match=r"/v1 does not answer \(.*refused\), 2 times in a row; 0 answers are in memory only"
        ):
            engine(base_url=url, max_retries=1).generate([ask("a")], SAMPLING)

    def test_address_is_shown_without_its_secrets(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        endpoint.faults["a"] = [status(400)]
        url = endpoint.base_url.replace("http://", "http://user:password@")
        with pytest.raises(EndpointError, match=endpoint.base_url) as error:
            engine(base_url=url).generate([ask("a")], SAMPLING)
        assert "password" not in str(error.value)

    def test_server_says_when_to_come_back(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        endpoint.faults["a"] = [status(429, Retry_After="0.4")]
        engine().generate([ask("a")], SAMPLING)
        first, second = endpoint.times["a"]
        assert 0.4 <= second - first < 2

    def test_who_is_asked_to_wait_for_hours_stops(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        endpoint.faults["a"] = [status(429, said="quota of the day", Retry_After="7200")]
        with pytest.raises(EndpointError, match=r"\(quota of the day\), and asks to wait for 7,200 seconds"):
            engine().generate([ask("a")], SAMPLING)
        assert endpoint.asked["a"] == 1

    def test_waits_double_and_scatter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Within a quarter of 0.5, 1, 2, ... seconds, at most 120; never earlier than the server asks."""
        monkeypatch.setattr(openai_backend, "FIRST_WAIT", 0.5)
        state = random.getstate()
        for attempt, seconds in enumerate([0.5, 1, 2, 4, 8, 16, 32, 64, 120, 120]):
            waits = [openai_backend._seconds_to_wait(attempt, None) for _ in range(50)]
            assert seconds * 0.75 <= min(waits) < max(waits) <= seconds
        assert 10 <= openai_backend._seconds_to_wait(9, 10) <= 12.5
        assert random.getstate() == state, "the generator of the stages is left alone"

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("3", 3),
            ("0.5", 0.5),
            ("-1", 0),
            ("soon", None),
        ],
    )
    def test_forms_of_retry_after(self, value: str, seconds: float | None) -> None:
        assert _retry_after({"retry-after": value}) == seconds
        assert _retry_after({}) is None

    def test_retry_after_as_a_date(self) -> None:
        date = email.utils.formatdate(time.time() + 60, usegmt=True)
        assert _retry_after({"retry-after": date}) == pytest.approx(60, abs=30)

    def test_unusable_answers_are_billed_too(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
        endpoint.faults["a"] = [content(completion(None))] * 2
        backend = engine(tmp_path, price=PRICE)
        assert backend.generate([ask("a")], SAMPLING) == expected([ask("a")])
        assert backend.usage.dollars(PRICE) == pytest.approx(3 * DOLLARS)
        assert [answer.usable for answer in kept(tmp_path)] == [False, False, True]

    def test_ctrl_c_waits_for_what_is_in_flight(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        endpoint.seconds = 0.2
        endpoint.after_answer = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 6 else None
        # Started in the background of a script, the tests are deaf to Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                engine(tmp_path, max_concurrency=4).generate(asks(40), SAMPLING)
        finally:
            signal.signal(signal.SIGINT, before)
        assert "waiting for the requests in flight" in caplog.text
        assert len(kept(tmp_path)) == len(endpoint.bodies) == endpoint.answered.total() <= 12


class TestJournal:
    """An answer that arrived is never asked for again."""

    def test_later_sessions_ask_only_for_what_is_missing(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        requests = asks(20)
        engine(tmp_path).generate(requests[5:15], SAMPLING)
        assert engine(tmp_path).generate(requests, SAMPLING) == expected(requests)
        assert engine(tmp_path).generate(requests[::-1], SAMPLING) == expected(requests)[::-1]
        assert set(endpoint.asked.values()) == {1}

    def test_same_request_twice_is_asked_once(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        """The same seed draws the same completion; without `keep`, this holds for the engine's life."""
        backend = engine()
        assert backend.generate([ask("a"), ask("b"), ask("a")], SAMPLING) == expected([ask("a"), ask("b"), ask("a")])
        backend.generate([ask("a")], SAMPLING)
        assert endpoint.asked == {"a": 1, "b": 1}

    @pytest.mark.parametrize(
        "changed",
        [
            {"max_concurrency": 3},
            {"timeout": 9.0},
            {"max_retries": 0},
            {"price": PRICE},
            {"price": PRICE, "budget": 1.0},
            {"context_length": 5000},
            {"api_key_env": None},
            {"base_url": "http://localhost:1/v1"},
            {"model": "a-model"},
            {"extra_body": {}},
        ],
        ids=str,
    )
    def test_what_does_not_decide_the_answer(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, changed: dict[str, Any]
    ) -> None:
        """Also another address: the same server on another port, or another provider of the same model."""
        requests = asks(3)
        engine(tmp_path).generate(requests, SAMPLING)
        assert engine(tmp_path, **changed).generate(requests, SAMPLING) == expected(requests)
        assert set(endpoint.asked.values()) == {1}

    @pytest.mark.parametrize(
        ("settings", "sampling", "seed"),
        [
            ({"model": "another"}, {}, 1),
            ({"backbone": "another"}, {}, 1),
            ({"extra_body": {"top_k": 3}}, {}, 1),
            ({"limit_parameter": "max_completion_tokens"}, {}, 1),
            ({}, {"temperature": 0.5}, 1),
            ({}, {"top_p": 0.5}, 1),
            ({}, {"presence_penalty": 0.5}, 1),
            ({}, {"max_tokens": 21}, 1),
            ({}, {}, 2),
        ],
        ids=str,
    )
    def test_what_decides_the_answer(
        self,
        endpoint: FaultyEndpoint,
        engine: Engine,
        tmp_path: Path,
        settings: dict[str, Any],
        sampling: dict[str, Any],
        seed: int,
    ) -> None:
        engine(tmp_path).generate([ask("a", 1)], SAMPLING)
        engine(tmp_path, **settings).generate([ask("a", seed)], dataclasses.replace(SAMPLING, **sampling))
        assert endpoint.asked["a"] == 2

    def test_journal_may_end_anywhere(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
        """Cut here and there, as a kill may leave it: whole lines are served, the rest is asked for again."""
        requests = asks(4)
        endpoint.answer = lambda question, seed: completion(f"naïve {question} with {seed}")
        answers = engine(tmp_path / "whole").generate(requests, SAMPLING)
        data = (tmp_path / "whole" / ANSWERS).read_bytes()
        for size in [*range(0, len(data), 47), len(data)]:
            directory = tmp_path / str(size)
            directory.mkdir()
            (directory / ANSWERS).write_bytes(data[:size])
            before = len(endpoint.bodies)
            assert engine(directory).generate(requests, SAMPLING) == answers
            assert len(endpoint.bodies) - before == 4 - data[:size].count(b"\n")
            assert sorted((directory / ANSWERS).read_bytes().splitlines()) == sorted(data.splitlines())

    def test_full_disk_leaves_no_half_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other threads go on to write behind it."""
        journal = RequestJournal(tmp_path)
        answers = [
            Answer(id=str(number), text="t", finished=True, num_tokens=1, num_prompt_tokens=1) for number in range(3)
        ]
        journal.add(answers[0])

        def half(path: Path, records: list[Answer]) -> None:
            with open(path, "a") as file:
                file.write(records[0].to_json()[:10])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(request_journal, "append_records", half)
            with pytest.raises(OSError, match="No space left"):
                journal.add(answers[1])
        journal.add(answers[2])
        assert list(RequestJournal(tmp_path).answers) == ["0", "2"]

    def test_something_else_is_not_read_as_answers(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / ANSWERS).write_text('{"id": "a", "text": "b"}\n')
        with pytest.raises(ValueError, match="not a Answer record"):
            engine(tmp_path)


def _generate_in_a_process(base_url: str, directory: Path, number: int) -> None:
    backend = OpenAIBackend(base_url=base_url, max_concurrency=8)
    backend.keep(directory)
    backend.load(ModelSource("a-model"))
    backend.generate(asks(number), SAMPLING)


def test_kill_in_the_middle(endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
    """`kill -9` at the 200th of 500 answers: what had arrived is not asked for again, and 8 at most are asked twice."""
    requests = asks(500)
    # Forked from a process without threads; this one has the endpoint's.
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_generate_in_a_process, args=(endpoint.base_url, tmp_path, 500))
    endpoint.seconds = 0.002
    endpoint.after_answer = lambda number: process.kill() if number == 200 else None
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    time.sleep(0.1)  # for what is still on its way to a client that has gone

    before = endpoint.asked.copy()
    arrived = {answer.text: answer for answer in RequestJournal(tmp_path).answers.values()}
    assert 192 <= len(arrived) <= 200
    lines = (tmp_path / ANSWERS).read_bytes()
    (tmp_path / ANSWERS).write_bytes(lines[: lines.rindex(b"\n") + 1] + lines[:50])  # a torn line

    assert engine(tmp_path, max_concurrency=16, price=PRICE).generate(requests, SAMPLING) == expected(requests)
    asked = endpoint.asked
    assert sum(asked.values()) - 500 == sum(before.values()) - len(arrived) <= 8, "what was in flight is asked twice"
    for request in requests:
        question = request.messages[-1]["content"]
        times = 1 + (question in before and answer_to(question, request.seed) not in arrived)
        assert asked[question] == times, question
    assert {answer.id for answer in arrived.values()} < RequestJournal(tmp_path).answers.keys()


class TestMoney:
    """Tokens, dollars and the budget."""

    @pytest.mark.parametrize("max_concurrency", [1, 4])
    def test_budget_is_exceeded_by_what_is_in_flight_at_most(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, max_concurrency: int
    ) -> None:
        """$0.02 buy six answers at $0.003, and the seventh; everything is kept, and more money goes on from there."""
        requests = asks(30)
        endpoint.seconds = 0.02
        with pytest.raises(
            EndpointError, match=r"and the budget is \$0\.0200; raise the setting budget to go on"
        ) as error:
            engine(tmp_path, price=PRICE, budget=0.02, max_concurrency=max_concurrency).generate(requests, SAMPLING)
        spent = endpoint.answered.total() * DOLLARS
        assert 0.02 <= spent < 0.02 + max_concurrency * DOLLARS
        assert len(kept(tmp_path)) == endpoint.answered.total() == len(endpoint.bodies)
        assert f"{len(kept(tmp_path))} answers are kept in" in str(error.value)
        spending = json.loads((tmp_path / "spending.json").read_text())
        assert spending["dollars"] == pytest.approx(spent)
        assert spending["budget"] == 0.02

        before = len(endpoint.bodies)
        again = engine(tmp_path, price=PRICE, budget=0.02)
        with pytest.raises(EndpointError, match=rf"have cost \${spent:.4f}, and the budget is \$0.0200"):
            again.generate(requests, SAMPLING)
        assert len(endpoint.bodies) == before, "nothing is sent"
        first = expected(requests)[:5]
        assert again.generate(requests[:5], SAMPLING) == first, "what is there costs nothing"

        assert engine(tmp_path, price=PRICE, budget=1.0).generate(requests, SAMPLING) == expected(requests)
        assert set(endpoint.asked.values()) == {1}

    def test_no_attempt_is_repeated_when_the_budget_is_spent(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        """Each attempt is billed, though there is no text in what comes back; the fourth would be beyond $0.009."""
        endpoint.faults["a"] = [content(completion(None))] * 10
        with pytest.raises(EndpointError, match=r"have cost \$0\.0090"):
            engine(tmp_path, price=PRICE, budget=0.009, max_retries=9).generate([ask("a")], SAMPLING)
        assert endpoint.asked["a"] == 3

    def test_estimate(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
        """`question 1` has 10 letters, 3 tokens, and the turn 4; completions are of full length until one is known."""
        backend = engine(tmp_path, price=PRICE)
        before = backend.estimate([*asks(10), *asks(2)], SAMPLING)
        assert (before.num_requests, before.num_prompt_tokens) == (10, 70)
        assert (before.num_tokens, before.max_tokens) == (200, 200)
        assert before.dollars == before.max_dollars == pytest.approx((70 * 100 + 200 * 400) / 1e6)
        assert not endpoint.bodies

        backend.generate(asks(4), SAMPLING)
        after = engine(tmp_path, price=PRICE).estimate(asks(10), SAMPLING)
        assert (after.num_requests, after.num_prompt_tokens) == (6, 42)
        assert (after.num_tokens, after.max_tokens) == (6 * TOKENS, 120)
        assert after.dollars == pytest.approx((42 * 100 + 30 * 400) / 1e6)
        assert engine(tmp_path).estimate(asks(10), Sampling(max_tokens=2)).num_tokens == 20, "never beyond the limit"
        assert engine(tmp_path).estimate(asks(10), SAMPLING).dollars is None

    def test_cost(self) -> None:
        """Two million prompt tokens at $3 and half a million sampled ones at $8."""
        assert Price(input=3, output=8).cost(2_000_000, 500_000) == 10


class TestSettings:
    """What may be set, and what is said of mistakes."""

    def test_pinned_is_what_changes_the_text(self) -> None:
        """The context decides how many shots a prompt shows."""
        settings = {
            "base_url": "http://localhost/v1",
            "api_key_env": None,
            "max_concurrency": 4,
            "timeout": 1.0,
            "max_retries": 1,
            "price": {"input": 1, "output": 2},
            "budget": 3.0,
        }
        deciding = {"model": "m", "context_length": 100, "limit_parameter": "max_tokens", "extra_body": {"top_k": 3}}
        engine = {"class_path": "montessori_pl.generation.OpenAIBackend", "init_args": settings | deciding}
        assert pinned(engine)["init_args"] == deciding

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"base_url": "localhost:8000/v1"}, "base_url must begin with http:// or https://, found 'localhost"),
            ({"max_concurrency": 0}, "max_concurrency >= 1, .* found max_concurrency 0"),
            ({"timeout": 0}, "timeout > 0 .* found .* timeout 0"),
            ({"max_retries": -1}, "max_retries >= 0, found .* max_retries -1"),
            ({"budget": 5.0}, r"a budget of 5.0 dollars needs a price: set price\.input and price\.output"),
        ],
    )
    def test_mistakes(self, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            OpenAIBackend(**settings)

    def test_price_below_nothing(self) -> None:
        with pytest.raises(ValueError, match="must not be negative, found input -1"):
            Price(input=-1, output=1)

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [(None, "MY_KEY is not set"), (" ", "MY_KEY is not set"), ("sk-…", "MY_KEY holds something else than a key")],
    )
    def test_missing_key(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, value: str | None, sentence: str
    ) -> None:
        if value is not None:
            monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(EndpointError, match=sentence):
            engine(api_key_env="MY_KEY").generate([ask("a")], SAMPLING)

    def test_missing_client(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(EndpointError, match=r"pip install 'montessori-pl\[api\]'"):
            engine().generate([ask("a")], SAMPLING)

    def test_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """All settings can be given in a recipe and are shown, without the key that the environment holds."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])  # `main` adds the working directory
        arguments = {"price": {"input": 2, "output": 8}, "budget": 5}
        generation = {"class_path": "montessori_pl.generation.OpenAIBackend", "init_args": arguments}
        Path("endpoint.yaml").write_text(yaml.safe_dump({"generation": generation}))
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", "self_instruct.yaml", "--config", "endpoint.yaml", "--print_config"])
        printed = capsys.readouterr().out
        shown = yaml.safe_load(printed)["generation"]["init_args"]
        assert (shown["price"], shown["budget"]) == ({"input": 2.0, "output": 8.0}, 5.0)
        assert shown["api_key_env"] == "OPENAI_API_KEY"
        assert KEY not in printed


class TestSecret:
    """The key goes to the endpoint and nowhere else."""

    @pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 500, 200])
    def test_key_is_never_repeated(
        self,
        endpoint: FaultyEndpoint,
        engine: Engine,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        code: int,
    ) -> None:
        """Though the server repeats it: not in messages, tracebacks, logs or files, whatever the level of the logs."""
        caplog.set_level(logging.DEBUG)
        for name in ("openai", "httpx2"):
            caplog.set_level(logging.DEBUG, name)
        echo = {"error": {"message": f"who is {KEY}? {KEY}!"}, "key": KEY}
        endpoint.faults["question 3"] = [functools.partial(send, body=echo, code=code)] * 2
        backend = engine(tmp_path, max_retries=1)
        with pytest.raises(EndpointError) as error:
            backend.generate(asks(4), SAMPLING)
        assert endpoint.keys == {KEY}
        printed = capfd.readouterr()
        seen = [
            *traceback.format_exception(error.value),
            str(error.value.__context__),
            repr(backend),
            repr(vars(backend)),
            caplog.text,
            *printed,
            *(path.read_text() for path in tmp_path.iterdir()),
        ]
        assert caplog.text, "there was something to log"
        assert len(list(tmp_path.iterdir())) == 2
        assert KEY not in "\n".join(seen)

    def test_key_in_place_of_its_name(self) -> None:
        with pytest.raises(ValueError, match="is the name of an environment variable, and not the key") as error:
            OpenAIBackend(api_key_env=KEY)
        assert KEY not in str(error.value)


class TestRealModel:
    """Endpoints that answer with a model."""

    QUESTIONS = ("a", "why is it so?", "what", "b c d", "so")

    @pytest.fixture(scope="class")
    def backbone(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        return save_tiny_model(tmp_path_factory.mktemp("teacher"))

    @pytest.fixture
    def direct(self, backbone: str) -> TransformersBackend:
        """The same model without an endpoint."""
        backend = TransformersBackend(device="cpu")
        backend.load(ModelSource(backbone))
        return backend

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(temperature=0, max_tokens=12),
            Sampling(temperature=1, top_p=1, max_tokens=12),
            Sampling(temperature=0.7, top_p=0.8, presence_penalty=1.0, max_tokens=12),
        ],
        ids=["greedy", "softmax", "nucleus with penalty"],
    )
    def test_served_model_answers_as_it_does_here(
        self, direct: TransformersBackend, engine: Engine, backbone: str, sampling: Sampling
    ) -> None:
        """The example's server honours sampling and seed, so that nothing may be lost on the way."""
        server = runpy.run_path(str(ROOT / "examples" / "serve_model.py"))["make_server"](direct, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        requests = [ask(question, seed) for question in self.QUESTIONS for seed in (0, 2**31 - 1)]
        try:
            answers = engine(base_url=url, backbone=backbone).generate(requests, sampling)
        finally:
            server.shutdown()
            server.server_close()
        assert answers == direct.generate(requests, sampling)
        assert {answer.finished for answer in answers} == {True, False}

    def test_server_says_what_it_does_not_take(self, direct: TransformersBackend, engine: Engine) -> None:
        server = runpy.run_path(str(ROOT / "examples" / "serve_model.py"))["make_server"](direct, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            with pytest.raises(EndpointError, match=r"HTTP status 400 \(sampling needs temperature >= 0"):
                engine(base_url=url, extra_body={"temperature": -1}).generate([ask("a")], SAMPLING)
        finally:
            server.shutdown()
            server.server_close()

    @pytest.mark.slow
    def test_server_of_a_peer(self, direct: TransformersBackend, engine: Engine, backbone: str) -> None:
        """`transformers serve`, which others wrote: greedy answers, their ends and their token counts are ours."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("transformers")), "serve", backbone, "--device", "cpu"]
        requests = [ask(question) for question in self.QUESTIONS]
        sampling = Sampling(temperature=0, max_tokens=12)
        with subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                backend = engine(base_url=f"http://localhost:{port}/v1", backbone=backbone, timeout=60, max_retries=14)
                answers = backend.generate(requests, sampling)  # repeated until it is up
            finally:
                process.terminate()
        assert answers == direct.generate(requests, sampling)
