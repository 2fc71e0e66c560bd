"""Answers that hold what no answer should: each is kept, none is asked for twice, and the budget holds."""

import base64
import gzip
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from asking import KEY, PRICE, SAMPLING, Engine, ask, kept
from endpoint import PROMPT_TOKENS, TOKENS, FaultyEndpoint, completion, content, status, trickling

from montessori_pl.data.records import append_records
from montessori_pl.generation import EndpointError, bounded_client
from montessori_pl.generation.endpoint import read_answer
from montessori_pl.generation.request_journal import ANSWERS, RequestJournal
from montessori_pl.generation.secrets import Secret

pytestmark = pytest.mark.usefixtures("short_waits")

BODY = {"messages": [{"role": "user", "content": "12345678"}], "max_tokens": 20}
"""8 bytes, estimated as 2 tokens and 4 for the turn; at most 20 tokens come back."""
MOST_READ = 8 + 2**14
"""A token for each byte, and what a server may put around."""


def message(**fields: Any) -> dict[str, Any]:
    """A completion whose message has these fields."""
    return {**completion(""), "choices": [{"message": fields, "finish_reason": "stop"}]}


def counted(prompt_tokens: Any, completion_tokens: Any, text: str = "12345678", **more: Any) -> dict[str, Any]:
    """A completion with these counts."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **more}
    return {**completion(text), "usage": usage}


ODD: dict[str, tuple[Any, str]] = {
    "half a surrogate": (json.dumps(completion("a\ud83d b")), "a\ufffd b"),
    "the other half": (json.dumps(completion("\udc00")), "\ufffd"),
    "a whole pair": (json.dumps(completion("\ud83d\ude00")), "\U0001f600"),
    "half a surrogate in every other text": (
        {**completion("a"), "id": "\ud800", "model": "\ud800", "system_fingerprint": "\udfff"},
        "a",
    ),
    "a surrogate as the reason": (completion("a", finish_reason="\ud800"), "a"),
    "no UTF-8": (json.dumps(completion("a?")).encode().replace(b"?", b"\xff\xfe"), "a\ufffd\ufffd"),
    "a byte-order mark": ("\ufeff" + json.dumps(completion("a")), "a"),
    "NUL": (completion("a\0b"), "a\0b"),
    "raw control characters": (json.dumps(completion("a?b")).replace("?", "\n\1"), "a\n\1b"),
    "an escape sequence": (completion("\x1b[2J"), "\x1b[2J"),
    "a line separator": (completion("a\u2028b\u0085c"), "a\u2028b\u0085c"),
    "parts": (message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
    "reasoning beside the text": (
        message(
            content=[{"type": "thinking", "thinking": [{"type": "text", "text": "b"}]}, {"type": "text", "text": "a"}]
        ),
        "a",
    ),
    "reasoning as a part with text": (
        message(content=[{"type": "reasoning", "text": "b"}, {"type": "text", "text": "a"}]),
        "a",
    ),
    "reasoning alone": (message(content=None, reasoning_content="b"), ""),
    "parts that are no text": (message(content=[{"type": "image_url", "image_url": "x"}]), ""),
    "a number as text": (message(content=42), ""),
    "a refusal": (message(content=None, refusal="I will not."), "I will not."),
    "duplicate keys": ('{"choices": [], ' + json.dumps(completion("a"))[1:], "a"),
    "more choices than asked for": ({**completion("a"), "choices": completion("a")["choices"] * 3}, "a"),
    "a reason of another kind": (completion("a", finish_reason=["stop"]), "a"),
    "NaN beside it": (json.dumps({**completion("a"), "created": float("nan"), "score": float("inf")}), "a"),
    "a number of 5,000 digits beside it": (json.dumps(completion("a"))[:-1] + f', "created": {"9" * 5000}}}', "a"),
    "a wrong content type": (content(completion("a"), Content_Type="text/html; charset=idna"), "a"),
    "compressed though nobody asked": (
        content(gzip.compress(json.dumps(completion("a")).encode()), Content_Encoding="gzip"),
        "a",
    ),
}


def test_odd_answers_are_kept(endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
    """Read again by a later session, and asked for once."""
    for name, (body, _) in ODD.items():
        endpoint.faults[name] = [body if callable(body) else content(body)]
    answers = engine(tmp_path).generate([ask(name) for name in ODD], SAMPLING)
    assert {name: answer.text for name, answer in zip(ODD, answers, strict=True)} == {
        name: text for name, (_, text) in ODD.items()
    }
    assert {(answer.num_tokens, answer.num_prompt_tokens) for answer in answers} == {(TOKENS, PROMPT_TOKENS)}
    assert engine(tmp_path).generate([ask(name) for name in ODD], SAMPLING) == answers
    assert endpoint.asked == dict.fromkeys(ODD, 1)
    append_records(tmp_path / "copy.jsonl", kept(tmp_path))


def test_a_call_of_a_tool_has_no_text(endpoint: FaultyEndpoint, engine: Engine) -> None:
    """Asked again, the model would call it again."""
    endpoint.answer = lambda question, seed: completion(None, finish_reason=question)
    answers = engine().generate([ask("tool_calls"), ask("function_call")], SAMPLING)
    assert [(answer.text, answer.finished) for answer in answers] == [("", False)] * 2
    assert set(endpoint.asked.values()) == {1}


WORTHLESS: dict[str, Any] = {
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "a list": [],
    "choices of numbers": {"choices": [1, 2]},
    "a message that is a list": {"choices": [{"message": ["a"]}]},
    "no text and no reason": completion(None, finish_reason=None),
    "an error for a reason": completion(None, finish_reason="ERROR"),
    "an error whose message is a list": {"error": {"message": ["a"]}},
    "counts for nothing": {"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": -1}},
}


def test_what_is_no_answer_is_asked_again(endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
    for name, body in WORTHLESS.items():
        endpoint.faults[name] = [content(body)]
    assert all(answer.finished for answer in engine(tmp_path).generate([ask(name) for name in WORTHLESS], SAMPLING))
    assert endpoint.asked == dict.fromkeys(WORTHLESS, 2)
    assert [answer.usable for answer in kept(tmp_path)].count(False) == 3, "those that count tokens are billed"


@pytest.mark.parametrize(
    ("answer", "read", "written", "estimated"),
    [
        (counted(10, 5), 10, 5, False),
        (counted(10.0, 5.0), 10, 5, False),
        (counted(10**400, 5), MOST_READ, 5, True),
        (counted(float("inf"), float("inf")), MOST_READ, 20, True),
        (counted(10, 21), 10, 20, True),
        (counted(10, 10**12), 10, 20, True),
        (counted(-5, 5), 6, 5, True),
        (counted(10, -(10**400)), 10, 2, True),
        (counted(0, 0), 6, 2, True),
        (counted(10, 0, text=""), 10, 0, False),
        (counted("10", "5"), 6, 2, True),
        (counted(None, None), 6, 2, True),
        (counted(True, [5]), 6, 2, True),
        (counted(float("nan"), 2.5), 6, 2, True),
        (counted({"prompt_tokens": 3}, 5), 6, 5, True),
        (counted(10, 25, text="x" * 24), 10, 24, True),
        (counted(10, 24, text="x" * 24), 10, 24, False),
        (counted(10, 5000, completion_tokens_details={"reasoning_tokens": 4980}), 10, 5000, False),
        (counted(10, 10**9, completion_tokens_details={"reasoning_tokens": 10**9}), 10, 20 + 2**17, True),
        (counted(10, 50, completion_tokens_details={"reasoning_tokens": -30}), 10, 20, True),
        ({**completion("12345678"), "usage": [1, 2]}, 6, 2, True),
    ],
)
def test_counts_are_held_within_what_is_possible(answer: Any, read: int, written: int, estimated: bool) -> None:
    """Read: from 1 token to one per byte and 2**14 more. Written: 20, or one per byte, and what is called reasoning.

    What is less, or no number, is estimated: (8 / 4) + 4 tokens are read and 8 / 4 written.
    """
    found = read_answer(BODY, answer)
    assert (found.num_prompt_tokens, found.num_tokens, found.estimated) == (read, written, estimated)


def test_wrong_counts_neither_end_a_run_nor_give_credit(
    endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The user is told once, and a later session counts the same."""
    numbers = ["1" + "0" * 400, "1" + "0" * 5000, "-1000000000", "0", '"9"', "1e999", "NaN"]
    questions = [f"question {place}" for place in range(len(numbers))]
    for question, number in zip(questions, numbers, strict=True):
        endpoint.faults[question] = [content(json.dumps(counted("N", "N")).replace('"N"', number))]
    backend = engine(tmp_path, price=PRICE)
    with caplog.at_level(logging.WARNING):
        backend.generate([ask(question) for question in questions], SAMPLING)
    assert caplog.text.count("counts tokens as there cannot be") == 1
    dollars = [PRICE.cost(one.num_prompt_tokens, one.num_tokens) for one in kept(tmp_path)]
    assert 0 < min(dollars) < max(dollars) <= PRICE.cost(10 + 2**14, 20)
    again = engine(tmp_path, price=PRICE)
    assert again.usage == backend.usage
    assert again.usage.num_estimated == len(numbers)


