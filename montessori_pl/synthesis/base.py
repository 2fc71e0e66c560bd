"""What a synthesizer is: it asks a teacher for an instruction, and finds the instruction in the answer."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from montessori_pl.bounds import Checked, NonNegativeInt, Text
from montessori_pl.data.records import Example
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.synthesis.parsing import parse_instruction
from montessori_pl.synthesis.prompts import TEMPLATES, load_template, render_prompt


class Synthesizer(Checked, ABC):
    """How instructions are asked for. Implement `prompt` and `instruction`."""

    @abstractmethod
    def prompt(
        self,
        rng: random.Random,
        seed_tasks: Sequence[Example],
        written: Sequence[Example],
        num_shots: int | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """The user turn for the teacher, and the ids of the examples it shows.

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


def single_turn(examples: Sequence[Example]) -> list[Example]:
    """Those that can be shown as shots: of several turns the last one says little without the others."""
    return [example for example in examples if not example.history]


def template_file(name: str) -> Path | None:
    """The file that the name of a request means; none for a shipped one."""
    return None if name in TEMPLATES else Path(name)


class SelfInstruct(Synthesizer):
    """Few-shot prompting in the manner of Self-Instruct (arXiv 2212.10560), with the counts of Montessori-Instruct.

    Args:
        prompt: name of a shipped request (`self_instruct`, `more_like_this`, `classroom`), or a path to one.
        num_seed_shots: shots from the seeds.
        num_written_shots: shots from what was written before; seeds stand in while there are not enough.
    """

    files: ClassVar[Files] = {"prompt": template_file}

    def __init__(
        self, prompt: Text = "self_instruct", num_seed_shots: NonNegativeInt = 6, num_written_shots: NonNegativeInt = 2
    ) -> None:
        if num_seed_shots + num_written_shots < 1:
            raise ValueError(
                "SelfInstruct needs at least one shot, "
                f"found num_seed_shots {num_seed_shots} and num_written_shots {num_written_shots}"
            )
        self.template = load_template(prompt)
        self.num_seed_shots, self.num_written_shots = num_seed_shots, num_written_shots

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
        return render_prompt(self.template, [shot.instruction for shot in shots]), tuple(shot.id for shot in shots)

    def instruction(self, completion: str) -> str:
        """The text in the last pair of instruction tags."""
        return parse_instruction(completion)
