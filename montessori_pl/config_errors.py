"""Mistakes in the configuration, each in one sentence: what is wrong, what was found, what exists.

jsonargparse answers a misspelt key with its whole usage, and reports what is wrong in nested lines:

    Parser key "recipe":
      Problem with given class_path 'montessori_pl.stages.TrainStudent':
        Option 'exmples' is not accepted

becomes `recipe.warmup: TrainStudent has no setting 'exmples'; did you mean 'examples'? ...`. What this module does not
recognise is passed on in jsonargparse's own words.
"""

import ast
import difflib
import inspect
import re
import types
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from montessori_pl.renames import CLASSES, NOTES, SETTINGS

MAX_LISTED = 24
"""So many names are listed; of more, only those that resemble the misspelt one."""


class ConfigError(ValueError):
    """What is wrong with the configuration, in a sentence for the user."""


class SentenceParser(LightningArgumentParser):
    """A parser that raises its mistakes instead of printing its usage and leaving.

    Raises:
        ConfigError: by every method that parses.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say it in one sentence; parsers inside this one let jsonargparse collect their messages."""
        if not self.exit_on_error:
            super().error(message, ex)
        inner = getattr(ex, "subcommand_parser", None)
        commands = self._subcommands_action.choices.values() if self._subcommands_action is not None else [self]
        actions = [action for parser in ([inner] if inner else commands) for action in parser._actions]
        names = [action.dest for action in actions if action.dest != SUPPRESS]  # it stands for what is no setting
        raise ConfigError(sentence(message, names)) from ex


def sentence(message: str, names: Iterable[str] = ()) -> str:
    """jsonargparse's message as one sentence.

    Args:
        message: what jsonargparse says.
        names: the keys that exist at the top, with dots for nested ones.
    """
    place, owner, leaf = _walk(message)
    for pattern, say in _FORMS:
        if match := re.fullmatch(pattern, leaf, re.DOTALL):
            said = say(match, place, owner, list(names))
            return f"{place}: {said}" if place else said
    leaf = " ".join(leaf.split())
    return f"{place}: {leaf}" if place else leaf


def name_overridden(error: ConfigError, recipe: Mapping[str, Any], arguments: Sequence[str]) -> ConfigError:
    """Name the stage whose setting is wrong on the command line, as in `--recipe.STAGE.SETTING VALUE`."""
    overridden = dict.fromkeys(match[1] for one in arguments if (match := re.match(r"--recipe\.([^.=]+)", one)))
    if unknown := [name for name in overridden if name not in recipe]:
        return ConfigError(f"the recipe has no stage {unknown[0]!r}{_what_exists(unknown[0], recipe)}")
    if len(overridden) == 1:
        return ConfigError(str(error).replace("recipe", f"recipe.{next(iter(overridden))}", 1))
    return error


def read_recipe(arguments: Sequence[str]) -> dict[str, Any]:
    """The stages in the recipe files of a command line, as they are written; later files add to earlier ones.

    Raises:
        ConfigError: a file is not YAML.
    """
    recipe: dict[str, Any] = {}
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        path = Path(value if equals else arguments[index + 1] if index + 1 < len(arguments) else "")
        if option not in ("--config", "-c") or not path.is_file():
            continue
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
            raise ConfigError(f"{path} is not YAML: {error.problem}{where}") from error
        stages = content.get("recipe") if isinstance(content, dict) else None
        recipe |= stages if isinstance(stages, dict) else {}
    return recipe


def _walk(message: str) -> tuple[str, type | None, str]:
    """The dotted key of a message, the class whose setting it is, and what is wrong with it."""
    place: list[str] = []
    owner: type | None = None
    lines = [line.strip() for line in message.strip().splitlines()]
    for number, line in enumerate(lines):
        line = re.sub(r"^- ", "", line)
        line = re.sub(r"^Type collections\.abc\.Callable.* expects a function or a callable class: ", "", line)
        if match := re.fullmatch(r'Parser key "(.+)":', line):
            place.append(match[1])
        elif match := re.fullmatch(r"Problem with given class_path '(.+)':", line):
            owner = _import(match[1]) or owner
        elif leaf := _no_member(lines[number:]):
            return ".".join(place), owner, leaf
        elif line.startswith(("Does not validate against any of the Union", "Subtypes:", "Errors:", "Given value")):
            continue
        elif lines[number].startswith("- Expected a") and any(one.startswith("- Problem") for one in lines[number:]):
            continue  # the member of the union that was meant says more
        else:
            leaf = " ".join([line, *lines[number + 1 :]])
            if " Given value type:" in leaf:  # the other members of a union
                leaf = leaf.partition(" - ")[0]
            found = re.search(r"class_path='([\w.]+)'", leaf)
            if owner is None and found:
                owner = _import(found[1])
            return ".".join(place), owner, leaf.partition(" Got value: Namespace(")[0].rstrip(".")
    return ".".join(place), owner, " ".join(lines)


