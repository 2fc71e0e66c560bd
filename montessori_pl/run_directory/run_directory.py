"""A run directory: which stages have begun or finished, under which settings, with which artifacts; one writer.

| manifest says | the stage's directory | then |
|---|---|---|
| nothing | may hold leftovers | these are moved aside, and the stage begins: its settings are pinned |
| begun | holds what was done so far | the stage goes on from there, under the pinned settings |
| finished | holds artifacts with known hashes | the stage is skipped, after a look at its artifacts |

A look at an artifact takes its size and its time of modification; where these are not as they were, as in a copy, its
hash decides.

Knows nothing about models or about what a stage does. Every change of the manifest is one atomic replacement.
"""

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock

from montessori_pl.run_directory.atomic import write_json
from montessori_pl.run_directory.durable import make_directory, sync, sync_tree
from montessori_pl.run_directory.errors import RunDirectoryError
from montessori_pl.run_directory.fingerprint import common_file, same
from montessori_pl.run_directory.manifest import FORMAT, StageEntry, read_manifest

MAX_LISTED = 16
"""So many names are listed."""
LEFTOVERS = "leftovers"
"""Directory, within that of a run, to which stages are moved that the manifest does not know."""


class RunDirectory:
    """The directory of one run.

    Args:
        root: created if absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifest = root / "manifest.json"
        self.entries: dict[str, StageEntry] = {}
        self.facts: dict[str, Any] = {}
        self._is_locked = False
        self.reload()

    def reload(self) -> None:
        """Read the manifest again.

        Raises:
            RunDirectoryError: the manifest cannot be read.
        """
        if not os.path.lexists(self._manifest):
            return
        try:
            self.entries, self.facts = read_manifest(self._manifest)
        except RunDirectoryError:
            raise
        except (ValueError, OSError) as error:
            raise RunDirectoryError(
                f"{self._manifest} is not a manifest of this program ({error}); restore it, remove it to begin anew "
                "(what the stages wrote is then moved aside), or choose another directory with --run"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer. The operating system frees the lock of a process that died.

        Raises:
            RunDirectoryError: another process is writing to this run.
        """
        make_directory(self.root)
        owner = self.root / ".owner"
        lock = filelock.FileLock(self.root / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
            raise RunDirectoryError(
                f"{self.root} is being written by {who}; wait for it, stop it, or choose another directory with --run"
            ) from None
        try:
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
            self._is_locked = True
            self.reload()
            yield
        finally:
            self._is_locked = False
            owner.unlink(missing_ok=True)
            lock.release()

    def directory(self, key: str) -> Path:
        """Where the stage of this key writes; keys are `iteration_1/warmup`."""
        return self.root / key

    def begun(self, key: str) -> bool:
        """Whether the stage has begun; deleting its directory undoes it."""
        return key in self.entries and self.directory(key).is_dir()

    def finished(self, key: str) -> bool:
        """Whether the stage's artifacts are complete."""
        return self.begun(key) and self.entries[key].finished

    def begin(self, key: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Pin the settings and inputs of a stage that has not begun; go on with one that has."""
        if not self.begun(key):
            make_directory(self.directory(key))
            self.entries[key] = StageEntry(settings=_plain(settings), inputs=dict(inputs))
            self._commit()

    def forget_undone(self) -> None:
        """Strike stages whose directories were deleted, so that none of them seems finished when it begins anew."""
        undone = [key for key in self.entries if not self.begun(key)]
        for key in undone:
            del self.entries[key]
        if undone:
            self._commit()

    def set_aside(self, keys: Sequence[str]) -> Path | None:
        """Move what lies in the directories of stages that the manifest does not know, so that it is never used.

        Returns:
            where it lies now; none if there was nothing.
        """
        unknown = [key for key in keys if key not in self.entries and _holds_something(self.directory(key))]
        if not unknown:
            return None
        aside = self.root / LEFTOVERS / f"{datetime.now():%Y-%m-%dT%H-%M-%S-%f}"
        for key in unknown:
            target = aside / key
            make_directory(target.parent)
            os.replace(self.directory(key), target)
            sync(target.parent)
        return aside

    def check(
        self,
        key: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        adjustable: Collection[str] = (),
    ) -> None:
        """Compare a stage that has begun with what it is asked to be today.

        Args:
            key: the stage.
            settings: its settings of today.
            inputs: its inputs of today; none when they are not known yet.
            adjustable: settings, with dots, that may have changed as long as no other stage has read this one.

        Raises:
            RunDirectoryError: they differ; the sentence names the keys, both values and the ways out. Or the stage's
                directory is a link.
        """
        if link := self._link(self.directory(key)):
            raise RunDirectoryError(
                f"{link} is a link, and what a run has written may lie in its own directory only; put the directory "
                "itself there (the whole run directory may be a link), or delete the link to do the stage again"
            )
        if not self.begun(key):
            return
        entry = self.entries[key]
        state = f"stage {key} of {self.root} has {'finished' if entry.finished else 'begun'}"
        again = f"or delete {self.directory(key)} to do the stage again"
        changed = _changed(entry.settings, settings)
        if changed and (self._read(key) or not set(changed) <= set(adjustable)):
            changes = _changes(changed, entry.settings, settings)
            raise RunDirectoryError(
                f"{state} under other settings ({changes}); restore them, start another run with --run DIR, {again}"
            )
        if inputs is not None and (changed := _changed(entry.inputs, inputs)):
            changes = _changes(changed, entry.inputs, inputs)
            raise RunDirectoryError(f"{state} with other inputs ({changes}); start another run with --run DIR, {again}")

    def up_to_date(self, key: str, settings: Mapping[str, Any]) -> bool:
        """Whether the stage has finished and `adjust` would leave it so: neither more nor less is asked for today."""
        return self.finished(key) and not _changed(self.entries[key].settings, settings)

    def adjust(self, key: str, settings: Mapping[str, Any]) -> None:
        """Pin a stage that has begun to its settings of today, which `check` has allowed; it goes on if they differ."""
        entry = self.entries[key] if self.begun(key) else None
        if entry is not None and _changed(entry.settings, settings):
            entry.settings, entry.finished, entry.files, entry.stamps = _plain(settings), False, {}, {}
            self._commit()

    def _read(self, key: str) -> bool:
        """Whether another stage that has begun reads this one."""
        sources = [
            source for other, entry in self.entries.items() if self.begun(other) for source in entry.inputs.values()
        ]
        return any(source.split(" ")[0] == key for source in sources)

    def finish(self, key: str, files: Sequence[Path]) -> None:
        """Record that the stage is complete, with the hashes of its artifacts, when all of it has reached the disk.

        Raises:
            RunDirectoryError: an artifact is a link.
        """
        entry, directory = self.entries[key], self.directory(key)
        if link := next(filter(None, map(self._link, files)), None):
            raise RunDirectoryError(f"{link}, which stage {key} has left, is a link; it must leave the file itself")
        sync_tree(directory)
        names = [str(path.relative_to(directory)) for path in files]
        entry.stamps = {name: _stamp(directory / name) for name in names}
        entry.files = {name: _sha256(directory / name) for name in names}
        entry.finished = True
        self._commit()

    def add_seconds(self, key: str, seconds: float) -> None:
        """Count time spent in the stage; written with the next change of the manifest at the latest."""
        self.entries[key].seconds = round(self.entries[key].seconds + seconds, 3)
        self._commit()

    def remember(self, **facts: Any) -> None:
        """Keep facts about the run that are not the stages', for example the id of its W&B run."""
        self.facts.update(facts)
        self._commit()

    def digest(self, key: str) -> str:
        """A few digits that stand for all artifacts of a finished stage."""
        return hashlib.sha256(json.dumps(self.entries[key].files, sort_keys=True).encode()).hexdigest()[:12]

    def verify(self, key: str, name: str | None = None) -> Path:
        """The directory of a finished stage, after a look at every artifact, or at one.

        Args:
            key: the stage.
            name: of an artifact; none looks at all of them.

        Raises:
            RunDirectoryError: an artifact is missing or is not what the stage wrote.
        """
        directory, entry = self.directory(key), self.entries[key]
        before = dict(entry.stamps)
        for one in entry.files if name is None else [name]:
            if problem := self.problem(key, one):
                raise RunDirectoryError(
                    f"{directory / one} {problem}; restore the file, or delete {directory} to do the stage again"
                )
        if self._is_locked and entry.stamps != before:
            self._commit()
        return directory

    def problem(self, key: str, name: str, whole: bool = False) -> str:
        """What is wrong with an artifact of a finished stage, as the rest of a sentence; empty if nothing is.

        Args:
            key: the stage.
            name: the artifact's path, relative to the stage's directory.
            whole: whether its hash is taken in any case.
        """
        entry, path = self.entries[key], self.directory(key) / name
        if name not in entry.files:
            return f"is not known to the manifest as a file of stage {key}"
        if link := self._link(path):
            return "is a link" if link == path else f"is not there itself, for {link} is a link"
        if not path.is_file():
            return "is no file" if path.exists() else "is missing"
        stamp = _stamp(path)
        if whole or stamp != entry.stamps.get(name):
            if _sha256(path) != entry.files[name]:
                return f"is not what stage {key} wrote"
            entry.stamps[name] = stamp
        return ""

    def _link(self, path: Path) -> Path | None:
        """The first link on the way from the run directory, which may be one itself, to a path within it."""
        parts = path.relative_to(self.root).parts
        steps = [self.root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        return next((step for step in steps if step.is_symlink()), None)

    def _commit(self) -> None:
        stages = {key: dataclasses.asdict(entry) for key, entry in self.entries.items()}
        write_json(self._manifest, {"format": FORMAT, "facts": self.facts, "stages": stages})


_ABSENT = object()


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, with dots."""
    old, new = _flat(before), _flat(_plain(now))
    names = sorted(old.keys() | new.keys())
    return [name for name in names if not same(old.get(name, _ABSENT), new.get(name, _ABSENT))]


def _changes(names: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = _flat(before), _flat(_plain(now))
    return "; ".join(f"{name}: {_change(name, old, new)}" for name in names)


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if (file := common_file(old.get(name), new.get(name))) is not None:
        return f"the content of {file!r} has changed"
    return f"{_shown(old, name)} then, {_shown(new, name)} now"


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "absent"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON gives them back: tuples as lists, everything else, infinity too, as text."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str), parse_constant=str)
    return plain


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names with dots, and those in the items of a list by names such as `evaluators[0].judge`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            flat |= _flat({f"{key}[{place}]": item for place, item in enumerate(value)}, prefix)
        elif isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _holds_something(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of modification in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_run(root: Path) -> RunDirectory:
    """The workspace of a run that exists.

    Raises:
        RunDirectoryError: it is no run directory, or its manifest is damaged.
    """
    if not root.is_dir():
        above = next(parent for parent in root.absolute().parents if parent.is_dir())
        raise RunDirectoryError(f"there is no directory {root}; {_holds(above)}; correct the path")
    if not (root / "manifest.json").exists():
        raise RunDirectoryError(
            f"{root} is no run directory, for it holds no manifest.json; {_holds(root)}; give the directory that "
            "`fit` was given with --run"
        )
    try:
        return RunDirectory(root)
    except RunDirectoryError as error:
        if error.__cause__ is None:
            raise
        raise RunDirectoryError(
            f"{root / 'manifest.json'} is not a manifest of this program ({error.__cause__}); restore it, or give "
            "another run"
        ) from error


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first of them if there are many."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _holds(directory: Path) -> str:
    """What lies in a directory."""
    names = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir() if not path.name.startswith("."))
    return f"{directory} holds {listed(names) or 'nothing'}"
