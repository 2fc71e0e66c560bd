"""The package `callbacks`: the plugins that ship with us, and beside them what you keep under the same name.

The name is a common one. A folder `callbacks/` or a file `callbacks.py` in the working directory comes before ours on
the import path, and Python would import it in place of ours. Here both are one package:

    callbacks.JudgeSignal       a class of ours
    callbacks.MySignal          a class of your `callbacks/__init__.py` or `callbacks.py`
    callbacks.mine.MySignal     a class of your `callbacks/mine.py`

Your module runs when one of its names is needed, and not before: it may belong to another program.
"""

import re
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from itertools import takewhile
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

NAME = "callbacks"
HOME = Path(__file__).resolve().parents[2]
"""The directory that holds our `callbacks/`, in a checkout and where a wheel is installed."""


def load_shipped_plugins() -> None:
    """Import our `callbacks`, and add to it what the import path holds under this name before ours."""
    if isinstance(sys.modules.get(NAME), SharedPackage):
        return
    before_ours = list(takewhile(lambda entry: Path(entry).resolve() != HOME, sys.path))
    yours = PathFinder.find_spec(NAME, before_ours)
    ours = _import_ours()
    if yours is not None:
        sys.modules[NAME] = SharedPackage(ours, yours)


def _import_ours() -> ModuleType:
    loaded = sys.modules.get(NAME)
    if loaded is None or Path(loaded.__file__ or "").resolve().parent != HOME / NAME:
        sys.modules.pop(NAME, None)
        everything = sys.path[:]
        sys.path[:] = [str(HOME), *everything]
        try:
            loaded = import_module(NAME)
        finally:
            sys.path[:] = everything
    return loaded


class SharedPackage(ModuleType):
    """Our `callbacks` and the user's under one name.

    Args:
        ours: the package that ships with us.
        yours: where the user's package or module lies.
    """

    def __init__(self, ours: ModuleType, yours: ModuleSpec) -> None:
        super().__init__(NAME, ours.__doc__)
        folders = yours.submodule_search_locations or []
        self.__file__, self.__spec__, self.__all__ = ours.__file__, ours.__spec__, ours.__all__
        self.__path__ = [*ours.__path__, *folders]
        self._ours, self._spec = ours, yours
        self._yours: ModuleType | None = None
        self._same_modules = {one.name for one in iter_modules(ours.__path__)} & {
            one.name for one in iter_modules(folders)
        }

    def __getattr__(self, name: str) -> Any:
        """A name of ours or of the user's. Python asks for it here once it has not found a module of this name."""
        ours = vars(self._ours).get(name)
        if name.startswith("__") or (ours is not None and not self._may_be_yours(name)):
            found = ours
        else:
            yours = vars(self._run_yours()).get(name)
            if ours is not None and yours is not None and ours is not yours:
                raise AttributeError(
                    f"{NAME}.{name} is a class that ships with us and also one in {self._spec.origin}; write "
                    f"{ours.__module__}.{name} for ours, or rename yours"
                )
            found = ours if yours is None else yours
        if found is None:
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        return found

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *vars(self._ours), *vars(self._run_yours())})

    def _may_be_yours(self, name: str) -> bool:
        """Whether the text of the user's module has this name of ours in it."""
        if name not in self.__all__ or not self._spec.has_location:
            return False
        text = Path(str(self._spec.origin)).read_text(encoding="utf-8")
        return re.search(rf"\b{name}\b|\bimport \*", text) is not None

    def _run_yours(self) -> ModuleType:
        """The user's module; while it runs, what it has defined so far.

        Raises:
            ImportError: one of its modules has the name of one of ours, which Python would import in its place.
        """
        if self._yours is not None:
            return self._yours
        if self._same_modules:
            raise ImportError(
                f"{NAME}.{min(self._same_modules)} is a module that ships with us and also one in "
                f"{self.__path__[-1]}; rename yours"
            )
        self._yours = module_from_spec(self._spec)
        if self._spec.loader is not None:  # a folder without `__init__.py` has none
            try:
                self._spec.loader.exec_module(self._yours)
            except BaseException:
                self._yours = None
                raise
        return self._yours
