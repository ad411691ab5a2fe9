"""The compiled walk and its twin in Python: the same answers, and the same refusal of what leads out of a column."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import accumulate, chain
from random import Random
from typing import Any

import pytest

from composefsd.compiled import FRAME, Stop, _labels, descend, labels
from composefsd.compiled.labels import Column

Walk = Callable[..., tuple[int, int, int, int]]
TWINS = pytest.mark.parametrize("walk", [_labels.descend, labels.descend], ids=["C", "Python"])

DIRECTORY, FILE = 0, 1


@dataclass
class Columns:
    """A tree of `/a`, `/b/` and `/b/c`, and a table in which every byte leads from state 0 to itself."""

    stack: Column = field(default_factory=lambda: array("I", (0, 2, 0, 0, 0, *bytes(FRAME))))
    first: Column = field(default_factory=lambda: array("I", (0, 0, 2, 3)))
    order: Column = field(default_factory=lambda: array("I", (0, 1, 2)))
    names: Any = b"abc"
    name_end: Column = field(default_factory=lambda: array("I", (1, 2, 3)))
    child: Column = field(default_factory=lambda: array("I", (1, 2, 3)))
    kind: Column = field(default_factory=lambda: array("B", (DIRECTORY, FILE, DIRECTORY, FILE)))
    listing: Column = field(default_factory=lambda: array("I", (1, 0, 2, 0)))
    moves: Column = field(default_factory=lambda: array("i", (0,)) * 256)
    rules: Column = field(default_factory=lambda: array("i", (0, 1, 0, 0, 0, 0, 0)))
    labels: Column = field(default_factory=lambda: array("i", (7, 8, 9)))
    letter_at: Any = b"\1\0"
    given: Column = field(default_factory=lambda: array("i", (5, -1, -1, -1)))

    def all(self) -> list[Any]:
        return [getattr(self, one.name) for one in fields(self)]


def test_the_modules_in_c_are_built() -> None:
    assert descend is _labels.descend


@TWINS
def test_every_inode_gets_the_label_of_its_path_and_type(walk: Walk) -> None:
    columns = Columns()
    assert walk(1, *columns.all()) == (Stop.DONE, 0, 0, 0)
    assert columns.given.tolist() == [5, 7, 8, 7]


@TWINS
def test_a_move_that_is_not_known_is_asked_for_and_the_walk_goes_on_there(walk: Walk) -> None:
    columns = Columns(moves=array("i", (-1,)) * 256)
    asked = []
    depth = 1
    while True:
        why, depth, state, byte = walk(depth, *columns.all())
        if why == Stop.DONE:
            break
        assert (why, state) == (Stop.UNKNOWN, 0)
        asked.append(chr(byte))
        columns.moves[byte] = 0
    assert asked == ["a", "b", "/", "c"]
    assert columns.given.tolist() == [5, 7, 8, 7]


@TWINS
def test_an_entry_whose_inode_has_another_label_is_told_and_passed(walk: Walk) -> None:
    columns = Columns(given=array("i", (5, 9, -1, -1)))
    assert walk(1, *columns.all()) == (Stop.CONFLICT, 1, 0, 7)
    assert walk(1, *columns.all()) == (Stop.DONE, 0, 0, 0)
    assert columns.given.tolist() == [5, 9, 8, 7]


@TWINS
def test_a_stack_that_is_full_has_to_grow(walk: Walk) -> None:
    columns = Columns(stack=array("I", (0, 2, 0, 0, 0)))
    assert walk(1, *columns.all()) == (Stop.DEEPER, 1, 0, 0)
    columns.stack.extend(bytes(FRAME))
    assert walk(1, *columns.all()) == (Stop.DONE, 0, 0, 0)


@TWINS
@pytest.mark.parametrize("depth", [-1, 3, 1 << 40])
def test_a_depth_beyond_the_stack_is_refused(walk: Walk, depth: int) -> None:
    with pytest.raises(ValueError, match="stack"):
        walk(depth, *Columns().all())


@pytest.mark.parametrize("at", range(13))
def test_a_column_of_another_type_is_refused(at: int) -> None:
    columns = Columns().all()
    columns[at] = array("d", (0.0,))
    with pytest.raises(TypeError):
        _labels.descend(1, *columns)
    with pytest.raises(TypeError):
        _labels.descend(1, *columns[:at])


def test_columns_that_are_written_have_to_be_writable() -> None:
    for at in (0, 12):
        columns = Columns().all()
        columns[at] = bytes(columns[at])
        with pytest.raises((BufferError, TypeError)):
            _labels.descend(1, *columns)


def spoiled(chance: Random) -> Columns:
    """Columns of which a few numbers are anything, or that end too early."""
    columns = Columns()
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([one.name for one in fields(columns)])
        column = getattr(columns, name)
        if isinstance(column, bytes) or chance.random() < 0.3:
            setattr(columns, name, column[: chance.randrange(len(column) + 1)])
        elif column:
            at = chance.randrange(len(column))
            least, most = {"I": (0, 2**32 - 1), "i": (-(2**31), 2**31 - 1), "B": (0, 255)}[column.typecode]
            column[at] = chance.choice([0, 1, 2, 3, 4, 255, least, most, chance.randint(least, most)]) % (most + 1)
    return columns


def outcome(walk: Walk, columns: Columns) -> tuple[object, list[list[int]]]:
    """What a walk answers or raises, and the columns that it writes."""
    result: object
    try:
        result = walk(1, *columns.all())
    except ValueError as error:
        result = str(error)
    return result, [columns.stack.tolist(), columns.given.tolist()]


def test_both_twins_say_the_same_of_columns_that_do_not_fit_together() -> None:
    refused = 0
    for seed in range(20_000):
        compiled, plain = (outcome(walk, spoiled(Random(seed))) for walk in (_labels.descend, labels.descend))
        assert compiled[0] == plain[0], seed
        if not isinstance(plain[0], str):
            assert compiled[1] == plain[1], seed
        refused += isinstance(plain[0], str)
    assert 5000 < refused < 19_000


def test_columns_are_let_go_of_whatever_happens() -> None:
    columns = Columns(order=array("I", (9, 1, 2)))
    with pytest.raises(ValueError, match="no such entry"):
        _labels.descend(1, *columns.all())
    with pytest.raises(TypeError):
        _labels.descend(1, *columns.all()[:-1], "no buffer")
    for column in columns.all():
        if isinstance(column, array):
            column.append(0)  # BufferError if somebody held it


def generated(chance: Random) -> Columns:
    """A tree of some directories and files, hard links among them, and a table of which a half is known."""
    kinds = [DIRECTORY, *(chance.choice((DIRECTORY, FILE)) for _ in range(chance.randint(1, 12)))]
    folders = [inode for inode, kind in enumerate(kinds) if kind == DIRECTORY]
    files = [inode for inode, kind in enumerate(kinds) if kind == FILE]
    child = [*range(1, len(kinds)), *(chance.choices(files, k=3) if files else ())]
    listings: list[list[int]] = [[] for _ in range(len(folders) + 1)]
    for entry, inode in enumerate(child):
        listings[1 + chance.choice([at for at, folder in enumerate(folders) if folder < inode])].append(entry)
    names = [bytes(chance.choices(b"ab/\xff", k=chance.randrange(4))) for _ in child]
    states = chance.randint(1, 4)
    first = [0, *accumulate(map(len, listings))]
    return Columns(
        stack=array("I", (*first[1:3], 0, 0, 0, *bytes(FRAME * chance.randrange(3)))),
        first=array("I", first),
        order=array("I", chain.from_iterable(listings)),
        names=b"".join(names),
        name_end=array("I", accumulate(map(len, names))),
        child=array("I", child),
        kind=array("B", kinds),
        listing=array("I", (1 + folders.index(inode) if inode in folders else 0 for inode in range(len(kinds)))),
        moves=array("i", (chance.randrange(-states, states) for _ in range(256 * states))),
        rules=array("i", (chance.randrange(-3, 3) for _ in range(7 * states))),
        given=array("i", (-1,)) * len(kinds),
    )


def walked(walk: Walk, seed: int) -> Iterator[tuple[object, list[list[int]]]]:
    """A walk to its end or to its refusal, which gets what it asks for: moves at random, and room."""
    chance = Random(seed)
    columns, depth = generated(chance), 1
    for _ in range(100):
        try:
            answer = why, depth, state, byte = walk(depth, *columns.all())
        except ValueError as error:
            yield str(error), [columns.stack.tolist(), columns.given.tolist()]
            return
        yield answer, [columns.stack.tolist(), columns.given.tolist()]
        if why == Stop.UNKNOWN:
            columns.moves[256 * state + byte] = chance.randrange(len(columns.moves) // 256)
        elif why == Stop.DEEPER:
            columns.stack.extend(bytes(FRAME))
        elif why == Stop.DONE:
            return


def test_both_twins_take_the_same_steps_through_a_tree() -> None:
    seen = Counter[object]()
    for seed in range(500):
        compiled, plain = list(walked(_labels.descend, seed)), list(walked(labels.descend, seed))
        assert compiled == plain, seed
        seen.update(answer[0] for answer, _ in plain if isinstance(answer, tuple))
    assert min(seen[why] for why in Stop) > 50
