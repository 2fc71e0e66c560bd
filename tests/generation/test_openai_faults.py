"""An endpoint that fails in every way it can: what passes is repeated, and what does not ends in a sentence."""

import dataclasses
import email.utils
import os
import random
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from asking import DOLLARS, PRICE, SAMPLING, Engine, ask, expected, kept, make_requests
from endpoint import (
    TOKENS,
    FaultyEndpoint,
    Misbehaviour,
    completion,
    content,
    dropped,
    hang,
    status,
    torn,
    torn_at_the_end,
)

from montessori_pl.generation import Completion, EndpointError, openai_backend
from montessori_pl.generation.endpoint import _retry_after
from montessori_pl.generation.request_journal import ANSWERS, RequestJournal

pytestmark = pytest.mark.usefixtures("short_waits")

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
    "no text and no reason": content(completion(None, finish_reason=None)),
    "an error for a reason": content(completion(None, finish_reason="error")),
    "an error with status 200": content({"error": {"message": "upstream is busy"}}),
}


class TestFaults:
    """Everything that can go wrong on the way."""

    @pytest.mark.parametrize("error", PASSING)
    def test_what_passes_is_repeated(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, error: str
    ) -> None:
        """Two requests of eight fail once and twice: all are answered, in order, and nobody else is asked again."""
        requests = make_requests(8)
        endpoint.faults["question 2"] = [PASSING[error]]
        endpoint.faults["question 5"] = [PASSING[error]] * 2
        timeout = 1 if error == "hang" else 30
        assert engine(tmp_path, timeout=timeout).generate(requests, SAMPLING) == expected(requests)
        again = {"question 2": 2, "question 5": 3}
        assert endpoint.asked == Counter({f"question {index}": 1 for index in range(8)} | again)
        assert set(endpoint.answered.values()) == {1}
        assert len([answer for answer in kept(tmp_path) if answer.usable]) == 8

    @pytest.mark.parametrize("error", PASSING)
    def test_what_does_not_pass_ends_in_a_sentence(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, error: str
    ) -> None:
        """After two repetitions; the same command goes on and asks for nothing that is there."""
        requests = make_requests(5)
        endpoint.faults["question 3"] = [PASSING[error]] * 3
        timeout = 1 if error == "hang" else 30
        with pytest.raises(EndpointError, match="3 times in a row") as raised:
            engine(tmp_path, max_retries=2, max_concurrency=1, timeout=timeout).generate(requests, SAMPLING)
        assert f"3 answers are kept in {tmp_path / ANSWERS}, and the same command goes on" in str(raised.value)
        assert endpoint.asked["question 3"] == 3
        assert engine(tmp_path).generate(requests, SAMPLING) == expected(requests)
        assert set(endpoint.answered.values()) == {1}

    @pytest.mark.parametrize(
        ("code", "said", "sentence"),
        [
            (401, "wrong key", r"does not accept the key in OPENAI_API_KEY \(HTTP status 401"),
            (403, "not in your country", r"HTTP status 403 \(not in your country\)"),
            (404, "no model of that name", r"HTTP status 404 \(no model of that name\)"),
        ],
    )
    def test_what_cannot_pass_ends_at_once(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, code: int, said: str, sentence: str
    ) -> None:
        """What is in flight is answered and kept; nothing further is sent."""
        endpoint.seconds = 0.2
        endpoint.faults["question 1"] = [status(code, said)]
        with pytest.raises(EndpointError, match=sentence) as error:
            engine(tmp_path, max_concurrency=4).generate(make_requests(40), SAMPLING)
        assert "\n" not in str(error.value)
        assert endpoint.asked["question 1"] == 1
        assert 1 < len(endpoint.bodies) <= 5
        assert len(kept(tmp_path)) == endpoint.answered.total() == len(endpoint.bodies) - 1
        assert f"{len(kept(tmp_path))} answers are kept" in str(error.value)

    @pytest.mark.parametrize("code", [400, 413, 422])
    def test_one_that_is_refused_has_an_empty_answer(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
    ) -> None:
        """The first of twelve, before any is answered; the rest is asked for, and later sessions do not ask again."""
        endpoint.faults["question 0"] = [status(code, "content management policy")]
        requests = make_requests(12)
        answers = engine(tmp_path, max_concurrency=1, price=PRICE).generate(requests, SAMPLING)
        assert answers == [Completion(text="", finished=False, num_tokens=0), *expected(requests)[1:]]
        assert "1 of 12 requests are refused, and have an empty answer; for example 'question 0': " in caplog.text
        assert "(content management policy)" in caplog.text
        assert engine(tmp_path).generate(requests, SAMPLING) == answers
        assert set(endpoint.asked.values()) == {1}
        usage = RequestJournal(tmp_path).spending.usage
        assert (usage.num_answers, usage.num_refused) == (11, 1)
        assert usage.num_tokens == 11 * TOKENS

    def test_one_that_is_refused_alone_stands_beside_earlier_answers(
        self, endpoint: FaultyEndpoint, engine: Engine
    ) -> None:
        """Of the same settings: with others, that it is not answered may be due to them."""
        backend = engine()
        backend.generate([ask("a")], SAMPLING)
        endpoint.faults["b"] = [status(400)] * 2
        with pytest.raises(EndpointError, match=r"HTTP status 400 \(told to\), when it is asked 'b'; 1 answers are"):
            backend.generate([ask("b")], dataclasses.replace(SAMPLING, max_tokens=10**6))
        assert backend.generate([ask("b")], SAMPLING)[0].text == ""

    @pytest.mark.parametrize("code", [400, 413, 422])
    def test_where_all_are_refused_nothing_further_is_sent(
        self, endpoint: FaultyEndpoint, engine: Engine, code: int
    ) -> None:
        requests = make_requests(40)
        for request in requests:
            endpoint.faults[request.messages[-1]["content"]] = [status(code, "unexpected field")]
        with pytest.raises(
            EndpointError,
            match=rf"HTTP status {code} \(unexpected field\), when it is asked 'question \d'; 0 answers are",
        ):
            engine(max_concurrency=4).generate(requests, SAMPLING)
        assert len(endpoint.bodies) <= 3 + 4

    def test_answers_on_the_way_speak_for_the_settings(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        """Three are refused before the fourth is answered; then the others are asked too."""
        endpoint.seconds = 0.2
        requests = make_requests(8)
        for number in range(3):
            endpoint.faults[f"question {number}"] = [status(400)]
        answers = engine(max_concurrency=4).generate(requests, SAMPLING)
        assert [answer.text for answer in answers] == ["", "", "", *(one.text for one in expected(requests)[3:])]

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
        assert 10 <= openai_backend._seconds_to_wait(0, 10) <= 12.5
        assert 90 <= openai_backend._seconds_to_wait(9, 10) <= 120
        assert random.getstate() == state, "the generator of the stages is left alone"

    @pytest.mark.parametrize("value", ["0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
    def test_who_may_come_back_at_once_waits_all_the_same(
        self, endpoint: FaultyEndpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        """Three quarters of 0.2 and 0.4 seconds at least."""
        monkeypatch.setattr(openai_backend, "FIRST_WAIT", 0.2)
        endpoint.faults["a"] = [status(429, Retry_After=value)] * 2
        engine().generate([ask("a")], SAMPLING)
        first, second, third = endpoint.times["a"]
        assert (second - first >= 0.15, third - second >= 0.3) == (True, True)

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
        endpoint.faults["a"] = [content(completion(None, finish_reason="error"))] * 2
        backend = engine(tmp_path, price=PRICE)
        assert backend.generate([ask("a")], SAMPLING) == expected([ask("a")])
        assert backend.dollars == pytest.approx(3 * DOLLARS)
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
                engine(tmp_path, max_concurrency=4).generate(make_requests(40), SAMPLING)
        finally:
            signal.signal(signal.SIGINT, before)
        assert "waiting for the requests in flight" in caplog.text
        assert len(kept(tmp_path)) == len(endpoint.bodies) == endpoint.answered.total() <= 12
