"""Which settings a stage is pinned to: those that decide what it makes, not those that decide how fast or how long.

A class that is chosen by `class_path` names the settings of the second kind in its attribute `unpinned`, with dots for
nested ones (`training.checkpoint_every_n_steps`). They may be changed at any time. A model's class names in
`for_training` the settings that say how it is trained: a stage that only lets it write or answer is not pinned to them.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def pinned(settings: Any, trained: bool = True) -> Any:
    """The settings, nested as they are, without those that are not pinned.

    Args:
        settings: of a stage, or of a section that it uses.
        trained: whether the stage trains the model that the settings describe.
    """
    if isinstance(settings, list):
        return [pinned(one, trained) for one in settings]
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: pinned(value, trained) for key, value in settings.items()}
    if isinstance(class_path := settings.get("class_path"), str):
        module, _, name = class_path.rpartition(".")
        chosen = getattr(import_module(module), name)
        for dotted in (*getattr(chosen, "unpinned", ()), *(() if trained else getattr(chosen, "for_training", ()))):
            _remove(kept.get("init_args") or {}, dotted.split("."))
    return kept


def _remove(settings: Any, path: list[str]) -> None:
    for part in path[:-1]:
        settings = settings.get(part) or {}
    settings.pop(path[-1], None)
