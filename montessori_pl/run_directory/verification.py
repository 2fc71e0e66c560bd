"""Whether everything that a run vouches for is there: the artifacts of finished stages, the commits of all journals."""

from collections.abc import Iterator
from dataclasses import dataclass

from montessori_pl.run_directory.errors import RunDirectoryError
from montessori_pl.run_directory.journal import check_journals
from montessori_pl.run_directory.run_directory import RunDirectory


@dataclass(frozen=True)
class StageReport:
    """What was found of one stage."""

    key: str
    """The stage."""
    found: str
    """What there is to say, in words."""
    damaged: bool = False
    """Whether something that it vouches for is missing or changed."""


def verify_stages(run_directory: RunDirectory) -> Iterator[StageReport]:
    """Look at every stage that has begun, and read every file that it vouches for; nothing is written.

    A run may go on meanwhile: what a stage has not committed yet is not looked at.
    """
    for key, entry in run_directory.entries.items():
        if not run_directory.begun(key):
            yield StageReport(key, "its directory is gone; `fit` does the stage again", damaged=entry.finished)
            continue
        problems = [
            f"{name} {problem}" for name in entry.files if (problem := run_directory.problem(key, name, whole=True))
        ]
        try:
            commits = check_journals(run_directory.directory(key))
        except RunDirectoryError as error:
            problems.append(str(error))
            commits = 0
        if problems:
            yield StageReport(key, "; ".join(problems), damaged=True)
        elif entry.finished:
            yield StageReport(key, f"finished, {len(entry.files)} files as they were written")
        else:
            yield StageReport(key, f"begun, {commits} commits as they were made" if commits else "begun")
    known = {run_directory.directory(key) for key in run_directory.entries}
    for path in sorted(run_directory.root.glob("iteration_*/*/")):
        if path not in known:
            key = path.relative_to(run_directory.root).as_posix()
            yield StageReport(key, "the manifest does not know it; `fit` moves it aside before it begins this stage")
