"""What a synthesizer is: it asks a teacher for an instruction, and finds the instruction in the answer."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from montessori_pl.bounds import Checked, NonNegativeInt, Text
from montessori_pl.data.records import Example, Message, PromptFormat, teacher_messages
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.synthesis.answer_formats import ANSWER_FORMS, AnswerFormat, whole_text
from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.prompts import TEMPLATES, fill, load_template

UNFINISHED = "unfinished instruction"
"""The reason of a rejection: the completion was cut before its instruction ended."""


class Synthesizer(Checked, ABC):
    """How instructions are asked for. Implement `prompt` and `instruction`."""

    prompt_format: PromptFormat = "chat"
    """What the prompt is: a user turn, or something else that the teacher goes on with."""
    prefill: str = ""
    """How the assistant's turn begins; empty where the teacher begins it."""
    stop: str = ""
    """A text that ends the completion; empty where only the end of the turn does."""
    cut_is_unfinished: bool = False
    """Whether a completion that neither ended nor came to `stop` holds no whole instruction."""

    @abstractmethod
    def prompt(
        self,
        rng: random.Random,
        seed_tasks: Sequence[Example],
        written: Sequence[Example],
        num_shots: int | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """The prompt for the teacher, a user turn if not said otherwise, and the ids of the examples it shows.

        Args:
            rng: the prompt's own source of randomness; the same state gives the same prompt.
            seed_tasks: the seed examples.
            written: what this stage has accepted so far.
            num_shots: at most so many shots, when the full prompt does not fit the teacher's context.
        """

    @abstractmethod
    def instruction(self, completion: str) -> str:
        """The instruction in the teacher's completion.

        Raises:
            Rejected: there is none.
        """

    @property
    def asks_in_chat(self) -> bool:
        """Whether a chat endpoint can be asked: a user turn alone is answered, and the answer ends by itself."""
        return self.prompt_format == "chat" and not self.prefill and not self.stop

    def messages(self, prompt: str) -> list[Message]:
        """What the teacher goes on with."""
        return teacher_messages(prompt, self.prompt_format, self.prefill)

    def read(self, completion: str, finished: bool) -> str:
        """The instruction in a completion that was just sampled.

        Args:
            completion: what the teacher wrote.
            finished: whether it has ended it itself.

        Raises:
            Rejected: there is none, or it was cut.
        """
        if self.cut_is_unfinished and not finished and not (self.stop and self.stop in completion):
            raise Rejected(UNFINISHED, f"it does not end in {len(completion)} characters; raise max_tokens")
        return self.instruction(completion)


def single_turn(examples: Sequence[Example]) -> list[Example]:
    """Those that can be shown as shots: of several turns the last one says little without the others."""
    return [example for example in examples if not example.history]


def template_file(name: str | None) -> Path | None:
    """The file that the name of a request means; none for a shipped one."""
    return None if name is None or name in TEMPLATES else Path(name)


class SelfInstruct(Synthesizer):
    """Few-shot prompting in the manner of Self-Instruct (arXiv 2212.10560), with the counts of Montessori-Instruct.

    Args:
        prompt: name of a shipped request (`self_instruct`, `more_like_this`, `classroom`, ...), or a path to one; null
            takes the one that suits the answer format.
        num_seed_shots: shots from the seeds.
        num_written_shots: shots from what was written before; seeds stand in while there are not enough.
        answer_format: how the teacher says its instruction: between `tags`, which a capable teacher writes; between
            tags of which the first is written for it (`prefilled_tags`), for weak teachers; as its
            `whole_completion`, for these and for chat endpoints; or as the next line of a `numbered_list` without a
            chat template, for base models.
    """

    files: ClassVar[Files] = {"prompt": template_file}

    def __init__(
        self,
        prompt: Text | None = None,
        num_seed_shots: NonNegativeInt = 6,
        num_written_shots: NonNegativeInt = 2,
        answer_format: AnswerFormat = "tags",
    ) -> None:
        if num_seed_shots + num_written_shots < 1:
            raise ValueError(
                "SelfInstruct needs at least one shot, "
                f"found num_seed_shots {num_seed_shots} and num_written_shots {num_written_shots}"
            )
        self.form = ANSWER_FORMS[answer_format]
        self.template = load_template(prompt or self.form.request)
        self.num_seed_shots, self.num_written_shots = num_seed_shots, num_written_shots
        self.prompt_format, self.prefill, self.stop = self.form.prompt_format, self.form.prefill, self.form.stop
        self.cut_is_unfinished = answer_format != "tags"

    def prompt(
        self,
        rng: random.Random,
        seed_tasks: Sequence[Example],
        written: Sequence[Example],
        num_shots: int | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """Draw shots without repeats and shuffle them."""
        num_written = self.num_written_shots if len(written) >= self.num_written_shots else 0
        num_seed_tasks = min(self.num_seed_shots + self.num_written_shots - num_written, len(seed_tasks))
        shots = [*rng.sample(list(seed_tasks), num_seed_tasks), *rng.sample(list(written), num_written)]
        rng.shuffle(shots)
        shots = shots[:num_shots]
        text = self.form.shots([shot.instruction for shot in shots])
        return fill(self.template, text), tuple(shot.id for shot in shots)

    def instruction(self, completion: str) -> str:
        """The text where the answer format has it."""
        return self.form.parse(completion)


class Magpie(Synthesizer):
    """An aligned teacher writes what a user might say: it goes on with an empty user turn (arXiv 2406.08464).

    There is no request and there are no shots; what is asked for is what the teacher's own training has made likely.
    """

    prompt_format = "user_turn"
    cut_is_unfinished = True

    def prompt(
        self,
        rng: random.Random,
        seed_tasks: Sequence[Example],
        written: Sequence[Example],
        num_shots: int | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """Nothing."""
        return "", ()

    def instruction(self, completion: str) -> str:
        """The whole user turn."""
        return whole_text(completion)
