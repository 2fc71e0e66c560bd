"""TRL's dataset formats: a prompt with its completion, or with a chosen and a rejected one.

Each exists as plain text and as conversations, which are lists of {"role", "content"}. Of a preference the chosen side
is read. Answers that stand in the prompt are not learned, as in TRL: their weight is 0.
"""

from typing import Any

from montessori_pl.data.columns import asked
from montessori_pl.data.conversations import history_of, read_messages
from montessori_pl.data.turns import Row, Turns, Unusable, objects, system_of


def from_completion(row: Row) -> Turns:
    """The turns of a row with `prompt` and `completion`.

    Raises:
        Unusable: the row holds more than an example can.
    """
    return _with_answer(row, row["prompt"], row["completion"])


def from_preference(row: Row) -> Turns:
    """The turns of a row with `chosen` and `rejected`, with the prompt in its own column or at the start of both.

    In LLaMA-Factory's layout the prompt is an `instruction`, perhaps with an `input`.

    Raises:
        Unusable: nothing says where the prompt ends, or the row holds more than an example can.
    """
    prompt, chosen = row.get("prompt"), row["chosen"]
    if not isinstance(chosen, list):
        if prompt is None and row.get("instruction") is None:
            raise Unusable("no prompt", "chosen and rejected are plain text, and no column prompt says where it ends")
        return _with_answer(row, row["instruction"] if prompt is None else prompt, chosen)
    if isinstance(prompt, list):
        return _with_answer(row, prompt, chosen)
    shared, answer = chosen[:-1], chosen[-1:]
    if objects(row["rejected"], "rejected")[: len(shared)] != shared:
        raise Unusable("two prompts", "chosen and rejected do not begin with the same turns")
    turns = _with_answer(row, shared, answer)
    # Some data sets repeat the first user turn, or the last one, beside the conversations.
    if prompt not in (None, turns.instruction, *(turn.content for turn in turns.history[:1])):
        raise Unusable("two prompts", "the column prompt is not the user turn of the conversation")
    return turns


def _with_answer(row: Row, prompt: Any, answer: Any) -> Turns:
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return Turns(asked(row, prompt), answer, system_of(row), history_of(row))
    return read_messages(row, objects(prompt, "the prompt"), objects(answer, "the completion"), prompt_learned=False)