def test_budget_holds_against_negative_counts(endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
    """Each answer is estimated at 5 tokens read and 3 written: $0.0017. The third one reaches $0.0045."""
    endpoint.answer = lambda question, seed: counted(-(10**9), -(10**9), text="123456789")
    with pytest.raises(EndpointError, match=r"have cost \$0\.0051, and the budget is \$0\.0045"):
        engine(tmp_path, price=PRICE, budget=0.0045, max_concurrency=1).generate(
            [ask("a", seed) for seed in range(9)], SAMPLING
        )
    assert endpoint.asked["a"] == 3


@pytest.mark.parametrize("number", ["1" + "0" * 30, "-1", '"1"', "1.5", "null", "1e400"])
def test_kept_counts_that_cannot_be_are_refused(tmp_path: Path, number: str) -> None:
    line = f'{{"id": "a", "text": "b", "finished": true, "num_tokens": {number}, "num_prompt_tokens": 1}}\n'
    (tmp_path / ANSWERS).write_text(line)
    with pytest.raises(ValueError, match=rf"{ANSWERS} holds something else than answers \(num_tokens must be"):
        RequestJournal(tmp_path)


class TestBounds:
    """Size and time of a response."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bounded_client, "LARGEST_RESPONSE", 10_000)

    @pytest.mark.parametrize(
        "fault",
        [
            content("x" * 20_000),
            status(500, said="x" * 20_000),
            content(gzip.compress(b"x" * 20_000), Content_Encoding="gzip"),
        ],
        ids=["long", "long error", "bomb"],
    )
    def test_huge(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, fault: Any) -> None:
        """Counted as what was asked for: 5 tokens read, at 100, and 20 written, at 400 dollars for a million."""
        endpoint.faults["a"] = [fault] * 2
        backend = engine(tmp_path, price=PRICE, max_retries=1)
        with pytest.raises(EndpointError, match=r"more than 10,000 bytes.*2 times in a row"):
            backend.generate([ask("a")], SAMPLING)
        assert backend.dollars == pytest.approx(2 * 0.0085)

    def test_trickle(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        """It would last for 4 seconds; four times 0.1 seconds are allowed."""
        endpoint.faults["a"] = [trickling]
        with pytest.raises(EndpointError, match=r"could be read \(no end after 0\.4 seconds\)"):
            engine(timeout=0.1, max_retries=0).generate([ask("a")], SAMPLING)


class TestRedirects:
    """Nothing is sent to where nobody has sent it."""

    @pytest.fixture
    def elsewhere(self) -> Iterator[tuple[str, list[str]]]:
        """Another server, and what it is asked."""
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *arguments: Any) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
            server.shutdown()

    def test_redirects_are_refused(
        self, endpoint: FaultyEndpoint, engine: Engine, elsewhere: tuple[str, list[str]]
    ) -> None:
        url, asked = elsewhere
        for code in (301, 302, 303, 307, 308):
            endpoint.faults[str(code)] = [status(code, Location=f"{url}/v1/chat/completions")]
            with pytest.raises(
                EndpointError, match=rf"redirects to {url}/v1/chat/completions \(HTTP status {code}\), where no"
            ):
                engine().generate([ask(str(code))], SAMPLING)
        assert asked == []
        assert set(endpoint.asked.values()) == {1}

    def test_one_that_shows_the_key(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        endpoint.faults["a"] = [status(307, Location=f"https://elsewhere/?key={KEY}")]
        with pytest.raises(EndpointError, match="redirects to its words show the key") as error:
            engine().generate([ask("a")], SAMPLING)
        assert KEY not in str(error.value)


WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "upper case": str.upper,
    "spaced out": " ".join,
    "in lines": "\n".join,
    "with hyphens": "-".join,
    "backwards": lambda key: key[::-1],
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of a header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of a user": lambda key: base64.b64encode(f"user:{key}:".encode()).decode(),
    "URL-safe base64": lambda key: base64.urlsafe_b64encode(f"?{key}".encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(":"),
    "URL-encoded": lambda key: "".join(f"%{byte:02X}" for byte in key.encode()),
    "escapes of Python": lambda key: "".join(f"\\x{byte:02x}" for byte in key.encode()),
    "escapes of JSON": lambda key: "".join(f"\\u{byte:04x}" for byte in key.encode()),
    "HTML": lambda key: "".join(f"&#{byte};" for byte in key.encode()),
    "the first part": lambda key: f"{key[:11]}****",
    "the last part": lambda key: f"****{key[-8:]}",
}


@pytest.mark.parametrize("way", WAYS)
def test_key_is_found_however_it_is_written(way: str) -> None:
    assert Secret(KEY).shown_in(f"who is {WAYS[way](KEY)}?")


def test_words_that_show_the_key_are_left_out(endpoint: FaultyEndpoint, engine: Engine) -> None:
    endpoint.faults["a"] = [status(503, said=WAYS["base64 of a header"](KEY))]
    with pytest.raises(EndpointError, match=r"HTTP status 503 \(its words show the key\), 1 times in a row"):
        engine(max_retries=0).generate([ask("a")], SAMPLING)


def test_password_of_an_address_is_a_secret_too(endpoint: FaultyEndpoint, engine: Engine) -> None:
    endpoint.faults["a"] = [status(400, said="who is A-VERY-LONG-PASSWORD?")]
    url = endpoint.base_url.replace("http://", "http://user:averylongpassword@")
    with pytest.raises(EndpointError, match="its words show the key"):
        engine(base_url=url, api_key_env=None).generate([ask("a")], SAMPLING)


def test_what_resembles_a_key_is_shown() -> None:
    secret = Secret(KEY)
    assert secret.shown_in("sk-secret-0123")
    for text in ("a secret", "sk-sec...", "0123456", "maximum context length is 8192 tokens"):
        assert not secret.shown_in(text)
    assert Secret("abc").shown_in("A-B.C")
    assert not Secret("abc").shown_in("ab")


def test_errors_do_not_speak_to_the_terminal(endpoint: FaultyEndpoint, engine: Engine) -> None:
    endpoint.faults["a"] = [status(400, said="\x1b[31mred\x1b[0m\r\x07 \u202egnp")]
    with pytest.raises(EndpointError, match=r"\(\\x1b\[31mred\\x1b\[0m\\r\\x07 \\u202egnp\)"):
        engine().generate([ask("a")], SAMPLING)
