"""Names of the embedded classroom beside hub ids and paths: `classroom/teacher`, `classroom@3/seeds[:10]`."""

import re

from montessori_pl import classroom

_CLASSROOM = re.compile(r"(classroom(?:@[^/]*)?/[^\[]*)(\[.*\])?")


def locate(name: str) -> str:
    """The path of what the classroom calls by this name, which is built first if need be; other names as they are.

    Raises:
        ValueError: the classroom has nothing of this name.
    """
    match = _CLASSROOM.fullmatch(name)
    return f"{classroom.resolve(match[1])}{match[2] or ''}" if match else name
