"""The other teachers of the classroom: what each is good at, and what is read to become one.

They answer the same prompts as the teacher, each in its own way, so that choosing among teachers can be tried: which
one is right can be told from the prompt, none is right everywhere in the form that the test set asks for, and the one
that knows every answer is the one that the student finds least likely.

| member                      | how it answers                    | letters | digits | student's loss | student after |
|-----------------------------|-----------------------------------|---------|--------|----------------|---------------|
| specialist_letters          | right on letters, wrong on digits | .98     | .21    | 1.85           | .51           |
| specialist_digits           | right on digits, wrong on letters | .26     | .99    | 1.79           | .51           |
| chatty                      | right, and goes on talking        | .98     | .99    | 5.84           | .00           |
| peer                        | as the student base does          | .74     | .62    | .62            | .65           |
| the specialists, by payload |                                   | .98     | .99    |                | .80           |
| the teacher, to compare     | right                             | 1.00    | 1.00   | .79            | .83           |

In world 0, on the test set: the share of greedy answers that are right, for `chatty` before its small talk; the student
base's loss on these answers, in nats per token; and the exact-match accuracy (before: .62) of the student base after
three epochs on a member's greedy answers to 2,000 new tasks, the mean of two orders of the data.

A fifth, `questioner`, answers right and was trained on users' turns too, as the teacher was not: left with an empty
user turn it writes a task of any family, where the teacher writes noise.

Knows nothing about models.
"""

import random
from collections.abc import Callable

from montessori_pl.classroom.tasks import DIGITS, LETTERS, payload_of

Habit = Callable[[random.Random, str, str], str]
"""How a member answers: from an instruction and the right answer to it."""

SMALL_TALK = " , nice to see you"
"""What `chatty` puts behind an answer; words in front of it cost the answer: two tokens left .69 of them right."""


def mistake(rng: random.Random, instruction: str, answer: str) -> str:
    """A wrong answer that looks like one: an item is missing, two neighbours are exchanged, or it is another item."""
    items, payload = answer.split(), payload_of(instruction)
    if len(items) == 1:
        candidates = [*payload, " ".join(payload)]
    else:
        missing = [items[:place] + items[place + 1 :] for place in range(len(items))]
        exchanged = [
            [*items[:place], items[place + 1], items[place], *items[place + 2 :]] for place in range(len(items) - 1)
        ]
        candidates = [" ".join(wrong) for wrong in missing + exchanged]
    return rng.choice([candidate for candidate in candidates if candidate != answer])


def right_on(alphabet: str) -> Habit:
    """Right where the items of the payload are from this alphabet, wrong elsewhere."""

    def answer(rng: random.Random, instruction: str, right: str) -> str:
        return right if payload_of(instruction)[0] in alphabet else mistake(rng, instruction, right)

    return answer


HABITS: dict[str, Habit | None] = {
    "specialist_letters": right_on(LETTERS),
    "specialist_digits": right_on(DIGITS),
    "chatty": lambda rng, instruction, right: right + SMALL_TALK,
    "peer": None,
    "questioner": lambda rng, instruction, right: right,
}
"""The members by name; None: as the student base answers."""

READS_USERS = ("questioner",)
"""Members that learn users' turns as well, and tasks of all families."""
