"""One attempt at a chat endpoint: what came back is an answer, a fault that may pass, or the end.

| what comes back | then |
|---|---|
| a completion, or a message without text that says why it ends | it is the answer |
| 408, 409, 429, 5xx, no connection, a timeout, a torn body, no JSON, no choice, an error | `RetryableError` |
| 400, 413, 422 | `RefusedError`: not this request, or none with these settings |
| any other status: 401, 403, 404, a redirect, ... | `EndpointError`: nothing can be had from here |

The key is read from the environment and goes to the client. What the server says is not repeated where it shows it.
"""

import email.utils
import importlib.util
import json
import logging
import math
import os
import re
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from montessori_pl.data.text import TEXT_PARTS, printable, writable
from montessori_pl.generation.request_journal import Answer, request_id
from montessori_pl.generation.secrets import Secret
from montessori_pl.generation.usage import held_within, most_tokens, prompt_tokens, text_tokens

log = logging.getLogger(__name__)

TRANSIENT = (408, 409, 429)
"""Status codes below 500 after which the same request may succeed."""
REFUSED = (400, 413, 422)
"""Status codes that may be about one request: a filter of its content, or its length."""
LONGEST_REASON = 300
"""Characters of a server's message that are repeated."""
LONGEST_NUMBER = 18
"""Digits of a whole number in an answer; a longer one is no count, and would take long to read."""
LONGEST_COMPLETION = 2**17
"""Tokens of a completion without a limit, or of reasoning that a server counts apart from the limit, at most."""
ENDS = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
"""Reasons, in any case, for which a completion is at its end; for any other it was cut."""
FAILED = "error"
"""The reason of a completion that broke off at the server."""
SHORTEST_KEY = 8
"""Characters of a key; what is shorter, such as `EMPTY`, stands for none, and may be a word of any sentence."""
NO_KEY = "no-key"
"""What is sent as key to a server that needs none; the client wants to send something."""


class EndpointError(ValueError):
    """Why an endpoint gives no more answers, in a sentence for the user. Those that it gave are kept."""


class RefusedError(EndpointError):
    """Why an endpoint does not answer this request, though it may answer others."""


class RetryableError(Exception):
    """Why an attempt gave no answer, though another one may.

    Args:
        reason: what went wrong.
        retry_after: seconds that the server asks to wait.
        billed: what came back, if the server counts tokens for it though it cannot be used.
    """

    def __init__(self, reason: str, retry_after: float | None = None, billed: Answer | None = None) -> None:
        super().__init__(reason)
        self.retry_after, self.billed = retry_after, billed


def check_address(base_url: str) -> None:
    """Look at whether an address can be asked.

    Raises:
        ValueError: it is none of HTTP, or its host or its port cannot be.
    """
    if not re.match(r"https?://", base_url):
        raise ValueError(f"base_url must begin with http:// or https://, found {base_url!r}")
    try:
        parts = urllib.parse.urlsplit(base_url)
        readable = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", base_url)
    except ValueError:  # of the port, or of brackets
        readable = False
    if not readable:  # it is not repeated, because it may hold a password
        raise ValueError(
            "base_url needs a host, and behind it no port or one from 1 to 65535, as in http://localhost:8000/v1; "
            "correct the one that is set"
        )


def find_key(api_key_env: str | None) -> str:
    """The key that an environment variable holds, and that there is a client to use it.

    Raises:
        EndpointError: there is no key, or no client.
    """
    if importlib.util.find_spec("openai") is None:
        raise EndpointError("an endpoint needs the package openai: pip install 'montessori-pl[api]'")
    key = os.environ.get(api_key_env, "").strip() if api_key_env is not None else NO_KEY
    if not key or not key.isascii() or not key.isprintable():
        raise EndpointError(
            f"the environment variable {api_key_env} {'holds something else than a key' if key else 'is not set'}; "
            "put the endpoint's key there, or set api_key_env to null for a server that needs none"
        )
    return key


