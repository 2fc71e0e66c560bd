"""A guard over a teacher that writes: compares its last completions with those of the teacher before alignment.

How varied texts are, and how often they repeat each other, depends on how many there are. Both sides are therefore
measured on equally many completions, and near duplicates are counted anew within these: among thousands of accepted
examples a new one has a near duplicate more often than among the first hundreds, for any teacher.

The responses of accepted examples are compared too, by how many are near duplicates: a teacher may ask varied questions
and answer all of them with one text. Where responses are short many are equal, and how many differs from window to
window even for the same teacher; other limits are for instructions alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from montessori_pl.bounds import PositiveInt, Text, checked
from montessori_pl.data.records import Example, Rejection, read_records
from montessori_pl.run_directory.journal import Journal
from montessori_pl.stages.base import BASE, EXAMPLES, LATEST, REJECTIONS, Input, Kind, StageContext, StageError
from montessori_pl.synthesis.base import UNFINISHED, Synthesizer
from montessori_pl.synthesis.collapse import CollapseLimits
from montessori_pl.synthesis.diversity import diversity
from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.near_duplicates import NearDuplicateIndex

BASELINE, FALLBACK_TEACHER = "guard.baseline", "guard.fallback_teacher"
ALARM = "alarm"
"""Note in the journal, at the batch after which the alarm went off."""

FEWEST_RESPONSES = 20
"""Fewer responses are not compared: one repetition would be a large part of them."""

Fallback = Literal["none", "mixture", "unaligned"]


@checked
@dataclass(frozen=True, kw_only=True)
class CollapseGuard:
    """What to compare a teacher's writing with, and what to do when it has collapsed."""

    baseline: Text
    """The stage whose examples the teacher wrote before alignment, under the same settings; a `Synthesize`."""
    limits: CollapseLimits = CollapseLimits()
    """How far the writing may move; divergence is not measured here. That of near duplicates is for responses too."""
    window: PositiveInt = 256
    """Completions that are compared, accepted or not: the last ones of both stages. A baseline with fewer is compared
    as a whole; a stage that ends with fewer is compared at its end."""
    fallback: Fallback = "none"
    """What happens from the next batch on: `none` only says that the writing has collapsed; `mixture` lets the teacher
    before alignment write every second prompt; `unaligned` lets it write all. What was written before is kept."""
    fallback_teacher: Text = BASE
    """The teacher before alignment: `base`, or the stage that trained it."""

    def __post_init__(self) -> None:
        if self.fallback_teacher == LATEST:
            raise ValueError(
                f"the guard's fallback_teacher cannot be {LATEST!r}, which is the teacher that is guarded; "
                f"give {BASE!r}, or the stage that trained the teacher before alignment"
            )

    def reads(self) -> list[Input]:
        """The baseline, and the teacher before alignment where it may have to write."""
        inputs = [Input(BASELINE, self.baseline, Kind.EXAMPLES)]
        if self.fallback != "none":
            inputs.append(Input(FALLBACK_TEACHER, self.fallback_teacher, Kind.TEACHER))
        return inputs

    def replaces(self, index: int) -> bool:
        """Whether, after the alarm, the prompt of this number goes to the teacher before alignment."""
        return self.fallback == "unaligned" or (self.fallback == "mixture" and index % 2 == 1)


@dataclass
class _Writing:
    """What completions hold, in the order of writing."""

    instructions: list[str | None] = field(default_factory=list)
    """The instruction of each completion; none where there was no instruction."""
    responses: list[str] = field(default_factory=list)
    """The response of each accepted example that has one."""

    def extend(self, other: "_Writing") -> None:
        self.instructions += other.instructions
        self.responses += other.responses


