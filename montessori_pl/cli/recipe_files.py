"""Recipe files before they are parsed: where they lie, and those refused that would never end or fill all memory."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from montessori_pl.cli.common import path_argument
from montessori_pl.config_errors import ConfigError
from montessori_pl.data.text_files import check_regular

LARGEST_FILE = 2**20
"""Bytes of a recipe file at most."""
MAX_VALUES = 100_000
"""Values of a recipe file at most, each counted wherever an alias (`*name`) repeats it."""


def check_recipe_file(path: Path) -> None:
    """Let a file be parsed that stays as small as it looks; what is no YAML the parser may say.

    Raises:
        ConfigError: it does not.
    """
    try:
        check_regular(path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path} has {len(content):,} bytes, and a recipe file at most {LARGEST_FILE:,}")
    try:
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            found = "is empty" if root is None else "is no mapping"
            raise ConfigError(f"{path} {found}; a recipe file has sections such as `student:` and `recipe:`")
        values = _count(root, {})
        _refuse_twice(root, path, set())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be read, or an alias in it stands within itself") from None
    except yaml.YAMLError:
        return
    if values > MAX_VALUES:
        raise ConfigError(
            f"{path} holds {values:,} values with those that its aliases (*name) repeat, and a recipe file at most "
            f"{MAX_VALUES:,}"
        )


def shipped_configs() -> Path:
    """Where the recipe files lie that ship with the program: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def find_configs(arguments: list[str]) -> list[str]:
    """Replace `--config NAME` by the path of the shipped recipe where the working directory has no such file.

    Raises:
        ValueError: there is no such file in either place.
    """
    found = list(arguments)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        at = index if equals else index + 1
        if not equals and at < len(arguments):
            value = arguments[at]
        if not value:
            continue
        path = path_argument(value)
        if path.exists():
            check_recipe_file(path)
            found[at] = f"{option}={path}" if equals else str(path)
            continue
        shipped = shipped_configs() / value
        if not shipped.is_file():
            names = ", ".join(sorted(path.name for path in shipped_configs().glob("*.yaml")))
            raise ValueError(f"no recipe file {value!r} in the working directory; those that ship with us are: {names}")
        found[at] = f"{option}={shipped}" if equals else str(shipped)
    return found


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values of a node with all that is below it. The YAML library makes one node of an alias and what it repeats."""
    if id(node) not in counted:
        counted[id(node)] = 1 + sum(_count(child, counted) for child in _children(node))
    return counted[id(node)]


def _refuse_twice(node: yaml.Node, path: Path, seen: set[int]) -> None:
    """Refuse a key that stands twice in a mapping, of which YAML's parser would take the last without a word."""
    if id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # which merges as many mappings as there are
            continue
        line = key.start_mark.line + 1
        if (first := lines.get(key.value)) is not None:
            where = f"lines {first} and {line}" if first != line else f"line {line}"
            raise ConfigError(f"{path} has the key {key.value!r} twice, in {where}; rename one of them")
        lines[key.value] = line
    for child in _children(node):
        _refuse_twice(child, path, seen)


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
