"""Conversations as lists of messages, under the names that published data sets and other trainers use.

A conversation is a system message or none, and then user and assistant in turn, the answer last. The last exchange is
the instruction and its response; those before it are the history. Tools, images and reasoning beside an answer are
more than an example holds: such a row becomes a rejection, as does a conversation whose turns do not alternate.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

from montessori_pl.data.records import Turn
from montessori_pl.data.text import says_something
from montessori_pl.data.turns import (
    HISTORY,
    Row,
    Turns,
    Unusable,
    as_text,
    checked_history,
    objects,
    place_of,
    system_of,
)

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
"""Columns that hold a list of messages."""
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"), "assistant"),
}
"""What roles are called, in lower case, and what they are."""
TOOLS = (
    *("tool", "function", "function_call", "function_response", "observation", "ipython", "environment"),
    *("tool_call", "tool_calls", "tool_response", "tool_result"),
)
"""Roles of turns by which a model calls a tool or hears from one."""
MORE_THAN_TEXT = (
    *("tools", "functions", "tool_calls", "function_call", "tool_call_id", "chat_template_kwargs"),
    *("image", "images", "video", "videos", "audio", "audios", "reasoning_content", "thinking"),
)
"""Columns, and keys of a message, by which a model is shown or writes more than the text of the turns."""
_NO_TOOLS = ("[]", "{}", "null", "None")
"""How an empty list is written in a column of text."""
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "text")
_LEARNED_KEYS = ("weight", "train", "training", "loss")
"""Keys that say whether an answer is learned: OpenAI's `weight`, 0 or 1, and the true or false of others."""


def refuse_more_than_text(row: Row, whose: str, names: Iterable[str] = MORE_THAN_TEXT) -> None:
    """Pass silently, or say what a row or a message has beside its text.

    Raises:
        Unusable: it has something.
    """
    found = [name for name in names if says_something(row.get(name)) and row[name] not in _NO_TOOLS]
    if found:
        raise Unusable("more than text", f"{whose} has {', '.join(sorted(found))}")


def from_conversation(row: Row) -> Turns:
    """The turns of a row with a list of messages, or of [user, assistant, user, ...] texts (UltraChat's `data`).

    In LLaMA-Factory's preference layout the conversation ends with a user turn, and `chosen` is the answer.

    Raises:
        Unusable: the conversation is none that an example can hold.
    """
    name = next((name for name in CONVERSATION_COLUMNS if says_something(row.get(name))), CONVERSATION_COLUMNS[0])
    if says_something(row.get(HISTORY)):
        raise Unusable("other turns", f"the row has {HISTORY} beside its {name}")
    messages = objects(row.get(name), "the conversation")
    chosen = [row["chosen"]] if isinstance(row.get("chosen"), dict) and "rejected" in row else []
    return read_messages(row, messages, chosen)


def from_texts(row: Row) -> Turns:
    """The turns of a row whose `data` is a list of texts, user and assistant in turn.

    Raises:
        Unusable: the conversation is none that an example can hold.
    """
    roles = ("user", "assistant")
    return read_messages(row, [{"role": roles[place % 2], "content": text} for place, text in enumerate(row["data"])])


def read_messages(row: Row, messages: Iterable[Row], answer: Iterable[Row] = (), prompt_learned: bool = True) -> Turns:
    """The turns of a conversation.

    Args:
        row: the row in whose columns a system message may stand.
        messages: the conversation.
        answer: what follows it in another column.
        prompt_learned: whether the answers in `messages` are to be learned where `answer` follows.

    Raises:
        Unusable: the conversation is none that an example can hold.
    """
    turns: list[tuple[str, str, int]] = []
    unread: set[str] = set()
    for of_prompt, message in [*((True, one) for one in messages), *((False, one) for one in answer)]:
        role, text, weight = _read_message(message, len(turns) + 1)
        turns.append((role, text, 0 if role == "assistant" and of_prompt and not prompt_learned else weight))
        unread |= {f"messages[].{key}" for key in _unread_keys(message)}
    said = ""
    if turns and turns[0][0] == "system":
        said = turns.pop(0)[1]
    roles = [role for role, _, _ in turns]
    if "system" in roles:
        raise Unusable(
            *("two system messages", "there is another one behind the first")
            if says_something(said)
            else ("other turns", "the system message does not stand first")
        )
    for role in ("user", "assistant"):
        if role not in roles:
            raise Unusable(f"no {role} turn", f"the roles are {', '.join(roles) or '(none)'}")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise Unusable("other turns", f"user and assistant must take turns, the answer last; {place_of(roles)}")
    (_, instruction, _), (_, response, weight) = turns[-2:]
    if not weight:
        raise Unusable("untrained answer", "the last answer has weight 0: it is not to be learned")
    history = [
        Turn(role=cast(Literal["user", "assistant"], one), content=text, weight=w) for one, text, w in turns[:-2]
    ]
    return Turns(instruction, response, system_of(row, said), checked_history(history), frozenset(unread))


def history_of(row: Row) -> tuple[Turn, ...]:
    """The turns in the column `history`: [user, assistant] pairs, or messages.

    Raises:
        Unusable: it holds something else.
    """
    value = row.get(HISTORY)
    if not says_something(value):
        return ()
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        texts = [as_text(text, HISTORY) for pair in value for text in pair]
        pairs: list[Literal["user", "assistant"]] = ["user", "assistant"] * len(value)
        return checked_history([Turn(role=role, content=text) for role, text in zip(pairs, texts, strict=True)])
    read = [_read_message(message, number) for number, message in enumerate(objects(value, HISTORY), start=1)]
    if any(role == "system" for role, _, _ in read):
        raise Unusable("other turns", f"{HISTORY} holds a system message; write it into the column system")
    return checked_history(
        [Turn(role=cast(Literal["user", "assistant"], role), content=text, weight=w) for role, text, w in read]
    )


def _read_message(message: Row, number: int) -> tuple[str, str, int]:
    """Role, text and weight of a message."""
    name = _first(message, _ROLE_KEYS)
    # Of a whole row, `reasoning` may be a column like any other; of a message it is what the model has thought.
    refuse_more_than_text(message, f"the {name} turn", (*MORE_THAN_TEXT, "reasoning"))
    spelled = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    if spelled in TOOLS:
        raise Unusable("more than text", f"turn {number} is a tool's ({name})")
    if spelled not in ROLES:
        raise Unusable("unknown role", f"turn {number} is by {name!r}; known are {', '.join(ROLES)}")
    role, text = ROLES[spelled], as_text(_first(message, _TEXT_KEYS), f"turn {number}")
    return role, text, _weight(message, number) if role == "assistant" else 1


def _weight(message: Row, number: int) -> int:
    found = {name: message[name] for name in _LEARNED_KEYS if message.get(name) is not None}
    for name, value in found.items():
        if value not in (0, 1):  # true and false are
            raise Unusable("malformed row", f"turn {number} has {name} {value!r}, which is neither 0 nor 1")
    return int(all(found.values()))


def _first(message: Row, keys: Iterable[str]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _unread_keys(message: Row) -> list[str]:
    known = (*_ROLE_KEYS, *_TEXT_KEYS, *_LEARNED_KEYS, *MORE_THAN_TEXT)
    return [key for key, value in message.items() if key not in known and says_something(value)]
