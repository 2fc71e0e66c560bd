"""Which settings a stage is pinned to: those that decide what it makes, not those that decide how fast or how long.

A class that is chosen by `class_path` names the settings of the second kind in its attribute `unpinned`, with dots for
nested ones (`training.checkpoint_every_n_steps`). They may be changed at any time.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def pinned(settings: Any) -> Any:
    """The settings, nested as they are, without those that are not pinned."""
    if isinstance(settings, list):
        return [pinned(one) for one in settings]
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: pinned(value) for key, value in settings.items()}
    if isinstance(class_path := settings.get("class_path"), str):
        module, _, name = class_path.rpartition(".")
        for dotted in getattr(getattr(import_module(module), name), "unpinned", ()):
            _remove(kept.get("init_args") or {}, dotted.split("."))
    return kept


def _remove(settings: Any, path: list[str]) -> None:
    for part in path[:-1]:
        settings = settings.get(part) or {}
    settings.pop(path[-1], None)
