"""Ways to ask for an instruction: how shots are shown, how the teacher's turn begins, and where its instruction ends.

| format | suits | what the teacher sees | where the instruction ends |
|---|---|---|---|
| `tags` | teachers that follow instructions well | a request and tagged shots | at the last closing tag |
| `prefilled_tags` | weak instruction-tuned teachers | the same; its turn begins with the tag | at the closing tag |
| `whole_completion` | the same, and chat endpoints | a request and bare shots | with the turn |
| `numbered_list` | base models | shots as the beginning of a list, without a chat template | at the line break |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from montessori_pl.data.records import PromptFormat
from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.parsing import CLOSING, OPENING, parse_instruction

AnswerFormat = Literal["tags", "prefilled_tags", "whole_completion", "numbered_list"]


def _tagged(shots: Sequence[str]) -> str:
    return "\n".join(f"{OPENING}{shot}{CLOSING}" for shot in shots)


def _bare(shots: Sequence[str]) -> str:
    return "\n\n".join(shots)


def _numbered(shots: Sequence[str]) -> str:
    """One line each, as in Self-Instruct, and the number of the one that is to be written."""
    lines = [*(" ".join(shot.split()) for shot in shots), ""]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1)).rstrip()


@dataclass(frozen=True, kw_only=True)
class AnswerForm:
    """What belongs to an answer format."""

    request: str
    """The shipped request that asks for it."""
    shots: Callable[[Sequence[str]], str]
    """The text that stands for `{shots}`."""
    prompt_format: PromptFormat = "chat"
    """What the prompt is."""
    prefill: str = ""
    """How the assistant's turn begins."""
    stop: str = ""
    """The text that ends the instruction; empty where the end of the turn does, or the last tag."""

    def parse(self, completion: str) -> str:
        """The instruction in a completion, blanks at both ends removed and nothing else changed.

        Raises:
            Rejected: there is none.
        """
        if self.shots is _tagged and not self.prefill:
            return parse_instruction(completion)
        # A teacher may begin its turn once more with the tag that was written for it.
        text = completion.strip().removeprefix(self.prefill) if self.prefill else completion
        return whole_text(text.partition(self.stop)[0] if self.stop else text)


ANSWER_FORMS: dict[AnswerFormat, AnswerForm] = {
    "tags": AnswerForm(request="self_instruct", shots=_tagged),
    "prefilled_tags": AnswerForm(request="tagged_task", shots=_tagged, prefill=OPENING, stop=CLOSING),
    "whole_completion": AnswerForm(request="task_alone", shots=_bare),
    "numbered_list": AnswerForm(request="series_of_tasks", shots=_numbered, prompt_format="text", stop="\n"),
}


def whole_text(completion: str) -> str:
    """All of a completion without blanks at both ends.

    Raises:
        Rejected: `empty instruction` when nothing is left.
    """
    instruction = completion.strip()
    if not instruction:
        raise Rejected("empty instruction", "the teacher wrote only blanks")
    return instruction
