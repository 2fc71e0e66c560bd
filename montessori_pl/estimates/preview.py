"""What a few samples show of how a stage will write."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from montessori_pl.estimates.seconds import duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewedSample:
    """One completion of a teacher, and what became of it."""

    prompt: str
    """What the teacher was given, with what its chat template writes around it."""
    completion: str
    """What it wrote, whole."""
    reason: str = ""
    """Why it is rejected; empty for what is accepted."""
    detail: str = ""
    """What exactly is wrong."""
    instruction: str = ""
    """The instruction in it, where there is one."""
    response: str = ""
    """The response, where the instruction was answered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePreview:
    """The samples of one stage, and what they say of all that it will write."""

    samples: Sequence[PreviewedSample]
    """In the order of their prompts; a stage that a run has not begun writes these first."""
    num_examples: int | None = None
    """Examples that the stage writes; none where it asks for a number of completions."""
    num_completions: int | None = None
    """Completions that it asks for; none where it asks until it has enough examples."""
    usage: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the samples took: `prompt_tokens`, `generated_tokens`, and `cost` in US dollars where prices are known."""
    seconds: float = 0.0
    """How long they took."""
    key: str = ""
    """Iteration and name of the stage."""
    notes: Sequence[str] = ()
    """What stands in for what does not exist yet, a sentence each."""

    @property
    def accepted(self) -> int:
        """Samples that became examples."""
        return sum(not sample.reason for sample in self.samples)

    def verdict(self) -> str:
        """The yield, and why the others were rejected."""
        count = len(self.samples)
        if not count:
            return "no prompt could be asked"
        reasons = Counter(sample.reason for sample in self.samples if sample.reason).most_common()
        rejected = f"; rejected: {', '.join(f'{number} {reason}' for reason, number in reasons)}" if reasons else ""
        return f"{self.accepted} of {count} completions accepted ({self.accepted / count:.0%}){rejected}"

    def expectation(self) -> str:
        """What the whole stage takes if all of it is like the samples; empty where that cannot be said."""
        count = len(self.samples)
        completions = self.num_completions
        if completions is None and self.num_examples is not None and self.accepted:
            completions = round(self.num_examples * count / self.accepted)
        if completions is None or not count:
            return ""
        share = completions / count
        wanted = f"{self.num_examples:,} examples" if self.num_examples is not None else "the stage"
        cost = f", ${self.usage['cost'] * share:,.4f}" if "cost" in self.usage else ""
        return (
            f"{wanted} would take about {completions:,} completions: {duration(self.seconds * share)} at the speed of "
            f"the preview, {round(self.usage.get('generated_tokens', 0) * share):,} tokens written{cost}"
        )
