"""The examples that are given and not synthesized: seed tasks, reference set and test set."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from montessori_pl.bounds import Text, checked
from montessori_pl.data.formats import LoadedSource, load_source, source_path
from montessori_pl.data.records import Example
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.synthesis.contamination import ContaminationIndex, normalized
from montessori_pl.worlds.names import in_world, locate

ROLES = ("seed_tasks", "reference", "test")
"""What the sources are for."""
NEARLY_THE_SAME = 0.8
"""Share of common n-grams above which two instructions are one in two frames. Below it, two benchmark items may as well
have a template in common, and nothing stops the run; synthesis is stricter, because it can write another example."""


def source_file(source: str) -> Path | None:
    """The file or directory that a source of examples names; none for a set of a world, which has a version."""
    return None if in_world(source) else source_path(source)


@checked
@dataclasses.dataclass(frozen=True)
class DataSources:
    """The examples that are given and not synthesized."""

    files: ClassVar[Files] = {"seed_tasks": source_file, "reference": source_file, "test": source_file}
    seed_tasks: Text
    """Examples whose instructions are shown to the teacher as shots: a set of the classroom or the gym, a file (JSON
    lines, JSON, CSV, Parquet), or a directory of a Hugging Face dataset; `[a:b]` behind it takes rows a to b."""
    reference: Text
    """The reference set, on which influence is measured."""
    test: Text | None = None
    """Held-out examples for evaluation; must not share an instruction with the reference set."""
    _loaded: dict[str, LoadedSource] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    """What has been read, by role: each source is read once."""

    def read(self, role: str) -> list[Example]:
        """The examples of one role: `seed_tasks`, `reference` or `test`; `load` says as well what was left out.

        Raises:
            ValueError: there is none; the sentence names the setting.
        """
        return list(self.load(role).examples)

    def account(self) -> dict[str, dict[str, Any]]:
        """For each role that is set, its source, how many of its rows are examples, and what was not read.

        Raises:
            ValueError: a source cannot be read; the sentence names the setting.
        """
        account = {}
        for role in ROLES:
            if getattr(self, role) is not None:
                loaded = self.load(role)
                account[role] = {
                    "source": getattr(self, role),
                    "examples": len(loaded.examples),
                    "left_out": loaded.left_out(),
                    "unread_columns": dict(loaded.unread),
                    "notes": [f"data.{role}: {note}" for note in loaded.notes()],
                }
        return account

    def load(self, role: str) -> LoadedSource:
        """The source of one role, with the rows that were left out and the columns that are not read.

        Raises:
            ValueError: there is none; the sentence names the setting.
        """
        source = getattr(self, role)
        if source is None:
            raise ValueError(f"data.{role} is not set, and a stage of the recipe needs it")
        if role not in self._loaded:
            try:
                self._loaded[role] = load_source(locate(source))
            except (ValueError, OSError) as error:
                raise ValueError(f"data.{role}: {error}") from error
        return self._loaded[role]

    def check_disjoint(self) -> None:
        """Refuse a reference set that holds test items: influence would be measured on the exam.

        Raises:
            ValueError: instructions stand in both, or nearly so.
        """
        if self.test is None:
            return
        tests = self.read("test")
        ids = {normalized(_asked(example)): example.id for example in tests}
        index = ContaminationIndex((example.id, _asked(example)) for example in tests)
        same, alike = [], []
        for example in self.read("reference"):
            id = ids.get(normalized(_asked(example)))
            overlap = index.find(_asked(example))
            if id is not None:
                same.append(f"{example.id} = {id}")
            elif overlap is not None and overlap.share > NEARLY_THE_SAME:
                alike.append(
                    f"{example.id} and {overlap.name} with {overlap.share:.0%} of the {index.ngram}-grams in common"
                )
        clauses = []
        if same:
            clauses.append(f"share {_instructions(same)}, for example {same[0]}")
        if alike:
            clauses.append(f"have {_instructions(alike)} nearly in common, for example {alike[0]}")
        if clauses:
            raise ValueError(
                f"data.reference ({self.reference}) and data.test ({self.test}) {' and '.join(clauses)}; "
                "take disjoint rows, for example FILE[:64] and FILE[64:]"
            )


def _asked(example: Example) -> str:
    """All that the user says: two conversations may well end, or begin, with the same words."""
    return "\n".join(example.user_turns())


def _instructions(found: Sequence[str]) -> str:
    return f"{len(found)} instruction{'s' if len(found) > 1 else ''}"
