"""A module imports only from lower floors, so that each can be read with those below it alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ["records", "contents"],
    [
        *("chat", "influence", "pairing", "losses", "workspace", "locations", "readers", "optimization", "pinning"),
        *("distributions", "synthesis", "planning"),
    ],
    ["models", "data", "generation", "progress"],
    ["modules", "dpo", "student", "teacher", "signals", "evaluation", "pool", "routing"],
    ["stages"],
    ["recipe", "runner", "tracking"],
    ["planner", "preflight"],
    ["cli"],
]
"""From the ground up. `synthesis` stands low because it knows records only."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BESIDE = {
    "classroom": {"records", "chat", "synthesis"},
    "mistakes": set[str](),
    "commands": {"workspace"},
    "report": {"records", "workspace", "distributions", "commands", "planning"},
    "export": {"records", "workspace", "commands", "__version__"},
}
"""Rooms that stand beside the house, and all that they know of it."""
SIBLINGS = {
    ("influence", "chat"),
    ("influence", "readers"),
    ("locations", "classroom"),
    ("dpo", "modules"),
    ("generation", "classroom"),
    ("generation", "data"),
    ("generation", "models"),
    ("routing", "modules"),
    ("runner", "recipe"),
    ("runner", "tracking"),
    ("signals", "student"),
    ("student", "modules"),
    ("teacher", "dpo"),
}
"""Who knows a room of the same floor, or one beside the house."""

INSIDE_STAGES = [["plan"], ["base"], ["choosing", "training", "writing"]]
"""The floors within `stages`; above them stand the stages, which do not know each other."""


def room_of(module: str) -> str:
    """`montessori_pl.stages.base` -> `stages`; the package itself -> an empty name."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, wherever in the file, for types or lazily."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from montessori_pl import classroom` imports a room by its name.
            found = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "montessori_pl" else []
            found = found or [str(node.module)]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] in ("montessori_pl", "callbacks"))


FILES = sorted((ROOT / "montessori_pl").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "montessori_pl")))
def test_imports_come_from_lower_floors(path: Path) -> None:
    room = path.relative_to(ROOT / "montessori_pl").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        assert set(map(room_of, imports(path))) <= {"cli"}, "the doors of the house"
        return
    for module in imports(path):
        assert module.split(".")[0] == "montessori_pl" or room == "cli", "plugins enter by class_path"
        other = room_of(module)
        if other == room or room == "cli" or (room, other) in SIBLINGS:
            continue
        if room in BESIDE:
            assert other in BESIDE[room], f"{room} stands beside the house and does not know {other}"
        else:
            assert other in FLOOR, f"{room} imports {other}, which is on no floor"
            assert FLOOR[other] < FLOOR[room], f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(ROOT / "montessori_pl").parts[0].removesuffix(".py") for path in FILES}
    assert rooms - {"__init__", "__main__"} == FLOOR.keys() | BESIDE.keys()


def test_siblings_are_what_they_are_said_to_be() -> None:
    """A pair in the table that nobody needs any more is taken out."""
    found = {
        (path.relative_to(ROOT / "montessori_pl").parts[0].removesuffix(".py"), room_of(module))
        for path in FILES
        for module in imports(path)
    }
    assert found >= SIBLINGS
    assert not any(one[::-1] in SIBLINGS for one in SIBLINGS)


def test_stages_share_what_stands_below_them_and_do_not_know_each_other() -> None:
    stages = ROOT / "montessori_pl" / "stages"
    floor = {room: number for number, rooms in enumerate(INSIDE_STAGES) for room in rooms}
    for path in set(stages.rglob("*.py")) - {stages / "__init__.py"}:
        room = path.relative_to(stages).parts[0].removesuffix(".py")
        for module in imports(path):
            other = module.removeprefix("montessori_pl.stages.").split(".")[0]
            if room_of(module) == "stages" and not (other == room and room in floor):
                assert other in floor, f"{room} imports the stage {other}"
                assert floor[other] < floor.get(room, len(INSIDE_STAGES)), f"{room} imports {other}"


def test_plugins_know_the_house_and_not_its_upper_floors() -> None:
    """What ships in `callbacks/` could be a stranger's: it knows nothing of stages, recipes or the command line."""
    for path in (ROOT / "callbacks").glob("*.py"):
        for module in imports(path):
            if module.split(".")[0] == "montessori_pl":
                assert FLOOR[room_of(module)] <= FLOOR["signals"], f"{path.name} imports {module}"
