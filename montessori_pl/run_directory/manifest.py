"""What the manifest of a run directory knows, and how it is read: what is no manifest is not believed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from montessori_pl.run_directory.errors import RunDirectoryError

FORMAT = 1
"""Of the manifest; a program does not read a manifest of a later format."""
_KEY = re.compile(r"iteration_[1-9][0-9]*/[^/]+")
_TYPES = {"settings": dict, "inputs": dict, "finished": bool, "files": dict, "stamps": dict, "seconds": int | float}


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
    stamps: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """For each artifact, its size in bytes and its time of modification in nanoseconds when its hash was right."""
    seconds: float = 0.0
    """Time spent in the stage, all sessions together."""

    @property
    def reads(self) -> dict[str, str]:
        """The inputs without their digests; for a base model another word, which is nobody's key."""
        return {setting: read.split(" ")[0] for setting, read in self.inputs.items()}


def read_manifest(path: Path) -> tuple[dict[str, StageEntry], dict[str, Any]]:
    """The stages by key, and the facts.

    Raises:
        OSError: it cannot be read.
        RunDirectoryError: a newer version wrote it.
        ValueError: it is something else; the text says what, as a part of a sentence.
    """
    text = path.read_text(encoding="utf-8")
    if not text.strip("\0 \n"):
        raise ValueError("it is empty")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    if isinstance(found := content.get("format", FORMAT), int) and found > FORMAT:
        raise RunDirectoryError(
            f"{path} was written by a newer version of the program (format {found}, this one knows {FORMAT}); use that "
            "version, or another run"
        )
    stages, facts = content.get("stages"), content.get("facts")
    if not isinstance(stages, dict) or not isinstance(facts, dict):
        raise ValueError("it needs 'stages' and 'facts', both JSON objects")
    return {key: _entry(key, stage) for key, stage in stages.items()}, facts


def _entry(key: str, stage: Any) -> StageEntry:
    """What the manifest says of a stage.

    Raises:
        ValueError: it is no such thing.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of a stage, such as iteration_1/warmup")
    if not isinstance(stage, dict) or not {"settings", "inputs"} <= stage.keys() <= _TYPES.keys():
        found = sorted(stage) if isinstance(stage, dict) else type(stage).__name__
        raise ValueError(f"stage {key} has the keys {found}, expected some of {sorted(_TYPES)}")
    wrong = [name for name, value in stage.items() if not isinstance(value, _TYPES[name])]
    texts = [value for name in ("inputs", "files") if name not in wrong for value in stage.get(name, {}).values()]
    if wrong or not all(isinstance(value, str) for value in texts):
        raise ValueError(f"stage {key} has values of another kind under {', '.join(wrong) or 'inputs or files'}")
    return StageEntry(**stage)
