"""One attempt at a chat endpoint: what came back is an answer, a fault that may pass, or the end.

| what comes back | then |
|---|---|
| a completion | it is the answer |
| 408, 409, 429, 5xx, no connection, a timeout, a torn body, no JSON, no choice, no text | `Fault`: may be asked again |
| any other status: 400, 401, 403, 404, ... | `EndpointError`: nothing can be had from here |

The key is read from the environment, goes to the client, and is taken out of whatever the server says.
"""

import email.utils
import importlib.util
import os
import time
from collections.abc import Mapping
from typing import Any

from montessori_pl.generation.request_journal import Answer, request_id
from montessori_pl.generation.usage import prompt_tokens, text_tokens

TRANSIENT = (408, 409, 429)
"""Status codes below 500 after which the same request may succeed."""
LONGEST_REASON = 300
"""Characters of a server's message that are repeated."""
NO_KEY = "no-key"
"""What is sent as key to a server that needs none; the client wants to send something."""


class EndpointError(ValueError):
    """Why an endpoint gives no more answers, in a sentence for the user. Those that it gave are kept."""


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


def find_key(api_key_env: str | None) -> str:
    """The key that an environment variable holds, and that there is a client to use it.

    Raises:
        EndpointError: there is no key, or no client.
    """
    if importlib.util.find_spec("openai") is None:
        raise EndpointError("an endpoint needs the package openai: pip install 'montessori-pl[api]'")
    key = os.environ.get(api_key_env, "").strip() if api_key_env is not None else NO_KEY
    if not key or not key.isascii():
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

        self._key_env = api_key_env
        # Whether to ask again is decided here for all faults alike; the client knows nothing of budgets and torn JSON.
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """Send one request, once.

        Args:
            body: as the API wants it; its `messages` are the conversation.

        Raises:
            Fault: no answer, for a reason that may pass.
            EndpointError: no answer, for a reason that will not.
        """
        import openai

        problem: Exception
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=dict(body)
            )
            content = response.http_response.json()
        except openai.APIStatusError as error:
            problem = self._refused(error)
        except openai.APIConnectionError as error:
            problem = RetryableError(f"{self} does not answer ({self._clean(str(error.__cause__ or error))})")
        except ValueError:
            problem = RetryableError(f"{self} answers with something that is not JSON")
        else:
            answer = read_answer(body, content)
            if answer.usable:
                return answer
            said = self._clean(_message(content))
            problem = RetryableError(
                f"{self} answers without text{f' ({said})' if said else ''}",
                billed=None if answer.estimated else answer,
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
        status = int(error.status_code)
        said = self._clean(_message(error.body) or error.response.text)
        reason = f"{self} answers with HTTP status {status}{f' ({said})' if said else ''}"
        if status in TRANSIENT or status >= 500:
            return RetryableError(reason, retry_after=_retry_after(error.response.headers))
        if status == 401:  # servers repeat the key, or parts of it
            whose = f"the key in {self._key_env}" if self._key_env is not None else "a request without a key"
            return EndpointError(f"{self} does not accept {whose} (HTTP status 401; setting api_key_env)")
        return EndpointError(reason)

    def _clean(self, text: str) -> str:
        """A foreign text on one line, not too long and without the key."""
        line = " ".join(text.replace(self._client.api_key, "[key]").split())
        return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "..."


def read_answer(body: Mapping[str, Any], content: Any) -> Answer:
    """The answer in a chat completion.

    Tokens that the server does not count are estimated. A completion is unfinished where it was cut at the token limit
    or by a content filter; what is left of it then may be nothing, and asking again would give the same.

    Args:
        body: what was asked.
        content: the parsed body of the response, whatever it is.
    """
    choice = _first(_get(content, "choices"))
    text = _get(_get(choice, "message"), "content")
    cut = _get(choice, "finish_reason") in ("length", "content_filter")
    counts = [_get(_get(content, "usage"), name) for name in ("prompt_tokens", "completion_tokens")]
    counted = all(isinstance(count, int) for count in counts)
    return Answer(
        id=request_id(body),
        text=text if isinstance(text, str) else "",
        finished=isinstance(text, str) and not cut,
        num_prompt_tokens=counts[0] if counted else prompt_tokens(body["messages"]),
        num_tokens=counts[1] if counted else text_tokens(text or ""),
        estimated=not counted,
        usable=isinstance(text, str) or cut,
    )


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
        return max(float(value), 0.0)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(email.utils.mktime_tz(date) - time.time(), 0.0) if date is not None else None
