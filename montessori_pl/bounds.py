"""What a setting may be: bounds that stand in its annotation, and that hold in recipe files and in Python alike.

    class MyStage(Stage):
        def __init__(self, examples: Text, share: Annotated[float, Bounds(gt=0, le=1)] = 0.5) -> None: ...

A recipe is checked when it has been parsed (`parts`), and a class when it is built (`checked`, which holds for every
class below `Checked`). Numbers without bounds must be finite all the same, and integers must fit 64 bits: NaN compares
with nothing, so that a limit of NaN would switch itself off.
"""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

C = TypeVar("C", bound=type)
MAX_INT = 2**63 - 1
MAX_FLOAT = 3.4028234663852886e38
"""Of single precision, in which models compute: what is larger is infinite there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of a number."""

    gt: float = -math.inf
    """It must be greater."""
    ge: float = -math.inf
    """It must not be less."""
    lt: float = math.inf
    """It must be less."""
    le: float = math.inf
    """It must not be greater."""
    infinite: bool = False
    """Whether it may be infinite."""

    def allow(self, value: float) -> bool:
        """Whether the value lies within; NaN never does."""
        return (self.gt < value < self.lt and self.ge <= value <= self.le) or (self.infinite and value == math.inf)

    def __repr__(self) -> str:
        """As in `> 0 and <= 1`; `--help` shows it."""
        signs = {">": self.gt, ">=": self.ge, "<": self.lt, "<=": self.le}
        return " and ".join(f"{sign} {bound}" for sign, bound in signs.items() if math.isfinite(bound))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotEmpty:
    """Of a text, a list or a mapping: there is something in it, and a text is not blank."""

    distinct: bool = False
    """Whether nothing may stand in it twice."""

    def allow(self, value: Any) -> bool:
        """Whether the value is as it must be."""
        if self.distinct and any(one in value[:place] for place, one in enumerate(value)):
            return False
        return bool(value.strip() if isinstance(value, str) else value)

    def __repr__(self) -> str:
        return "not empty, none twice" if self.distinct else "not empty"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Of a value: it is one of these."""

    values: tuple[Any, ...]

    def allow(self, value: Any) -> bool:
        """Whether the value is as it must be."""
        return value in self.values

    def __repr__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


_CONSTRAINTS = (Bounds, NotEmpty, OneOf)
_PLAIN = (types.NoneType, bool, int, float, str, list, tuple, Mapping)

PositiveInt = Annotated[int, Bounds(ge=1)]
Count = Annotated[int, Bounds(ge=1, le=1_000_000)]
"""Of what is held in memory at once."""
NonNegativeInt = Annotated[int, Bounds(ge=0)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
Share = Annotated[float, Bounds(ge=0, le=1)]
"""A part of something: nothing to all of it."""
PositiveShare = Annotated[float, Bounds(gt=0, le=1)]
Text = Annotated[str, NotEmpty()]
Texts = Annotated[list[Text], NotEmpty(distinct=True)]
"""Names, of which none stands there twice."""


class Part(NamedTuple):
    """A value that stands somewhere in the settings."""

    key: str
    """With dots for nested ones."""
    hint: Any
    """Its type, with its bounds; of the settings of a class, that class."""
    value: Any
    """An object of Python, or settings as they were parsed, in which a class is a mapping with its `class_path`."""

    def problem(self) -> str | None:
        """What is wrong with the value itself, a clause; not what is wrong inside it."""
        value, constraints = self.value, [one for one in _unwrapped(self.hint)[1:] if isinstance(one, _CONSTRAINTS)]
        if not _accepts(self.hint, value) or not all(one.allow(value) for one in constraints):
            finite = "finite " if isinstance(value, float) and not math.isfinite(value) else ""
            return f"expected {finite}{_described(self.hint)}, found {'null' if value is None else repr(value)}"
        if isinstance(value, int) and abs(value) > MAX_INT:
            return f"expected an integer of at most 64 bits, found {value}"
        allowed = any(isinstance(one, Bounds) and one.infinite for one in constraints)
        if isinstance(value, float) and not (abs(value) <= MAX_FLOAT or allowed):  # NaN is neither
            return f"expected a finite number of at most {MAX_FLOAT:.2g}, found {value!r}"
        return None


def parts(hint: Any, value: Any, key: str = "") -> Iterator[Part]:
    """A value of this type, and all values inside it; a class of others has its own ways, and is not looked into.

    Args:
        hint: the type, with its bounds.
        value: as in `Part`.
        key: of the value.
    """
    hint = _member(hint, value)
    base = _unwrapped(hint)[0]
    if isinstance(value, Mapping):
        lead = f"{key}." if key else ""
        class_path, settings = value.get("class_path"), value
        if isinstance(class_path, str):
            hint, settings = import_class(class_path), value.get("init_args") or {}
        if is_checked(hint):
            hints = settings_of(hint)
        elif isinstance(class_path, str):
            return
        else:
            hints = dict.fromkeys(settings, get_args(base)[1] if get_origin(base) in (dict, Mapping) else Any)
        yield Part(key, hint, value)
        for name, one in settings.items():
            if name in hints:
                yield from parts(hints[name], one, f"{lead}{name}")
    else:
        yield Part(key, hint, value)
        if isinstance(value, list | tuple):
            inner = get_args(base) or (Any,)
            each = inner if get_origin(base) is tuple and inner[-1] is not ... else inner[:1] * len(value)
            for place, (hint_of_one, one) in enumerate(zip(each, value, strict=False)):
                yield from parts(hint_of_one, one, f"{key}[{place}]")


def import_class(class_path: str) -> type:
    """The class that a `class_path` names, as it stands after parsing: with its module."""
    module, _, name = class_path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def checked(kind: C) -> C:
    """Let a class check its settings when it is built, before its own constructor sees them.

    Raises:
        ValueError: by the constructor, if a setting is out of its bounds.
    """
    build = kind.__dict__["__init__"]
    signature = inspect.signature(build)

    @functools.wraps(build)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        hints = _hints(build)
        try:
            arguments = signature.bind(self, *args, **kwargs).arguments
        except TypeError:  # the constructor itself says it better
            arguments = {}
        for name, value in arguments.items():
            hint: Any = hints.get(name, Any)
            if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                hint = list[hint]  # the annotation is that of each
            elif signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                hint = dict[str, hint]
            for part in parts(hint, value, f"{kind.__name__}.{name}"):
                if problem := part.problem():
                    raise ValueError(f"{part.key}: {problem}")
        build(self, *args, **kwargs)

    checking.is_checked = True  # type: ignore[attr-defined]
    kind.__init__ = checking  # type: ignore[misc]
    return kind


class Checked:
    """Base of classes that plug-ins extend: the settings of every class below it are checked when it is built."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            checked(cls)


