"""Whether a foreign text shows a secret, in whatever way it is written."""

import base64
import re
from collections.abc import Iterator

LONGEST_PART = 7
"""So many letters and digits of a secret in a row may be shown; more are taken for the secret."""


class Secret:
    """A key or password that no text may show.

    Servers repeat what they are sent: in another case, spaced out, encoded, backwards, or in part. A text is therefore
    looked at by its letters and digits alone.

    Args:
        text: the secret; of one that is shorter than `LONGEST_PART`, the whole is looked for.
    """

    def __init__(self, text: str) -> None:
        self._parts: set[str] = set()
        for form in map(_letters, _forms(text)):
            size = min(len(form), LONGEST_PART + 1)
            self._parts |= {form[start : start + size] for start in range(len(form) - size + 1)} - {""}

    def shown_in(self, text: str) -> bool:
        """Whether a text holds the secret or a long part of it."""
        letters = _letters(text)
        return any(part in letters for part in self._parts)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).casefold()


def _forms(text: str) -> Iterator[str]:
    """The ways in which a secret may be written."""
    for one in (text, text[::-1]):
        data = one.encode()
        yield one
        yield data.hex()
        for shift in range(3):  # within a longer text, base64 depends on the place
            digits = base64.b64encode(bytes(shift) + data).decode()
            # Without the digits that depend on what stands before and behind the secret.
            yield digits[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6]
        # As escapes of numbers: \x73, &#x73; and %73, \u0073, &#115;
        yield "".join(f"x{byte:02x}" for byte in data)
        yield "".join(f"u{byte:04x}" for byte in data)
        yield "".join(map(str, data))
