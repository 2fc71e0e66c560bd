"""A run directory: which stages have begun or finished, under which settings, with which artifacts; one writer.

| manifest says | the stage's directory | then |
|---|---|---|
| nothing | may hold leavings | the stage begins: its settings are pinned |
| begun | holds what was done so far | the stage goes on from there, under the pinned settings |
| finished | holds artifacts with known hashes | the stage is skipped; its artifacts are verified when they are read |

Knows nothing about models or about what a stage does. Every change of the manifest is one atomic replacement.
"""

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from montessori_pl.run_directory.atomic import write_json
from montessori_pl.run_directory.fingerprint import common_file, same

MAX_LISTED = 16
"""So many names are listed."""


class RunDirectoryError(ValueError):
    """What is wrong with a run directory, in a sentence for the user."""


@dataclasses.dataclass
class StageEntry:
    """What the manifest knows about one stage of one iteration."""

    settings: dict[str, Any]
    """The settings under which the stage began."""
    inputs: dict[str, str]
    """What it reads: for each setting that names a stage, that stage's key and the digest of its artifacts."""
    finished: bool = False
    """Whether its artifacts are complete."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of each artifact, by path relative to the stage's directory."""
    seconds: float = 0.0
    """Time spent in the stage, all sessions together."""


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
        self.reload()

    def reload(self) -> None:
        """Read the manifest again.

        Raises:
            RunDirectoryError: the manifest cannot be read.
        """
        if not self._manifest.exists():
            return
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            self.entries = {key: StageEntry(**entry) for key, entry in content["stages"].items()}
            self.facts = content["facts"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunDirectoryError(
                f"{self._manifest} is not a manifest of this program ({error}); "
                "restore it, or choose another directory with --run"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer. The operating system frees the lock of a process that died.

        Raises:
            RunDirectoryError: another process is writing to this run.
        """
        self.root.mkdir(parents=True, exist_ok=True)
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
            self.reload()
            yield
        finally:
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
            self.directory(key).mkdir(parents=True, exist_ok=True)
            self.entries[key] = StageEntry(settings=_plain(settings), inputs=dict(inputs))
            self._commit()

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
            RunDirectoryError: they differ; the sentence names the keys, both values and the ways out.
        """
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
            entry.settings, entry.finished, entry.files = _plain(settings), False, {}
            self._commit()

    def _read(self, key: str) -> bool:
        """Whether another stage that has begun reads this one."""
        sources = [
            source for other, entry in self.entries.items() if self.begun(other) for source in entry.inputs.values()
        ]
        return any(source.split(" ")[0] == key for source in sources)

    def finish(self, key: str, files: Sequence[Path]) -> None:
        """Record that the stage is complete, with the hashes of its artifacts."""
        entry, directory = self.entries[key], self.directory(key)
        entry.files = {str(path.relative_to(directory)): _sha256(path) for path in files}
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

    def verify(self, key: str) -> Path:
        """The directory of a finished stage, after a look at every artifact.

        Raises:
            RunDirectoryError: an artifact is missing or is not what the stage wrote.
        """
        directory = self.directory(key)
        for name, digest in self.entries[key].files.items():
            path = directory / name
            if not path.exists() or _sha256(path) != digest:
                raise RunDirectoryError(
                    f"{path} {'is not what stage ' + key + ' wrote' if path.exists() else 'is missing'}; restore the "
                    f"file, or delete {directory} to do the stage again"
                )
        return directory

    def _commit(self) -> None:
        stages = {key: dataclasses.asdict(entry) for key, entry in self.entries.items()}
        write_json(self._manifest, {"facts": self.facts, "stages": stages})


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
