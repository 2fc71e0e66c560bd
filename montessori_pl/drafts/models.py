"""A look at a model that a recipe is to be written for: its chat template, its size, and how well it may write."""

from dataclasses import dataclass

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.estimates.model_size import ModelSize, model_size, named
from montessori_pl.models.loading import LoraSettings, ModelSource, load_chat_template, load_tokenizer
from montessori_pl.synthesis.answer_formats import AnswerFormat

LORA = LoraSettings(r=16, alpha=32)
"""The adapter of a drafted recipe."""
CAPABLE = 3 * 10**9
"""Parameters from which an instruction-tuned teacher is taken to keep to a form."""
SMALL = 5 * 10**8
"""Parameters below which it is asked as a base model. Of SmolLM2-135M-Instruct's completions 27 of 32 were accepted
with `numbered_list`, 17 with `prefilled_tags`, none with `tags`."""
LAYOUTS = {"<|im_start|>": "chatml", "<|eot_id|>": "llama3", "<|user|>": "zephyr"}
"""The shipped layout for a tokenizer that knows its special token."""


@dataclass(frozen=True)
class LookedAt:
    """A model, and what its files say of it."""

    backbone: str
    """Hub id, directory, file, or name of a world."""
    layout: str
    """The setting `chat_template`."""
    has_template: bool
    """Whether the tokenizer brings its own, as that of an instruction-tuned model does."""
    chat_template: ChatTemplate
    """How it writes conversations, with that layout."""
    size: ModelSize
    """In float32, with an adapter."""

    @property
    def context(self) -> int:
        """Tokens that it can read; a large number where its configuration sets no limit."""
        return self.chat_template.context or 2**20

    def tokens(self, text: str) -> int:
        """Of a text by itself."""
        return len(self.chat_template.tokenizer(text, add_special_tokens=False).input_ids)

    @property
    def about_template(self) -> str:
        """Why it has this layout, a clause."""
        if self.has_template:
            return "the tokenizer's own"
        return f"the tokenizer has none; {self.layout} is the shipped one that suits its special tokens"

    @property
    def answer_format(self) -> tuple[AnswerFormat, str]:
        """How it is asked for an instruction, and why, as a teacher."""
        parameters = f"{named(self.size.parameters)} parameters"
        if not self.has_template:
            return "numbered_list", "a base model: it goes on with a list"
        if self.size.parameters < SMALL:
            return "numbered_list", f"{parameters}: it goes on with a list more often than it keeps to a form"
        if self.size.parameters < CAPABLE:
            return "prefilled_tags", f"{parameters}: its turn begins with the tag, which it may forget"
        return "tags", f"{parameters}: it can reason first and put its instruction between tags"


def look_at(backbone: str) -> LookedAt:
    """Look at a model's configuration and tokenizer; no weights are read.

    Raises:
        ValueError: there is no such model, or it cannot be trained here.
    """
    tokenizer = load_tokenizer(backbone)
    has_template = bool(tokenizer.chat_template)
    known = tokenizer.get_added_vocab()
    found = next((layout for token, layout in LAYOUTS.items() if token in known), "plain")
    layout = "auto" if has_template else found
    source = ModelSource(backbone, chat_template=layout)
    return LookedAt(backbone, layout, has_template, load_chat_template(source), model_size(source, LORA))
