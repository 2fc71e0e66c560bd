"""The files of a scoring: each process appends to parts of its own, and the finished files hold all in order."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from montessori_pl.data.records import Example, Rejection, Score, read_records
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.signals.base import FREE_MEMORY
from montessori_pl.stages.base import SCORES

UNSCORED = "unscored.jsonl"
"""The examples that the signal could not score, with the reason; there is no such file where it scored all."""


class ScoreFiles:
    """Scores, and examples without one, in the directory of a stage.

        scores.part0.jsonl, unscored.part0.jsonl, scores.part1.jsonl, ...     while processes score
        scores.jsonl, unscored.jsonl                                          when all is scored

    Args:
        directory: the stage's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def part(self, name: str, rank: int) -> Path:
        """Where one process writes what will stand in the file of this name."""
        return self.directory / f"{Path(name).stem}.part{rank}.jsonl"

    def read(self) -> tuple[dict[str, Score], dict[str, Rejection]]:
        """All scores so far by example, and all examples without one, from all ranks."""
        finished = self._finished
        while True:
            with suppress(FileNotFoundError):  # a part, which the first process has put into the finished file
                scored = {one.id: one for path in self._paths(SCORES, finished) for one in read_records(path, Score)}
                unscored = {
                    one.id: one for path in self._paths(UNSCORED, finished) for one in read_records(path, Rejection)
                }
                if finished or not self._finished:
                    break
            finished = True  # by the first process, while this one read the parts
        # A batch that a kill cut short is scored again, and an engine that calls others may say something else then.
        return scored, {id_: one for id_, one in unscored.items() if id_ not in scored}

    def done(self) -> set[str]:
        """Ids of the examples that have a score, or are known to have none."""
        scored, unscored = self.read()
        return scored.keys() | unscored.keys()

    def finish(
        self, examples: Sequence[Example], not_asked: Sequence[Rejection] = ()
    ) -> tuple[list[Score], list[Rejection]]:
        """Put all scores, and all examples without one, in the order of the examples; the parts are gone then.

        Args:
            examples: those about which the signal was asked.
            not_asked: the others, which are written before those without a score.
        """
        scored, unscored = self.read()
        scores = [scored[example.id] for example in examples if example.id not in unscored]
        without = [unscored[example.id] for example in examples if example.id in unscored]
        if not_asked or without:
            write_records(self.directory / UNSCORED, [*not_asked, *without])
        # The last to be written: where it stands, the parts are not needed any more.
        write_records(self.directory / SCORES, scores)
        for part in [*self.directory.glob("*.part*.jsonl"), self.directory / FREE_MEMORY]:
            part.unlink(missing_ok=True)
        return scores, without

    @property
    def _finished(self) -> bool:
        return (self.directory / SCORES).exists()

    def _paths(self, name: str, finished: bool) -> list[Path]:
        """The finished file, or the parts before there is one."""
        return sorted(self.directory.glob(name if finished else f"{Path(name).stem}.part*.jsonl"))
