"""Layers: a module imports from packages below its own only, so that each can be read with those alone.

A package is a folder of `montessori_pl`, or a module that lies beside them.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "montessori_pl"
LAYERS = [
    {"bounds", "data", "losses", "processes", "renames", "stats"},
    {"advantages", "config_errors", "influence", "optim", "pairing", "run_directory"},
    {"synthesis"},
    {"classroom", "report"},
    {"worlds"},
    {"batches", "models"},
    {"export", "generation", "routing"},
    {"estimates"},
    {"drafts", "evaluation", "signals"},
    {"stages"},
    {"pipeline"},
    {"cli"},
]
"""From the ground up. `callbacks`, the plugins that ship with us, stand on `signals` as a stranger's would."""
INSIDE_STAGES = [{"base"}, {"generating", "scoring", "selection", "training"}]
"""The layers within `stages`; above them stand the stages, which do not know each other."""
MAX_MODULES_AT_THE_ROOT = 8
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """`montessori_pl/stages/base.py` -> `stages`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, wherever in the file, for types or lazily."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from montessori_pl import classroom` imports a package by its name.
            found = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "montessori_pl" else []
            found = found or [str(node.module)]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] in ("montessori_pl", "callbacks"))


def packages_known_to(path: Path) -> set[str]:
    """The packages from which a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("montessori_pl.")} - {"__version__"}


def layer_of(package: str) -> int:
    """The number of a package's layer."""
    return next(number for number, layer in enumerate(LAYERS) if package in layer)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_layers(path: Path) -> None:
    own = package_of(path)
    if own in ("__init__", "__main__"):
        assert packages_known_to(path) <= {"cli", "processes"}, "the doors of the house"
        return
    assert own == "cli" or all(name.startswith("montessori_pl") for name in imports(path)), "plugins have a class_path"
    for other in packages_known_to(path) - {own}:
        assert layer_of(other) < layer_of(own), f"{own} (layer {layer_of(own)}) imports {other} ({layer_of(other)})"


def test_every_package_has_the_lowest_layer_that_it_can_have() -> None:
    known: dict[str, set[str]] = {}
    for path in FILES:
        known.setdefault(package_of(path), set()).update(packages_known_to(path) - {package_of(path)})
    order = TopologicalSorter({name: others for name, others in known.items() if not name.startswith("__")})
    lowest: dict[str, int] = {}
    for name in order.static_order():
        lowest[name] = 1 + max((lowest[other] for other in known[name]), default=-1)
    assert lowest == {name: number for number, layer in enumerate(LAYERS) for name in layer}


def test_no_circle_of_modules() -> None:
    """Within a package, too: lazy imports and those for types count."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {other for other in imports(path) if other in modules and other != name}
    # `__init__` of the classroom imports its builders when there is something to build.
    graph["montessori_pl.classroom"] = set()
    TopologicalSorter(graph).prepare()


def test_few_modules_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_MODULES_AT_THE_ROOT


def test_stages_share_what_stands_below_them_and_do_not_know_each_other() -> None:
    stages = PACKAGE / "stages"
    layer = {name: number for number, names in enumerate(INSIDE_STAGES) for name in names}
    for path in set(stages.rglob("*.py")) - {stages / "__init__.py"}:
        own = path.relative_to(stages).parts[0].removesuffix(".py")
        for module in imports(path):
            if not module.startswith("montessori_pl.stages."):
                continue
            other = module.split(".")[2]
            if other != own or own not in layer:
                assert other in layer, f"{own} imports the stage {other}"
                assert layer[other] < layer.get(own, len(INSIDE_STAGES)), f"{own} imports {other}"


def test_plugins_know_the_house_and_not_its_upper_layers() -> None:
    """What ships in `callbacks/` could be a stranger's: it knows nothing of stages, recipes or the command line."""
    for path in (ROOT / "callbacks").glob("*.py"):
        for other in packages_known_to(path):
            assert layer_of(other) <= layer_of("signals"), f"{path.name} imports {other}"