class Endpoint:
    """A chat endpoint, asked through the client of `openai`. Threads may ask at the same time.

    Args:
        base_url: of the API; null takes the client's own.
        api_key_env: the environment variable that holds the key; null for a server that needs none.
        timeout: seconds without a sign of life after which an attempt is given up.

    Raises:
        EndpointError: there is no key, or no client.
    """

    def __init__(self, base_url: str | None, api_key_env: str | None, timeout: float) -> None:
        key = find_key(api_key_env)
        import openai

        from montessori_pl.generation.bounded_client import BoundedClient

        self._key_env = api_key_env
        # Whether to ask again is decided here for all faults alike; the client knows nothing of budgets and torn JSON.
        self._client = openai.OpenAI(
            base_url=base_url, api_key=key, timeout=timeout, max_retries=0, http_client=BoundedClient(timeout)
        )
        hidden = api_key_env is not None and len(key) >= SHORTEST_KEY
        secrets = [key if hidden else "", self._client.base_url.password]
        self._secrets = [Secret(secret) for secret in secrets if secret]
        self._miscounted = False  # the user has been told so

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """Send one request, once.

        Args:
            body: as the API wants it; its `messages` are the conversation.

        Raises:
            RetryableError: no answer, for a reason that may pass.
            RefusedError: no answer to this request.
            EndpointError: no answer, for a reason that will not.
        """
        import openai

        from montessori_pl.generation.bounded_client import BoundsError

        problem: Exception
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=dict(body)
            )
            content = _parse(response.http_response.content)
        except openai.APIStatusError as error:
            problem = self._refused(error)
        except openai.APIConnectionError as error:
            problem = RetryableError(f"{self} does not answer ({self._clean(str(error.__cause__ or error))})")
        except BoundsError as error:
            problem = RetryableError(
                f"{self} gives no answer that could be read ({error})", billed=largest_answer(body)
            )
        except ValueError:
            problem = RetryableError(f"{self} answers with something that is not JSON")
        else:
            answer, counts = read_answer(body, content), _counts(content)
            if answer.estimated and counts != (None, None):
                self._warn_of(counts)
            if answer.usable:
                return answer
            said = self._clean(_message(content))
            problem = RetryableError(
                f"{self} answers without text{f' ({said})' if said else ''}",
                billed=answer if counts != (None, None) else None,
            )
        # Not within the blocks above: a chained traceback would repeat the server's own words, unclean.
        raise problem

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __str__(self) -> str:
        """Where it is, without what an address may hold of secrets."""
        url = self._client.base_url
        return f"{url.scheme}://{url.netloc.decode()}{url.path}".rstrip("/")

    def _refused(self, error: Any) -> Exception:
        status, headers = int(error.status_code), error.response.headers
        if 300 <= status < 400:
            where = self._clean(headers.get("location", "")) or "nowhere"
            return EndpointError(
                f"{self} redirects to {where} (HTTP status {status}), where no prompt and no key is sent; set base_url "
                "to the address that you trust"
            )
        said = self._clean(_message(error.body) or error.response.text[: 2 * LONGEST_REASON])
        reason = f"{self} answers with HTTP status {status}{f' ({said})' if said else ''}"
        if status in TRANSIENT or status >= 500:
            return RetryableError(reason, retry_after=_retry_after(headers))
        if status == 401:  # servers repeat the key, or parts of it
            whose = f"the key in {self._key_env}" if self._key_env is not None else "a request without a key"
            return EndpointError(f"{self} does not accept {whose} (HTTP status 401; setting api_key_env)")
        return RefusedError(reason) if status in REFUSED else EndpointError(reason)

    def _clean(self, text: str) -> str:
        """A foreign text on one line, not too long; nothing of it where it shows the key."""
        line = " ".join(printable(text[: 10 * LONGEST_REASON]).split())
        line = line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "..."
        return "its words show the key" if any(secret.shown_in(line) for secret in self._secrets) else line

    def _warn_of(self, counts: tuple[Any, Any]) -> None:
        if not self._miscounted:
            self._miscounted = True
            found = " and ".join(self._clean(repr(count)) for count in counts)
            log.warning(
                "%s counts tokens as there cannot be (%s); they are estimated, or held at the most", self, found
            )