def is_checked(kind: Any) -> bool:
    """Whether this is a class that checks its settings itself."""
    return inspect.isclass(kind) and hasattr(kind.__init__, "is_checked")


def settings_of(kind: type) -> dict[str, Any]:
    """The settings of a class, by name, and their types with their bounds."""
    return _hints(inspect.unwrap(kind.__init__))  # type: ignore[misc]


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a plug-in imports some names for its type checker alone
        return {}


def _unwrapped(hint: Any) -> tuple[Any, ...]:
    """A type without its bounds, and these."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union
    return get_args(hint) if is_union else (hint,)


def _member(hint: Any, value: Any) -> Any:
    """The member of a union that a value belongs to, or the union where it belongs to none."""
    return next((one for one in _members(hint) if _accepts(one, value)), hint)


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a value is of this type; an object that is no plain value is left to type checkers."""
    base = _unwrapped(hint)[0]
    origin, inner = get_origin(base), get_args(base)
    if len(_members(base)) > 1:
        return any(_accepts(one, value) for one in inner)
    if base is Any or not isinstance(value, _PLAIN):
        return True
    if origin is Literal:
        return value in inner
    if base in (int, float):
        return isinstance(value, int | base) and not isinstance(value, bool)
    if base in (str, bool, types.NoneType):
        return isinstance(value, base)
    if origin is tuple and inner[-1] is not ...:
        return isinstance(value, list | tuple) and len(value) == len(inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    if base is Path or origin is Callable:  # or where to import it from
        return isinstance(value, str | Mapping)
    return isinstance(value, Mapping)


def _described(hint: Any) -> str:
    """A type with its bounds, in a few words."""
    base, *constraints = _unwrapped(hint)
    origin, inner = get_origin(base), get_args(base)
    if len(_members(base)) > 1:
        return " or ".join(map(_described, inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is not ...:
        return f"list of {len(inner)}"
    known: dict[Any, str] = {types.NoneType: "null", tuple: "list"}
    name = known.get(origin or base) or str(getattr(origin or base, "__name__", base))
    return name + "".join(f" {one}" if isinstance(one, Bounds) else f", {one}" for one in constraints)
