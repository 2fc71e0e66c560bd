"""Settings as they were parsed: whether they lie within their bounds, and whether an object can be built of each group.

Both say the whole key of what is wrong, `recipe.warmup.training.lr`.
"""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from montessori_pl.bounds import is_checked, parts
from montessori_pl.config_errors import ConfigError, classes_in, sentence, subclasses

STAGE_KEYS = {"class_path", "init_args", "dict_kwargs"}
"""What the settings of an object are made of."""


def check_bounds(settings: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse what is out of its bounds, wherever it stands.

    Args:
        settings: what was parsed, by the keys at the top of a recipe file.
        types: what these keys hold, with bounds.

    Raises:
        ConfigError: of the first such value, with its key.
    """
    for section, hint in types.items():
        for part in parts(hint, settings.get(section), section):
            if problem := part.problem():
                raise ConfigError(f"{part.key}: {problem}")


def build(hint: Any, settings: Any, key: str) -> Any:
    """The object that settings mean, alone, without the rest of the recipe.

    Args:
        hint: its type.
        settings: as they are written, or as they were parsed.
        key: where they stand.

    Raises:
        ConfigError: it cannot be built; the sentence begins with the key of what is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=hint)
    known = [kind.__name__ for one in classes_in(hint) for kind in subclasses(one)]
    try:
        parsed = parser.parse_object({"part": settings})
    except ArgumentError as problem:
        raise ConfigError(key + sentence(str(problem), known).removeprefix("part")) from problem
    check_bounds({key: parsed.as_dict()["part"]}, {key: hint})
    try:
        return parser.instantiate(parsed)["part"]
    except ValueError as problem:
        # Of a setting that may be null, jsonargparse says on many lines that null would have been possible.
        said = str(problem) if "\n" not in str(problem) else sentence(str(problem), known)
        raise ConfigError(f"{key}: {said}") from problem
    except Exception as problem:  # of a plugin
        raise ConfigError(f"{key} cannot be built: {type(problem).__name__}: {problem}") from problem


def find_in_stages(recipe: Mapping[str, Any], stage_type: type) -> ConfigError | None:
    """The first mistake in a stage, with its name, which jsonargparse does not say; none if each can be built.

    Args:
        recipe: the recipe as it was written, stage by stage.
        stage_type: what a stage must be.
    """
    for name, settings in recipe.items():
        if isinstance(settings, Mapping) and (beside := settings.keys() - STAGE_KEYS) and "class_path" in settings:
            return ConfigError(
                f"recipe.{name} has {', '.join(map(repr, sorted(beside)))} beside class_path; the settings of a stage "
                "stand under init_args"
            )
        try:
            build(stage_type, settings, f"recipe.{name}")
        except ConfigError as problem:
            return problem
    return None


def find_not_built(settings: Mapping[str, Any], types: Mapping[str, Any]) -> ConfigError | None:
    """The innermost settings of which no object can be built, because they contradict each other; none if all can.

    Args:
        settings: as for `check_bounds`.
        types: as for `check_bounds`.
    """
    for section, hint in types.items():
        for part in reversed(list(parts(hint, settings.get(section), section))):  # what stands inside comes first
            if not is_checked(part.hint) or not isinstance(part.value, Mapping):
                continue
            try:
                build(part.hint, part.value, part.key)
            except ConfigError as problem:
                return problem
    return None
