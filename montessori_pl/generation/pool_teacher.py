"""The pool: teachers beside the one that is aligned, each with its engine, its price and a note on its licence."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from montessori_pl.bounds import Text, checked
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.generation.base import GenerationBackend, Price
from montessori_pl.models.loading import BaseDtype, ModelSource
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.worlds.names import backbone_file, locate


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolTeacher:
    """A teacher that only writes."""

    fingerprint_excludes: ClassVar[tuple[str, ...]] = ("price", "license")
    files: ClassVar[Files] = {"backbone": backbone_file, "chat_template": chat_template_file}
    backbone: Text
    """Hub id, local directory, GGUF file, name of the embedded classroom, or what an endpoint calls the model."""
    adapter: Text | None = None
    """A LoRA adapter on the backbone: a local directory, or a name of the classroom."""
    chat_template: Text = "auto"
    """Chat layout: `auto`, the name of a shipped one, or the path of a Jinja file; an endpoint has its own."""
    chat_template_kwargs: dict[str, Any] | None = None
    """What the chat template is told apart from the messages, for example `enable_thinking: false`."""
    base_dtype: BaseDtype = "float32"
    """BaseDtype of the backbone."""
    trust_remote_code: bool = False
    """Whether code that lies beside the backbone is run (`auto_map` of its configuration)."""
    generation: Callable[[], GenerationBackend] | None = None
    """The engine that runs it; null takes the recipe's."""
    price: Price | None = None
    """What its tokens cost, also against the engine's budget; null takes the price that its engine names, if any."""
    license: str = ""
    """What its licence says of the use of its texts; goes into data cards."""

    def source(self) -> ModelSource:
        """The model, with its adapter."""
        weights = Path(locate(self.adapter)) if self.adapter is not None else None
        return ModelSource(
            self.backbone,
            weights,
            self.chat_template,
            self.base_dtype,
            trust_remote_code=self.trust_remote_code,
            chat_template_kwargs=self.chat_template_kwargs,
        )
