"""The settings of every class that a recipe can name, read from the classes themselves.

Names, types and defaults are those of the constructor, and sentences those of the docstring: what you read in the
reference is what `--help` says, and cannot fall behind the code.
"""

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import docstring_parser
from lightning.pytorch import Callback

import callbacks as shipped_plugins
from montessori_pl.batches.sources import DataSources
from montessori_pl.cli.fit import MontessoriCLI
from montessori_pl.config_errors import SentenceParser
from montessori_pl.evaluation import Evaluator
from montessori_pl.generation import GenerationBackend
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.student import StudentModule
from montessori_pl.signals import SignalCallback
from montessori_pl.stages import Stage
from montessori_pl.synthesis import Synthesizer

REQUIRED = inspect.Parameter.empty
"""Stands for the default of a setting that has none."""
SHIPPED = ("montessori_pl", "callbacks")
"""The packages whose classes ship with the program; tests and users define others."""
FAMILIES: dict[str, type] = {
    "stages": Stage,
    "signals": SignalCallback,
    "synthesizers": Synthesizer,
    "engines": GenerationBackend,
    "evaluators": Evaluator,
}
"""Name of the page -> the class below which all classes of a family stand."""
SECTIONS: dict[str, type] = {
    "student": StudentModule,
    "teacher": TeacherDPOModule,
    "teachers": PoolTeacher,
    "data": DataSources,
}
"""Section of a recipe file -> the class that takes its settings."""
_DECIDING = ("seed_everything", "student", "teacher", "teachers", "generation", "data", "recipe")
"""Keys of a recipe file on which the results of stages depend."""
_SAID = {
    "seed_everything": "The random seed; each stage derives its own from it, from the iteration and from its name.",
    "data": "Where the examples come from that no stage writes.",
    "trainer": "The settings of Lightning's `Trainer`; how long a stage trains is said by the stage.",
}
"""What `fit --help` says in Lightning's words, or not at all: sections whose settings are options of their own."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a class."""

    name: str
    """As a recipe spells it."""
    type: Any
    """The annotation."""
    default: Any
    """The value that it has if it is not set; `REQUIRED` if it must be."""
    sentence: str
    """What the docstring says."""
    changes: str
    """When it may change after the stage that it belongs to has begun; empty for never."""


class _ParserOnly(MontessoriCLI):
    """The command line as it is parsed, and nothing built or run."""

    def instantiate_classes(self) -> None:
        return

    def fit(self) -> None:
        return


def top_level() -> list[Setting]:
    """The keys of a recipe file, with what `fit --help` says of them."""
    cli = _ParserOnly(
        args=["fit", "--config", "iter1.yaml"],
        parser_class=SentenceParser,
        seed_everything_default=42,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    found = []
    for action in cli._subcommand_parsers["fit"]._actions:
        name = action.dest
        if "." in name or name in ("help", "config", "print_config"):
            continue
        hint = dict if name in ("data", "trainer") else getattr(action, "_typehint", bool)
        default = REQUIRED if action.required or name == "data" else {} if name == "trainer" else action.default
        changes = "" if name in _DECIDING else "at any time"
        found.append(Setting(name, hint, default, _SAID.get(name) or action.help, changes))
    return found


def members(family: type) -> list[type]:
    """The classes of a family that ship with the program and can be built, by name."""
    found = {kind for kind in _subclasses(family) if _shipped(kind) and not inspect.isabstract(kind)}
    return sorted(found, key=lambda kind: kind.__name__)


def trainer_callbacks() -> list[type]:
    """The shipped classes that stand in `trainer.callbacks` and not in a stage."""
    named = [getattr(shipped_plugins, name) for name in shipped_plugins.__all__]
    return [kind for kind in named if issubclass(kind, Callback) and not issubclass(kind, SignalCallback)]


@cache
def groups() -> list[type]:
    """The classes of settings that stand inside a setting of another class, such as `Sampling`, by name."""
    found: set[type] = set()
    waiting = every_class(with_groups=False)
    while waiting:
        inside = {one for setting in settings(waiting.pop()) for one in classes_in(setting.type)}
        new = {one for one in inside if _is_group(one)} - found
        found |= new
        waiting += new
    return sorted(found, key=lambda kind: kind.__name__)


def every_class(with_groups: bool = True) -> list[type]:
    """All classes whose settings a recipe can hold."""
    plugins = [kind for family in FAMILIES.values() for kind in members(family)]
    return [*SECTIONS.values(), *plugins, *trainer_callbacks(), *(groups() if with_groups else [])]


def settings(kind: type) -> list[Setting]:
    """The settings of a class, in the order of its constructor.

    Raises:
        ValueError: the class takes arguments without a name, which no recipe could set.
    """
    sentences, found = _sentences(kind), []
    for name, parameter in inspect.signature(kind, eval_str=True).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"{kind.__name__} takes {parameter}: name each setting in its constructor")
        found.append(
            Setting(name, parameter.annotation, parameter.default, sentences.get(name, ""), _changes(kind, name))
        )
    return found


def classes_in(hint: Any) -> Iterator[type]:
    """The classes in a type hint, whatever they are nested in."""
    if isinstance(hint, list):  # the arguments of a Callable
        for inner in hint:
            yield from classes_in(inner)
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        for inner in typing.get_args(hint):
            yield from classes_in(inner)
    elif inspect.isclass(hint):
        yield hint


def about(kind: type) -> list[str]:
    """What the docstring says of the class as a whole, in paragraphs."""
    parsed = docstring_parser.parse(inspect.getdoc(kind) or "")
    return [part for part in (parsed.short_description, *(parsed.long_description or "").split("\n\n")) if part]


def _sentences(kind: type) -> dict[str, str]:
    """Name -> what the docstring says of it; a class may leave to its base what it inherits."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if _shipped(one):
            parsed = docstring_parser.parse_from_object(one)
            found |= {each.arg_name: " ".join((each.description or "").split()) for each in parsed.params}
    return found


def _changes(kind: type, name: str) -> str:
    """When the setting may change, from what the class says of it."""
    if name in getattr(kind, "adjustable", ()):
        return "until another stage has read the result"
    excluded: Iterable[str] = getattr(kind, "fingerprint_excludes", ())
    if name in excluded:
        return "at any time"
    if inner := [dotted.removeprefix(f"{name}.") for dotted in excluded if dotted.startswith(f"{name}.")]:
        return ", ".join(f"`{one}`" for one in inner) + " at any time"
    if name in getattr(kind, "for_training", ()):
        return "for stages that do not train this model"
    return ""


def _is_group(kind: type) -> bool:
    families = (*FAMILIES.values(), *SECTIONS.values())
    return _shipped(kind) and not issubclass(kind, (enum.Enum, *families))


def _shipped(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in SHIPPED


def _subclasses(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)
