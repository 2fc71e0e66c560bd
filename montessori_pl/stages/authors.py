"""Who writes: each request goes to the teacher that shall answer it, and one teacher at a time is in memory."""

from collections.abc import Sequence

from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models import ModelSource
from montessori_pl.records import Message


class Authors:
    """Teachers that share a backbone, and an engine that holds one of them.

    Args:
        backend: the engine; nothing is loaded before it is needed.
    """

    def __init__(self, backend: GenerationBackend) -> None:
        self.backend = backend
        self._loaded: ModelSource | None = None

    def fits(self, author: ModelSource, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether the conversation and a completion of full length fit the author's context."""
        if self._loaded is None:
            self._load(author)
        return self.backend.fits(messages, sampling)  # whoever is loaded: the context is the backbone's

    def generate(
        self, authors: Sequence[ModelSource], requests: Sequence[Request], sampling: Sampling
    ) -> list[Completion]:
        """One completion of each request by its author, in order."""
        completions: dict[int, Completion] = {}
        # Who is loaded goes first: two teachers that write and answer change places twice and not four times.
        for author in sorted(dict.fromkeys(authors), key=lambda author: author != self._loaded):
            self._load(author)
            mine = [place for place, other in enumerate(authors) if other == author]
            answers = self.backend.generate([requests[place] for place in mine], sampling)
            completions |= dict(zip(mine, answers, strict=True))
        return [completions[place] for place in range(len(requests))]

    def _load(self, author: ModelSource) -> None:
        if author == self._loaded:
            return
        if self._loaded is not None:
            self.backend.close()  # or both would be in memory while the second is loaded
        self.backend.load(author)
        self._loaded = author


def signature(author: ModelSource) -> str:
    """How an example names its author: the backbone, and the adapter's stage where there is one."""
    return f"{author.backbone} + {author.weights.parent.name}" if author.weights else author.backbone
