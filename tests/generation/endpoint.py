"""A chat endpoint for tests, which misbehaves as it is told to and counts what it is asked."""

import json
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PROMPT_TOKENS, TOKENS = 10, 5
"""What each answer is said to have used."""

Misbehaviour = Callable[[BaseHTTPRequestHandler], None]
"""What happens to an attempt instead of an answer."""


def status(code: int, said: str = "told to", **headers: str) -> Misbehaviour:
    """An error in the API's form; underscores in the names of headers are hyphens."""
    return lambda handler: send(handler, {"error": {"message": said}}, code, headers)


def hang(seconds: float = 2.0) -> Misbehaviour:
    """Nothing for a while, and then no answer either."""
    return lambda handler: time.sleep(seconds)


def content(body: Any, **headers: str) -> Misbehaviour:
    """A whole response with another content; text goes out as it is."""
    return lambda handler: send(handler, body, headers=headers)


def trickling(handler: BaseHTTPRequestHandler) -> None:
    """A blank now and then, and no end."""
    send(handler, "")
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def torn(handler: BaseHTTPRequestHandler) -> None:
    """Half of the body that was announced."""
    data = json.dumps(completion("half")).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])


def torn_at_the_end(handler: BaseHTTPRequestHandler) -> None:
    """Half of a body whose length was not announced: a response like any other, but for its JSON."""
    send(handler, json.dumps(completion("half"))[:-30])


def dropped(handler: BaseHTTPRequestHandler) -> None:
    """A connection that is reset without a byte."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def completion(text: Any, finish_reason: Any = "stop", usage: bool = True) -> dict[str, Any]:
    """A chat completion as the API returns it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    used = {"usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": TOKENS}} if usage else {}
    return {"object": "chat.completion", "choices": [choice], **used}


def answer_to(question: str, seed: int) -> str:
    """What the endpoint answers."""
    return f"answer to {question} with {seed}"


def send(handler: BaseHTTPRequestHandler, body: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
    """A whole response."""
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    for name, value in (headers or {}).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    handler.wfile.write(text.encode() if isinstance(text, str) else text)


class FaultyEndpoint:
    """An endpoint on this machine, while the block runs.

    Set its attributes before it is asked; a question is the last message of a conversation.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[Misbehaviour]] = defaultdict(list)
        """For a question, what happens to its first attempts, in order; then it is answered."""
        self.answer: Callable[[str, int], dict[str, Any]] = lambda question, seed: completion(answer_to(question, seed))
        """The response to a question with a seed."""
        self.seconds = 0.0
        """How long an answer takes."""
        self.after_answer: Callable[[int], None] = lambda number: None
        """Called with the number of answers so far, when another one has been sent."""
        self.bodies: list[dict[str, Any]] = []
        """All that was asked, in the order in which it came."""
        self.times: dict[str, list[float]] = defaultdict(list)
        """For each question, when it was asked."""
        self.keys: set[str] = set()
        """The keys that were sent."""
        self.answered: Counter[str] = Counter()
        """For each question, how often its answer was sent."""
        self.most_in_flight = 0
        """The largest number of requests at the same time."""
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())

    @property
    def base_url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def asked(self) -> Counter[str]:
        """For each question, how often it was asked."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint._handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        assert handler.path == "/v1/chat/completions"
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self._lock:
            self.bodies.append(body)
            self.times[question].append(time.monotonic())
            self.keys.add(handler.headers["Authorization"].removeprefix("Bearer "))
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            error = self.faults[question].pop(0) if self.faults[question] else None
        if error is not None:
            error(handler)
        else:
            time.sleep(self.seconds)
            send(handler, self.answer(question, body.get("seed", 0)))
        with self._lock:
            self._in_flight -= 1  # the client reads until the connection ends, which it does after this
            self.answered[question] += error is None
            number = self.answered.total()
        if error is None:
            self.after_answer(number)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is what the tests are about."""