def _no_member(lines: Sequence[str]) -> str | None:
    """What jsonargparse says on many lines of a value that is of none of several plain types, as if of one type.

        Does not validate against any of the Union subtypes
        Errors:
          - Expected a <class 'float'>
          - Expected a <class 'NoneType'>
        Given value: many

    becomes `Expected a float or null. Got value: many`; of other lines, nothing.
    """
    end = next((number for number, line in enumerate(lines) if line.startswith("Given value:")), None)
    if end is None or not lines[0].startswith("Does not validate against any of the Union"):
        return None
    members = [line for line in lines[:end] if line.startswith("- ") and not re.match("- a (class path|dict)", line)]
    pattern = r"- (?:Expected an?|Not a valid subclass of) (.+?)(\. Got value:.*)?"
    wanted = [match[1] for one in members if (match := re.fullmatch(pattern, one))]
    if len(wanted) < len(members):
        return None
    value = lines[end].removeprefix("Given value:").partition(". Got value: Namespace(")[0]  # what it stands in
    return f"Expected a {' or '.join(map(_plain_type, wanted))}. Got value:{value}"


def _plain_type(name: str) -> str:
    """A type as a recipe calls it: `<class 'NoneType'>` -> `null`."""
    if literal := re.fullmatch(r"(?:typing\.)?Literal(\[.*\])", name):
        return f"one of {', '.join(map(str, ast.literal_eval(literal[1])))}"
    name = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", name)
    return "null" if name == "NoneType" else name