def read_answer(body: Mapping[str, Any], content: Any) -> Answer:
    """The answer in a chat completion, whatever it holds: nothing that was paid for is lost because it is odd.

    Tokens that the server does not count, or counts as there cannot be, are estimated; of more than there can be, the
    most are counted. A completion is finished where it ends for a reason of `ENDS`, or where none is given; or it was
    cut, at the token limit or by a content filter, or it calls a tool. There may be no text in it, as where a
    model only reasons: that is an empty answer, and asking again would give the same. A refusal is what the model says.
    Half a surrogate, which no file can hold, becomes U+FFFD.

    Args:
        body: what was asked.
        content: the parsed body of the response.
    """
    choice = _first(_get(content, "choices"))
    message, reason = _get(choice, "message"), _reason(choice)
    text, ended = _text(message), reason in ("", *ENDS)
    read, written = _counts(content)
    num_prompt_tokens, plausible = held_within(read, 1, most_tokens(body), prompt_tokens(body["messages"]))
    reasoning = _get(_get(_get(content, "usage"), "completion_tokens_details"), "reasoning_tokens")
    most = max(_limit(body), len((text or "").encode())) + held_within(reasoning, 0, LONGEST_COMPLETION, 0)[0]
    num_tokens, also = held_within(written, 1 if text else 0, most, text_tokens(text or ""))
    return Answer(
        id=request_id(body),
        text=text or "",
        finished=ended,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        estimated=not (plausible and also),
        usable=text is not None or (reason not in ("", FAILED) and (isinstance(message, dict) or not ended)),
    )


def no_answer(body: Mapping[str, Any]) -> Answer:
    """What stands for the answer to a request that is refused: nothing, cut before it began, and not billed."""
    return Answer(id=request_id(body), text="", finished=False, num_prompt_tokens=0, num_tokens=0, refused=True)


def largest_answer(body: Mapping[str, Any]) -> Answer:
    """What is counted for an answer that came and was not read to its end: as much as was asked for."""
    return Answer(
        id=request_id(body),
        text="",
        finished=False,
        num_prompt_tokens=prompt_tokens(body["messages"]),
        num_tokens=_limit(body),
        estimated=True,
        usable=False,
    )


def _parse(content: bytes) -> Any:
    """JSON, as leniently as it can be read: with bytes that are no UTF-8, and control characters within texts.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8-sig", "replace"), strict=False, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole_number(digits: str) -> float:
    return int(digits) if len(digits) <= LONGEST_NUMBER else float(digits)


def _text(message: Any) -> str | None:
    """What the model says: one text, or the texts in a list of parts, or why it refuses; none of anything else."""
    said = _get(message, "content")
    if isinstance(said, list):  # beside texts there may be reasoning, which other servers keep out of the content too
        said = "".join(parts) if (parts := list(filter(None, map(_text_part, said)))) else None
    said = _get(message, "refusal") if said is None else said
    return writable(said) if isinstance(said, str) else None


def _text_part(part: Any) -> str | None:
    said = _get(part, "text")
    return said if isinstance(said, str) and part.get("type", "text") in TEXT_PARTS else None


def _reason(choice: Any) -> str:
    """Why a completion ends, in lower case; empty where no reason is given."""
    said = _get(choice, "finish_reason")
    return "" if said is None else str(said).lower()


def _counts(content: Any) -> tuple[Any, Any]:
    """What the server says of the tokens that it read and wrote; none of what it does not count."""
    usage = _get(content, "usage")
    return _get(usage, "prompt_tokens"), _get(usage, "completion_tokens")


def _limit(body: Mapping[str, Any]) -> int:
    """The most tokens that all completions of a request may have."""
    limits = [body.get(name) for name in ("max_completion_tokens", "max_tokens")]
    number = body.get("n", 1)
    limit = next((limit for limit in limits if isinstance(limit, int)), LONGEST_COMPLETION)
    return limit * (number if isinstance(number, int) else 1)


def _get(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, dict) else None


def _first(choices: Any) -> Any:
    return choices[0] if isinstance(choices, list) and choices else None


def _message(content: Any) -> str:
    """What a server says about an error; servers put it in different places."""
    said = next((found for found in (_get(_get(content, "error"), "message"), _get(content, "message")) if found), "")
    return said if isinstance(said, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; none if it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_tz(value)
            seconds = email.utils.mktime_tz(date) - time.time() if date is not None else math.nan
        except (ValueError, OverflowError):  # a date that no calendar has
            seconds = math.nan
    return None if math.isnan(seconds) else max(seconds, 0.0)
