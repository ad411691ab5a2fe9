"""Imports point one way: the table of docs/architecture.md, read from the code."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "composefsd"

VOCABULARY = {"errors", "digests", "verity", "document"}
LEANS_ON = {
    "errors": set(),
    "document": {"errors", "digests"},
    "digests": {"errors"},
    "verity": {"errors", "digests"},
    "compiled": set(),
    "tree": VOCABULARY,
    "splitstream": VOCABULARY,
    "workers": VOCABULARY | {"linux"},
    "erofs": VOCABULARY | {"tree"},
    "boot": VOCABULARY | {"tree", "compiled"},
    "linux": VOCABULARY | {"tree"},
    "repository": VOCABULARY | {"splitstream", "erofs", "linux"},
    "oci": VOCABULARY | {"tree", "splitstream", "workers", "repository", "erofs"},
    "deploy": VOCABULARY | {"boot", "linux"},
    "operations": VOCABULARY
    | {"tree", "splitstream", "workers", "erofs", "boot", "linux", "repository", "oci", "deploy"},
    "service": VOCABULARY | {"operations", "oci", "deploy", "erofs", "tree", "boot", "workers"},
    "client": VOCABULARY | {"operations", "service", "erofs", "tree"},
}
"""What each room leans on; every room may lean on itself."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module == "composefsd":
            names = [f"composefsd.{alias.name}" for alias in node.names if alias.name.islower()]
        rooms |= {name.split(".")[1] for name in names if name.startswith("composefsd.")}
    return rooms


@pytest.mark.parametrize("room", sorted(LEANS_ON))
def test_a_room_leans_only_on_those_below_it(room: str) -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if room_of(path) == room]
    leaning = set().union(*map(imported_rooms, paths)) if paths else set()
    assert leaning - {room} <= LEANS_ON[room]


def test_every_module_belongs_to_a_room_of_the_table() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} <= {*LEANS_ON, "__init__"}


def test_the_table_has_no_cycle() -> None:
    settled: set[str] = set()
    while settled != set(LEANS_ON):
        ready = {room for room, below in LEANS_ON.items() if below <= settled} - settled
        assert ready, f"a cycle among {set(LEANS_ON) - settled}"
        settled |= ready
