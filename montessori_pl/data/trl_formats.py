"""TRL's dataset formats: a prompt with its completion, or with a chosen and a rejected one.

Each exists as plain text and as conversations, which are lists of {"role", "content"}. Of a preference the chosen side
is read. An example is one system message, one user turn and one response: what does not fit becomes a rejection.
"""

from typing import Any

from montessori_pl.data.turns import Row, Turns, Unusable, objects

NOT_TEXT = ("tools", "image", "images", "chat_template_kwargs")
"""Columns by which TRL shows a model more than the messages."""


def from_completion(row: Row) -> Turns:
    """The turns of a row with `prompt` and `completion`, and perhaps with `label`, which says if it is a good one.

    Raises:
        Unusable: the completion is a bad one, or the row holds more than an example can.
    """
    if row.get("label") is False:
        raise Unusable("undesirable completion", "its label is false")
    return _with_answer(row, row["prompt"], row["completion"])


def from_preference(row: Row) -> Turns:
    """The turns of a row with `chosen` and `rejected`, with the prompt in its own column or at the start of both.

    Raises:
        Unusable: nothing says where the prompt ends, or the row holds more than an example can.
    """
    prompt, chosen = row.get("prompt"), row["chosen"]
    if not isinstance(chosen, list):
        if prompt is None:
            raise Unusable("no prompt", "chosen and rejected are plain text, and no column prompt says where it ends")
        return _with_answer(row, prompt, chosen)
    if isinstance(prompt, list):
        return _with_answer(row, prompt, chosen)
    shared, answer = chosen[:-1], chosen[-1:]
    if objects(row["rejected"], "rejected")[: len(shared)] != shared:
        raise Unusable("two prompts", "chosen and rejected do not begin with the same turns")
    turns = _with_answer(row, shared, answer)
    if prompt not in (None, turns.instruction):  # some data sets repeat the user turn beside the conversations
        raise Unusable("two prompts", "the column prompt is not the user turn of the conversation")
    return turns


def _with_answer(row: Row, prompt: Any, answer: Any) -> Turns:
    for column in NOT_TEXT:
        if _says_something(row.get(column)):
            raise Unusable("more than text", f"the row has {column}")
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return Turns(prompt, answer, row.get("system"))
    asked, answered = objects(prompt, "the prompt"), objects(answer, "the completion")
    for message in (*asked, *answered):
        if more := sorted(key for key in message.keys() - {"role", "content"} if _says_something(message[key])):
            raise Unusable("more than text", f"the {message.get('role')} turn has {', '.join(more)}")
    roles = [message.get("role") for message in asked], [message.get("role") for message in answered]
    if roles not in ((["user"], ["assistant"]), (["system", "user"], ["assistant"])):
        first, second = (", ".join(map(str, some)) or "nobody" for some in roles)
        raise Unusable(
            "other turns",
            f"an example is a user turn, perhaps after a system message, and an assistant turn; found "
            f"{first} in the prompt and {second} after it",
        )
    system = asked[0].get("content") if len(asked) == 2 else None
    if system and row.get("system") not in (None, "", system):
        raise Unusable("two system messages", "the column system is not the system message of the conversation")
    return Turns(asked[-1].get("content"), answered[0].get("content"), system or row.get("system"))


def _says_something(value: Any) -> bool:
    """Whether there is more in it than the nulls by which a saved dataset fills what a row does not have."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    return value is not None and value != "" and value != []