def _no_setting(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    key, group = match["key"], match.groupdict().get("group") or ""
    if owner is None:
        section, last, known = _in_section(key, names)
        if renamed := _renamed(last, known):
            return f"{section or 'the recipe file'} has no key {last!r} any more; {renamed}"
        return f"{section or 'the recipe file'} has no key {last!r}{_what_exists(last, known)}"
    kind = owner
    for part in group.split(".") if group else []:
        kind = next(classes_in(_parameters(kind).get(part)), kind)
    where = f"{owner.__name__}.{group}" if group else owner.__name__
    if renamed := _renamed(key, _parameters(kind)):
        return f"{where} has no setting {key!r} any more; {renamed}"
    return f"{where} has no setting {key!r}{_what_exists(key, _parameters(kind))}"


def _missing(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    keys = [key.removeprefix("fit.") for key in match["keys"].split(", ")]
    verb = "is" if len(keys) == 1 else "are"
    if owner is not None:
        return f"{owner.__name__} needs {', '.join(keys)}, which {verb} not set"
    how = "give it in a recipe file (--config FILE), or as the option"
    if len(keys) > 1:
        how = "give them in a recipe file (--config FILE), or as options such as"
    return f"{', '.join(keys)} {verb} not set; {how} --{keys[0]} VALUE"


def _wrong_type(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    return f"expected {_plain_type(match['type'])}, found {match['value'] or repr('')}"


def _no_class(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    key = place.rpartition(".")[2]
    family = next(classes_in(_parameters(owner).get(key)), None) if owner is not None else None
    if is_dataclass(family):
        return f"expected {family.__name__}, a mapping of its settings, found {match['name'] or repr('')}"
    known = [kind.__name__ for kind in subclasses(family)] if family is not None else names
    if (new := CLASSES.get(match["name"].rpartition(".")[2])) is not None:
        return f"there is no class {match['name']!r} any more; it is called {new!r}"
    return (
        f"there is no class {match['name']!r}{_what_exists(match['name'], known)}; a class of your own is given by its "
        "import path, MODULE.CLASS"
    )


def _abstract(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    kind = _import(match["name"])
    lacks = ", ".join(sorted(getattr(kind, "__abstractmethods__", ())))
    if match["name"].startswith("montessori_pl."):
        return f"class_path names no class that can be built: {match['name']} is what others are made of"
    return f"{match['name']} cannot be built: it lacks {lacks}"


def _not_importable(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    return (
        f"there is no module {match['name']!r} to import a class from, or for a plugin that imports it; a file NAME.py "
        "in the working directory is imported as NAME"
    )


def _no_attribute(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    known = [name for name, _ in inspect.getmembers(import_module(match["module"]), inspect.isclass)]
    if (new := CLASSES.get(match["name"])) in known:
        return f"module {match['module']} has no class {match['name']!r} any more; it is called {new!r}"
    return f"module {match['module']} has no class {match['name']!r}{_what_exists(match['name'], known)}"


def _unrecognised(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    option = match["option"]
    key = option.lstrip("-").partition("=")[0]
    if not option.startswith("-"):
        return f"unexpected argument {option!r}; options are written --key VALUE"
    section, last, known = _in_section(key, names)
    if renamed := _renamed(last, known):
        return f"unknown option --{key}; {renamed}"
    return f"unknown option --{key}{_what_exists(last, known, lead=f'--{section}.' if section else '--')}"


def _no_command(match: re.Match[str], place: str, owner: type | None, names: Sequence[str]) -> str:
    found = f", found {match['found']!r}" if match.groupdict().get("found") else ""
    return (
        f"the command is fit, init, compare, report, export or verify{found}; for example: python -m montessori_pl fit "
        "--config iter1.yaml"
    )


_Form = Callable[[re.Match[str], str, type | None, Sequence[str]], str]
_FORMS: tuple[tuple[str, _Form], ...] = (
    (r"Subcommand 'fit' does not accept option '(?P<key>.+?)'.*", _no_setting),
    (r"Group '(?P<group>.+?)' does not accept option '(?P<key>.+?)'.*", _no_setting),
    (r"Option '(?P<key>.+?)' is not accepted.*", _no_setting),
    (r"the following arguments are required: (?P<keys>.+)", _missing),
    (
        r"(?:Expected an?|Not a valid subclass of) (?P<type>.+?)\. Got value: ?(?P<value>.*?)(?: Subclass types .*)?",
        _wrong_type,
    ),
    (r"Expected an (?P<type>import path) or a subclass spec, but got (?P<value>.*)", _wrong_type),
    (r"Dict must include a (?P<type>class_path) and optionally init_args, but got (?P<value>.*)", _wrong_type),
    (r"Expected a dot import path string: ?(?P<name>.*)", _no_class),
    (r"Expected an instantiatable class, but (?P<name>.*) is abstract.*", _abstract),
    (r"No module named '(?P<name>.*)'", _not_importable),
    (r"module '(?P<module>.*)' has no attribute '(?P<name>.*)'", _no_attribute),
    (r"expected \"subcommand\" to be one of .*", _no_command),
    (r"argument subcommand: invalid choice: '(?P<found>.*)' \(.*", _no_command),
    (r"unrecognized arguments: (?P<option>\S+).*", _unrecognised),
)


def _renamed(name: str, known: Iterable[str]) -> str:
    """What a setting is called now, a clause; empty where it had no other name, or the new one is not known here."""
    new = SETTINGS.get(name)
    if new is None or new not in known:
        return ""
    note = f"; {NOTES[name]}" if name in NOTES else ""
    return f"it is called {new!r}{note}"


def _in_section(key: str, names: Sequence[str]) -> tuple[str, str, list[str]]:
    """A dotted key as its section and its last part, with what else the section holds; of no section, its own name."""
    section, _, last = key.rpartition(".")
    while section and not any(name == section or name.startswith(f"{section}.") for name in names):
        section, _, last = section.rpartition(".")
    start = f"{section}." if section else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    return section, last, [name for name in inside if "." not in name]


def _what_exists(name: str, known: Iterable[str], lead: str = "") -> str:
    names = [one for one in dict.fromkeys(known) if one not in ("help", "config", "print_config")]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    guess = f"; did you mean {lead + close[0]!r}?" if close else ""
    if names and len(names) <= MAX_LISTED:
        return f"{guess or ';'} there {'are' if len(names) > 1 else 'is'}: {', '.join(lead + one for one in names)}"
    return guess or "; `python -m montessori_pl fit --help` lists what exists"


def _import(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if inspect.isclass(found) else None


def _parameters(kind: type) -> dict[str, Any]:
    """The settings of a class and their types."""
    signature = inspect.signature(kind, eval_str=True)
    return {name: parameter.annotation for name, parameter in signature.parameters.items()}


def classes_in(hint: Any) -> Iterator[type]:
    """The classes in a type hint, whatever they are nested in."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        for inner in typing.get_args(hint):
            yield from classes_in(inner)
    elif inspect.isclass(hint) and hint is not types.NoneType:
        yield hint


def subclasses(kind: type) -> Iterator[type]:
    """The classes below this one that can be built."""
    one: type
    for one in kind.__subclasses__():
        if not inspect.isabstract(one):
            yield one
        yield from subclasses(one)
