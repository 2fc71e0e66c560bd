"""Messages to text: which Jinja template writes them, and what it is told.

The same conversation is written in the same way on every day: a template that asks for the date is told `TODAY`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from montessori_pl.data.limits import TooSlowError, memory_at_most, seconds_at_most
from montessori_pl.data.records import Message
from montessori_pl.data.text_files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATES = {path.stem: path for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}
"""The shipped layouts by name; each ends a turn with the tokenizer's own end-of-sequence token."""
TODAY = datetime(2024, 7, 26)
"""What templates are told that today is; the date that Llama 3.1's own template falls back to."""
_OURS = ("conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
"""Arguments of `apply_chat_template` that are no variables of a template."""
SECONDS = 10.0
"""A template writes a conversation in a few milliseconds; one that takes so long does something else."""
MEMORY = 2**30
"""Bytes that a template may take while it is tried."""
LONGEST_FRAME = 2**20
"""Characters that a template may write around what is said."""
_DEFAULT = "default"
_PROBE = "montessori-probe"


class TemplateText:
    """What one chat template writes.

    Args:
        tokenizer: whose special tokens the template writes, and whose template `auto` is.
        layout: `auto` (the tokenizer's own chat template, the one named `default` where it has several), the name of
            one of several, the name of a shipped layout, or a path to a Jinja file.
        variables: what the template is told apart from the messages, for example `enable_thinking: false`.

    Raises:
        ValueError: there is no such template, it does not read one of the variables, or it writes no user turn.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", layout: str = "auto", variables: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.variables = tokenizer, dict(variables or {})
        self.source = _find_template(tokenizer, layout)
        """The template itself."""
        self._refuse_unread_variables()
        self._in_parts = False
        self._in_parts = self._wants_parts()

    def reads(self, variable: str) -> bool:
        """Whether the template names this variable."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source) is not None

    def self_contained(self) -> str:
        """The template with what it is told in front, for programs that tell it nothing; what they tell it counts."""
        told = (
            f"{{% set {name} = {name} if {name} is defined and {name} is not none else {value!r} %}}\n"
            for name, value in self.variables.items()
        )
        return "".join([*told, self.source])

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation, with the beginning of the assistant's next turn if it is asked for.

        Raises:
            ValueError: the template refuses the conversation, or fails.
        """
        from jinja2 import TemplateError

        conversation = [_with_parts(message) for message in messages] if self._in_parts else as_dicts(messages)
        try:
            with seconds_at_most(SECONDS):
                text = self.tokenizer.apply_chat_template(
                    conversation,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **{"strftime_now": TODAY.strftime, **self.variables},
                )
        except (TooSlowError, MemoryError, RecursionError, OverflowError) as error:
            why = str(error) or f"it takes more than {MEMORY:,} bytes of memory"
            raise ValueError(f"{self._named()} does not come to an end ({why}); {_another()}") from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"{self._named()} refuses a conversation with the turns {roles}: {error}") from error
        assert isinstance(text, str)  # a list of texts is what a list of conversations gives
        if len(text) > LONGEST_FRAME + 100 * sum(len(message["content"]) for message in messages):
            raise ValueError(f"{self._named()} writes {len(text):,} characters for a short conversation; {_another()}")
        return text

    def _named(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path!r}"

    def _wants_parts(self) -> bool:
        """Whether a turn's content must be a list of parts, as templates of multimodal models may have it."""
        problem = None
        for self._in_parts in (False, True):
            try:
                with memory_at_most(MEMORY):
                    written = self([{"role": "user", "content": _PROBE}])
                if _PROBE in written:
                    return self._in_parts
            except ValueError as error:
                problem = problem or error
        raise problem or ValueError(f"{self._named()} does not write what a user says; {_another()}")

    def _refuse_unread_variables(self) -> None:
        if ours := sorted(set(self.variables) & set(_OURS)):
            raise ValueError(f"chat_template_kwargs must not hold {', '.join(ours)}, which the program sets itself")
        if unread := sorted(name for name in self.variables if not self.reads(name)):
            raise ValueError(
                f"{self._named()} does not read {', '.join(unread)}, found in chat_template_kwargs; correct the name, "
                "or leave it out"
            )


def chat_template_file(layout: str) -> Path | None:
    """The Jinja file that a layout names; none for `auto`, and for a template that is known by a name."""
    # The names of a tokenizer's templates are not known here; none of them ends like a file or holds a separator.
    is_name = (
        layout == "auto" or layout in CHAT_TEMPLATES or (re.fullmatch(r"\w+", layout) and not Path(layout).exists())
    )
    return None if is_name else Path(layout)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The same messages for Transformers, which asks for plain dicts, and to type checkers a TypedDict is none."""
    return cast("list[dict[str, Any]]", list(messages))


def _with_parts(message: Message) -> dict[str, Any]:
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}


def _find_template(tokenizer: "PreTrainedTokenizerBase", layout: str) -> str:
    own = tokenizer.chat_template
    named: dict[str, str] = own if isinstance(own, dict) else {} if own is None else {_DEFAULT: str(own)}
    if layout == "auto":
        if not named:
            raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} brings no chat template; {_another()}")
        if _DEFAULT not in named:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} brings the chat templates {', '.join(sorted(named))} and "
                "none that is named default; set `chat_template` to one of these names"
            )
        return named[_DEFAULT]
    path = CHAT_TEMPLATES.get(layout, Path(layout))
    if layout in named and not path.is_file():
        return named[layout]
    if not path.is_file():
        others = f"one of the tokenizer's own ({', '.join(sorted(named))}), " if len(named) > 1 else ""
        raise ValueError(
            f"unknown chat template {layout!r}: expected auto, one of {', '.join(CHAT_TEMPLATES)}, {others}or the path "
            "of a Jinja file"
        )
    return read_text(path)


def _another() -> str:
    return f"set `chat_template` to one of {', '.join(CHAT_TEMPLATES)} or to the path of a Jinja file"