class CollapseMonitor:
    """The guard on duty in one stage. The alarm goes off once, and stands in the journal.

    Args:
        guard: what to look at.
        context: the stage that is guarded.
        journal: its journal.
        synthesizer: finds the instruction in a completion, also in those of the baseline.
        max_similarity: ROUGE-L F1 above which two instructions are near duplicates.

    Raises:
        StageError: the baseline's examples are not completions of prompts.
    """

    def __init__(
        self,
        guard: CollapseGuard,
        context: StageContext,
        journal: Journal,
        synthesizer: Synthesizer,
        max_similarity: float,
    ) -> None:
        self.guard, self.journal, self.directory = guard, journal, context.directory
        self._synthesizer, self._max_similarity = synthesizer, max_similarity
        self._before = self._read(context.input_dir(BASELINE))
        if not self._before.instructions:
            raise StageError(
                f"{context.key}: guard.baseline names {guard.baseline!r}, which holds no completions of a teacher to "
                "compare with; name a Synthesize stage that the teacher before alignment wrote"
            )
        self._written = self._read(self.directory)

    @property
    def alarmed(self) -> bool:
        """Whether the writing has collapsed in a batch that is committed."""
        return any(ALARM in commit for commit in self.journal.commits)

    def notes(self, accepted: Sequence[Example], rejected: Sequence[Rejection], last: bool) -> dict[str, int]:
        """What the journal notes of a batch that is about to be committed.

        Args:
            accepted: the batch's examples.
            rejected: its rejections.
            last: whether no batch follows.
        """
        self._written.extend(self._writing(accepted, rejected))
        enough = len(self._written.instructions) >= min(self.guard.window, len(self._before.instructions))
        if self.alarmed or not (enough or last):
            return {}
        return {ALARM: 1} if self._crossed(self._written) else {}

    def sentences(self) -> list[str]:
        """One sentence if the alarm went off, for the summary."""
        if not self.alarmed:
            return []
        number = next(number for number, commit in enumerate(self.journal.commits) if ALARM in commit)
        written = self._read(self.directory, number)
        return [
            f"after {len(written.instructions)} completions the writing had moved beyond the limits "
            f"({'; '.join(self._crossed(written))}); {self._consequence(number == len(self.journal.commits) - 1)}"
        ]

    def _consequence(self, last: bool) -> str:
        if last:
            return "nothing was left to be written"
        if self.guard.fallback == "none":
            return "the same teacher wrote the rest"
        what = "the rest" if self.guard.fallback == "unaligned" else "every second prompt of the rest"
        return f"{what} was written by the teacher before alignment, {self.guard.fallback_teacher}"

    def _crossed(self, written: _Writing) -> list[str]:
        """The limits that the last completions have crossed, a clause each."""
        before, window, limits = self._before, self.guard.window, self.guard.limits
        size = min(window, len(before.instructions), len(written.instructions))
        if not size:
            return []
        clauses = limits.crossed(
            self._measures(before.instructions[-size:]), self._measures(written.instructions[-size:])
        )
        size = min(window, len(before.responses), len(written.responses))
        if size >= FEWEST_RESPONSES:
            both = self._response_measures(before.responses[-size:]), self._response_measures(written.responses[-size:])
            clauses += [f"of the responses: {clause}" for clause in limits.crossed(*both)]
        return clauses

    def _measures(self, completions: Sequence[str | None]) -> dict[str, float]:
        """The numbers that have limits, of completions given by their instructions."""
        instructions = [instruction for instruction in completions if instruction is not None]
        return {
            **diversity(instructions),
            "parsed_rate": len(instructions) / len(completions),
            "near_duplicate_rate": self._num_repeated(instructions) / len(completions),
        }

    def _response_measures(self, responses: Sequence[str]) -> dict[str, float]:
        """The numbers of responses that have limits."""
        return {"near_duplicate_rate": self._num_repeated(responses) / len(responses)}

    def _num_repeated(self, texts: Sequence[str]) -> int:
        """How many texts are near duplicates of an earlier one."""
        index = NearDuplicateIndex(self._max_similarity)
        repeated = 0
        for number, text in enumerate(texts):
            if index.find(text) is not None:
                repeated += 1
            else:
                index.add(str(number), text)
        return repeated

    def _read(self, directory: Path, last_batch: int | None = None) -> _Writing:
        """What the completions of a stage hold.

        Args:
            directory: the stage's.
            last_batch: leave out what was written after this batch.
        """
        paths = directory / EXAMPLES, directory / REJECTIONS
        if not all(path.exists() for path in paths):
            return _Writing()
        examples, rejections = read_records(paths[0], Example), read_records(paths[1], Rejection)
        return self._writing(
            [one for one in examples if last_batch is None or one.batch <= last_batch],
            [one for one in rejections if last_batch is None or one.batch <= last_batch],
        )

    def _writing(self, accepted: Sequence[Example], rejected: Sequence[Rejection]) -> _Writing:
        """The same for records."""
        found: list[tuple[int, str, str | None]] = [
            (example.batch, example.id, example.instruction) for example in accepted if example.prompt_id
        ]
        # A prompt without any completion, because it is too long, is rejected under its own id.
        completed = [one for one in rejected if one.prompt_id not in ("", one.id)]
        found += [(one.batch, one.id, self._rejected_instruction(one)) for one in completed]
        answered = [example for example in accepted if example.prompt_id and example.response]
        return _Writing(
            [instruction for _, _, instruction in sorted(found, key=lambda one: one[:2])],
            [example.response for example in sorted(answered, key=lambda one: (one.batch, one.id))],
        )

    def _rejected_instruction(self, rejection: Rejection) -> str | None:
        if rejection.reason == UNFINISHED:
            return None
        try:
            return self._synthesizer.instruction(rejection.text)
        except Rejected as error:
            # The whole completion is kept where its instruction was rejected; the instruction, where its response was.
            return None if error.reason == rejection.reason else rejection.text
