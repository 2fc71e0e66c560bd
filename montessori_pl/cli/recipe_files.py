"""Recipe files before they are parsed: those that would never end, or grow beyond all memory, are refused."""

from collections.abc import Iterable
from pathlib import Path

import yaml

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
        values = _count(root, {}) if root is not None else 0
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


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values of a node with all that is below it. The YAML library makes one node of an alias and what it repeats."""
    if id(node) not in counted:
        counted[id(node)] = 1 + sum(_count(child, counted) for child in _children(node))
    return counted[id(node)]


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
