"""The user turn that asks a teacher for a new instruction, in the manner of Self-Instruct: a request and some shots."""

from collections.abc import Sequence
from pathlib import Path

from montessori_pl.data.text_files import read_text

TEMPLATES = {
    "classroom": "Write a new task .\n{shots}",
    "more_like_this": (
        "Below is an instruction that somebody failed to follow. Write one new instruction for them to practise on.\n"
        "\n"
        "It should need the same skill and be about as hard, but ask about something else: other facts, names and "
        "numbers. It should be clear, concise, and answerable from its own text.\n"
        "\n"
        "Proceed in two steps:\n"
        "1. Say in a sentence or two which skill the instruction needs.\n"
        "2. End with the new instruction and its input, exactly in this form:\n"
        "<instruction>the new instruction, with its input</instruction>\n"
        "\n"
        "The instruction:\n"
        "{shots}"
    ),
    "new_task": "Here are some tasks.\n\n{shots}\n\nWrite one new task.",
    "self_instruct": (
        "Below are examples of instructions that people give to an assistant. Write one new instruction of your own.\n"
        "\n"
        "It should be something that a person would really ask, as a request or as a question; clear, concise, and "
        "answerable from its own text. Make it different from the examples in topic and in kind of task.\n"
        "\n"
        "Proceed in three steps:\n"
        "1. Say in a sentence or two why the instruction is worth asking.\n"
        "2. Decide whether it needs an input, and make one up if it does.\n"
        "3. End with the instruction and its input, exactly in this form:\n"
        "<instruction>the instruction, with its input</instruction>\n"
        "\n"
        "Examples:\n"
        "{shots}"
    ),
    "series_of_tasks": "Come up with a series of tasks:\n{shots}",
    "tagged_task": (
        "Below are examples of instructions that people give to an assistant. Write one new instruction of your own, "
        "different from the examples in topic and in kind of task. Write it in the same form, and nothing else.\n"
        "\n"
        "{shots}"
    ),
    "task_alone": (
        "Below are examples of instructions that people give to an assistant.\n"
        "\n"
        "{shots}\n"
        "\n"
        "Write one new instruction of your own, different from the examples in topic and in kind of task. Write the "
        "instruction alone: do not answer it, and say nothing else."
    ),
}
"""The shipped requests; `{shots}` stands where the shots go."""


def load_template(name: str) -> str:
    """The request of this name, or the text of the file at this path.

    Raises:
        ValueError: there is no such request or file, or it does not say where the shots go.
    """
    if name not in TEMPLATES and not Path(name).is_file():
        raise ValueError(f"unknown prompt {name!r}: expected one of {', '.join(TEMPLATES)}, or the path of a text file")
    template = TEMPLATES[name] if name in TEMPLATES else read_text(Path(name))
    if "{shots}" not in template:
        raise ValueError(f"the prompt {name!r} does not say where the shots go: write {{shots}} where they belong")
    return template


def render_prompt(template: str, shots: Sequence[str]) -> str:
    """The user turn with one tagged line for each shot; the text of the shots is not altered."""
    return fill(template, "\n".join(f"<instruction>{shot}</instruction>" for shot in shots))


def fill(template: str, shots: str) -> str:
    """The request with this text in the place of its shots."""
    # `replace`, not `format`: shots and templates may hold braces.
    return template.replace("{shots}", shots)
