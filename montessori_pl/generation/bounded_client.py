"""The connection to an endpoint: answers of bounded size, within bounded time, from the address that was asked.

A module of its own because the client's package, of which this needs a class, need not be installed.
"""

import time
import zlib
from typing import Any

import openai

LARGEST_RESPONSE = 16 * 2**20
"""Bytes of a response at most, also after decompression: some thousand times the longest completion."""
TIMEOUTS_IN_ALL = 4
"""An attempt ends after so many times its timeout, however its response trickles."""
_OF_THE_TRANSFER = ("content-encoding", "content-length", "content-type", "transfer-encoding")
"""Headers that do not hold any more for a body that was read, and whose claims about the text nobody needs."""


class BoundsError(Exception):
    """A response was longer than any answer, or trickled for too long."""


class BoundedClient(openai.DefaultHttpxClient):
    """Reads each response whole, within bounds, and follows no redirect: prompts and key go where they were sent.

    Args:
        timeout: seconds without a sign of life after which an attempt is given up.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout=timeout, follow_redirects=False)
        self._seconds = TIMEOUTS_IN_ALL * timeout

    def send(self, request: Any, **options: Any) -> Any:
        """Send one request.

        Raises:
            BoundsError: what comes back is longer than any answer, or does not end.
        """
        end = time.monotonic() + self._seconds
        request.headers["Accept-Encoding"] = "identity"
        response = super().send(request, **(options | {"stream": True, "follow_redirects": False}))
        try:
            body = self._read(response, end)
        finally:
            response.close()
        headers = [(name, value) for name, value in response.headers.items() if name not in _OF_THE_TRANSFER]
        return type(response)(response.status_code, headers=headers, content=body, request=request)

    def _read(self, response: Any, end: float) -> bytes:
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > LARGEST_RESPONSE:
                raise BoundsError(f"more than {LARGEST_RESPONSE:,} bytes")
            if time.monotonic() > end:
                raise BoundsError(f"no end after {self._seconds:g} seconds")
        return _decompressed(bytes(body), response.headers.get("content-encoding", "").strip().lower())


def _decompressed(body: bytes, encoding: str) -> bytes:
    """The body, which some servers compress unasked; as it came where this fails: it is then no JSON."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        plain = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, LARGEST_RESPONSE + 1)
    except zlib.error:
        return body
    if len(plain) > LARGEST_RESPONSE:
        raise BoundsError(f"more than {LARGEST_RESPONSE:,} bytes, decompressed")
    return plain
