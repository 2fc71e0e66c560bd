"""Writes `reference/settings/`: a page for each family of classes, made at every build from the classes.

MkDocs calls `on_files`; `python docs/hooks/settings_pages.py DIRECTORY` writes the same pages as files.
"""

import dataclasses
import html
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from plugin_settings import (
    FAMILIES,
    REQUIRED,
    SECTIONS,
    Setting,
    about,
    groups,
    members,
    settings,
    top_level,
    trainer_callbacks,
)

from montessori_pl.bounds import NotEmpty
from montessori_pl.stages import Stage

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

FOLDER = "reference/settings"
"""Where the pages stand among those of the documentation."""
TITLES = {
    "stages": ("Stages", "The steps of a recipe: `recipe: {NAME: {class_path: STAGE, init_args: {...}}}`."),
    "signals": ("Signals", "How good an example is for the student: the `signal` of a `ScoreExamples` stage."),
    "synthesizers": ("Synthesizers", "How a teacher is asked for instructions: the `synthesizer` of a stage."),
    "engines": ("Engines", "What samples text: the section `generation`, and the `generation` of a pool teacher."),
    "evaluators": ("Evaluators", "What a student is worth: the `evaluators` of an `Evaluate` stage."),
}
"""Name of a family's page -> its title, and where its classes stand in a recipe."""
COLUMNS = "| setting | type | default | what it is | may change later |\n| --- | --- | --- | --- | --- |\n"
NO_SETTINGS = "It has no settings.\n"
READING = """# Settings

These pages are made from the classes themselves, so that they say what the program does. A class is named by
`class_path`; its own name is enough for those that ship with us. Its settings stand in `init_args`, or, where the
command line overrides them, behind the name of the stage: `--recipe.warmup.training.lr 1e-4`.

The last column says when a setting may change after its stage has begun. Where it is empty, the setting may not change:
the run stops with a sentence that names it and both values. Settings of a stage that has not begun may always change.

"""
LINK_TO_RECIPE_FILE = "* [The recipe file](recipe_file.md): its sections, models and data.\n"
OTHER_LINKS = """* [Callbacks of the trainer](trainer_callbacks.md): for `trainer.callbacks`, beside Lightning's own.
* [Groups of settings](groups.md): what several classes have in common, such as sampling and training.
"""
RECIPE_FILE = """# The recipe file

The keys at the top of a recipe file. Each is also an option of `fit`: `--run DIR`, `--data.reference FILE`.

"""
TRAINER_CALLBACKS = """# Callbacks of the trainer

They stand in `trainer.callbacks`.

"""
GROUPS = """# Groups of settings

Settings that several classes have in common, or that belong together. You write a group as a mapping inside the setting
that takes it: `training: {lr: 1.0e-4, epochs: 2}`.

"""


def pages() -> dict[str, str]:
    """Name -> Markdown of each page."""
    families = {
        name: f"# {title}\n\n{where}\n\n{_sections(members(FAMILIES[name]))}" for name, (title, where) in TITLES.items()
    }
    links = [f"* [{title}]({name}.md): {_lower(where)}\n" for name, (title, where) in TITLES.items()]
    return {
        "index": READING + LINK_TO_RECIPE_FILE + "".join(links) + OTHER_LINKS,
        "recipe_file": _recipe_file(),
        **families,
        "trainer_callbacks": TRAINER_CALLBACKS + _sections(trainer_callbacks()),
        "groups": GROUPS + _sections(groups()),
    }


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages to those that MkDocs has found."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=text))
    return files


def _recipe_file() -> str:
    text = RECIPE_FILE + _table(top_level())
    for section, kind in SECTIONS.items():
        of = "For each teacher, by its name, the settings" if section == "teachers" else "The settings"
        text += f"\n## {section}\n\n{of} of `{kind.__name__}`.\n\n{_about(kind)}\n\n{_table(settings(kind))}"
    return text


def _sections(kinds: Iterable[type]) -> str:
    return "\n".join(_section(kind) for kind in kinds)


def _section(kind: type) -> str:
    """A class: what it is, what it leaves behind, and its settings."""
    text = f"## {kind.__name__}\n\n{_about(kind)}\n\n"
    if issubclass(kind, Stage):
        files = ", ".join(f"`{pattern}`" for pattern in kind.artifacts)
        text += f"Other stages read its {kind.produces.value}: {files}.\n\n"
    found = settings(kind)
    return text + (_table(found) if found else NO_SETTINGS)


def _about(kind: type) -> str:
    return "\n\n".join(map(_prose, about(kind)))


def _table(found: Sequence[Setting]) -> str:
    rows = [
        (f"`{one.name}`", _type(one.type), _default(one.default), _prose(_upper(one.sentence)), one.changes)
        for one in found
    ]
    return COLUMNS + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _type(hint: Any) -> str:
    """A type as a recipe means it, with links to the classes that it names."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [f"`{one!r}`" for one in inner[1:] if not isinstance(one, NotEmpty)]  # as nearly all texts are
        return " ".join([_type(inner[0]), *bounds])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is tuple:
        return "list of " + ", ".join(_type(one) for one in inner if one is not ...)
    if origin is dict:
        return f"mapping to {_type(inner[1])}"
    if origin is Callable:
        return _type(inner[1])
    if origin is not None:
        return f"list of {_type(inner[0])}"
    return _NAMES.get(hint) or _link(hint)


_NAMES: dict[Any, str] = {
    type(None): "null",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict: "mapping",
    Path: "path",
    Any: "any value",
}


def _link(kind: type) -> str:
    for section, owner in SECTIONS.items():
        if kind is owner:
            return f"[{kind.__name__}](recipe_file.md#{section})"
    for page, family in FAMILIES.items():
        if kind is family:
            return f"[{kind.__name__}]({page}.md)"
        if issubclass(kind, family):
            return f"[{kind.__name__}]({page}.md#{kind.__name__.lower()})"
    return f"[{kind.__name__}](groups.md#{kind.__name__.lower()})"


def _default(value: Any) -> str:
    """A default as a recipe spells it; of a group only what differs from the group's own defaults."""
    if value is REQUIRED:
        return "must be set"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {one.name: one.default for one in settings(type(value))}
        value = {name: getattr(value, name) for name in own if getattr(value, name) != own[name]}
        return f"`{_yaml(value)}`" if value else "its own defaults"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _prose(text: str) -> str:
    """A docstring's text as Markdown that may stand in a table: on one line, and nothing but code is special."""
    parts = re.split(r"(`+[^`]*`+)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _plain(part) for part in parts).replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", html.escape(text, quote=False))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for page, content in pages().items():
        (directory / f"{page}.md").write_text(content, encoding="utf-8")
