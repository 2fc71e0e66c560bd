"""Which settings a stage is pinned to: those that decide what it makes, not those that decide how fast or how long.

A class that is chosen by `class_path` names the settings of the second kind in its attribute `unpinned`, with dots for
nested ones (`training.checkpoint_every_n_steps`). They may be changed at any time. A model's class names in
`for_training` the settings that say how it is trained: a stage that only lets it write or answer is not pinned to them.

A setting that names a file decides by what the file holds, and is pinned together with that. The class says in `files`
which of its settings these are.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from montessori_pl.contents import with_content


def pinned(settings: Any, trained: bool = True, kind: type | None = None) -> Any:
    """The settings, nested as they are, without those that are not pinned, and with the contents of files.

    Args:
        settings: of a stage, or of a section that it uses.
        trained: whether the stage trains the model that the settings describe.
        kind: the class that takes the settings, where they do not say so themselves by `class_path`.
    """
    if isinstance(settings, list):
        return [pinned(one, trained) for one in settings]
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: pinned(value, trained) for key, value in settings.items()}
    arguments = kept
    if isinstance(class_path := settings.get("class_path"), str):
        module, _, name = class_path.rpartition(".")
        kind, arguments = getattr(import_module(module), name), kept.get("init_args") or {}
    for dotted in (*getattr(kind, "unpinned", ()), *(() if trained else getattr(kind, "for_training", ()))):
        inner, name = _find(arguments, dotted)
        inner.pop(name, None)
    for dotted, path_of in getattr(kind, "files", {}).items():
        inner, name = _find(arguments, dotted)
        if isinstance(value := inner.get(name), str) and (path := path_of(value)) is not None:
            inner[name] = with_content(value, path)
    return kept


def _find(settings: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a setting, which is empty if there is none, and the setting's last name."""
    *path, name = dotted.split(".")
    for part in path:
        settings = settings.get(part) or {}
    return settings, name
