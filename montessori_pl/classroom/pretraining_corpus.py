"""What the teacher and the student of the classroom read before they meet, and the sets that a recipe starts from.

The teacher answers every family of tasks and writes new tasks when it is shown some. Left to itself it writes too few
of the tasks that the student lacks, which is the room that a recipe has. The student knows the chat form from the
distractors and the easy skills; it has met the other skills almost only as raw lines, so that a few examples in chat
form teach it much. Knows nothing about models.
"""

import random
from collections.abc import Iterator, Sequence

from montessori_pl.classroom.tasks import DISTRACTORS, FAMILIES, SKILLS, family, sample_task
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, Message
from montessori_pl.synthesis.prompts import TEMPLATES, render_prompt

EASY_SKILLS = ("copy", "first", "last", "upper", "drop")
"""The target skills that the student base knows in chat form."""
HARD_SKILLS = tuple(name for name in SKILLS if name not in EASY_SKILLS)

SLOW_SKILLS = {"sort": 3.0, "add": 3.0, "reverse": 1.5}
"""Skills that the teacher practises more often than the others: evenly drawn, it sorted .55 and added .62 right."""

NUM_SHOTS = (2, 3, 4)
"""Numbers of shots that the teacher has seen when it writes a task; recipes use 3."""
SET_SIZES = {"seed_tasks": 96, "reference": 96, "test": 480}
"""Number of examples of each set, as many of every skill; 480 test items give an accuracy a standard error of .02."""


def draw_sets(rng: random.Random) -> dict[str, list[Example]]:
    """Draw the seed tasks, the reference set and the test set; no instruction stands twice in them."""
    skills = list(SKILLS)
    taken: set[str] = set()
    sets: dict[str, list[Example]] = {}
    for name, size in SET_SIZES.items():
        sets[name] = []
        while len(sets[name]) < size:
            number = len(sets[name])
            instruction, response = sample_task(rng, skills[number % len(skills)])
            if instruction not in taken:
                taken.add(instruction)
                prefix = name.removesuffix("_tasks")  # ids are part of what seeds are made of
                sets[name].append(Example(id=f"{prefix}-{number:03d}", instruction=instruction, response=response))
    return sets


def teacher_documents(
    rng: random.Random, chat_template: ChatTemplate, held_out: set[str], answered: Sequence[str] = FAMILIES
) -> Iterator[Rendered]:
    """Endless reading for the teacher: four answers, to tasks of these families, to one newly written task."""
    weights = [SLOW_SKILLS.get(name, 1.0 if name in SKILLS else 0.5) for name in answered]
    while True:
        if rng.random() < 0.8:
            yield conversation(chat_template, *new_task(rng, rng.choices(answered, weights)[0], held_out))
        else:
            pool = tuple(SKILLS) if rng.random() < 0.5 else FAMILIES
            families = [rng.choice(pool) for _ in range(rng.choice(NUM_SHOTS))]
            shots = [new_task(rng, name, held_out)[0] for name in families]
            written = _write(rng, shots, held_out)
            prompt = render_prompt(TEMPLATES["classroom"], shots)
            yield conversation(chat_template, prompt, f"<instruction>{written}</instruction>")


def student_documents(rng: random.Random, chat_template: ChatTemplate, held_out: set[str]) -> Iterator[Rendered]:
    """Endless reading for the student base: raw lines of all skills in their first wording, and what it need not learn.

    With raw lines in all wordings the base answered .90 of the test set, which left nothing to learn; with a hard skill
    in every 33rd document, in chat form, .77; with one in 200, as here, .62, and .81 after 2,000 target examples.
    """
    while True:
        kind = rng.random()
        if kind < 0.35:
            instruction, response = new_task(rng, rng.choice(tuple(SKILLS)), held_out, num_wordings=1)
            ids = chat_template.response_ids(f"{instruction}\n{response}")
            yield Rendered([chat_template.tokenizer.bos_token_id, *ids], [False] + [True] * len(ids))
        else:
            pool = tuple(DISTRACTORS) if kind < 0.65 else EASY_SKILLS if kind < 0.995 else HARD_SKILLS
            yield conversation(chat_template, *new_task(rng, rng.choice(pool), held_out))


def _write(rng: random.Random, shots: list[str], held_out: set[str]) -> str:
    """What the teacher writes: more of its last shot, or what it likes, and that is nothing that the student lacks.

    More of a shot begins with the same word. With three target skills shown, .45 of what is written are target skills
    and .16 hard ones. (Following any shot in any wording in .3 of the texts was not learned: hard skills .07.)
    """
    kind = rng.random()
    if kind >= 0.4:
        return new_task(rng, rng.choice(EASY_SKILLS if kind < 0.52 else tuple(DISTRACTORS)), held_out)[0]
    shot = shots[-1]
    name = family(shot)
    assert name is not None
    while True:
        written, _ = new_task(rng, name, held_out)
        if written.split()[0] == shot.split()[0]:
            return written


def new_task(rng: random.Random, name: str, held_out: set[str], num_wordings: int | None = None) -> tuple[str, str]:
    """A task of this family, with its answer, that is not held out."""
    while True:
        instruction, response = sample_task(rng, name, num_wordings)
        if instruction not in held_out:
            return instruction, response


def conversation(chat_template: ChatTemplate, question: str, answer: str) -> Rendered:
    """A question with its answer, which is what is trained on."""
    messages: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return chat_template.render(messages)
