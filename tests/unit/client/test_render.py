"""Terminals and tables."""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.client.render import Colour, Screen, Table
from composefsd.client.text import escape, width_of

DIGEST = "sha256:" + "0123456789abcdef" * 4


def screen(width: int | None = None, *, colour: bool = False) -> Screen:
    return Screen(io.StringIO(), width, colour=colour)


def shown(target: Screen) -> list[str]:
    assert isinstance(target.stream, io.StringIO)
    return target.stream.getvalue().splitlines()


def table(target: Screen, *rows: tuple[str, ...], right: frozenset[str] = frozenset()) -> list[str]:
    made = Table([f"COLUMN{at}" for at in range(len(rows[0]))], right)
    for row in rows:
        made.add(*row)
    made.show(target)
    return shown(target)


def test_digests_are_whole_in_a_pipe_and_short_on_a_terminal() -> None:
    assert screen().digest(DIGEST) == DIGEST
    assert screen(80).digest(DIGEST) == "0123456789ab"


def test_a_short_deployment_id_keeps_the_number_of_its_repetition() -> None:
    identity = DIGEST.removeprefix("sha256:")
    assert screen(80).deployment(identity) == "0123456789ab"
    assert screen(80).deployment(identity + ".2") == "0123456789ab.2"
    assert screen().deployment(identity + ".2") == identity + ".2"


def test_columns_are_aligned_and_empty_cells_can_be_counted() -> None:
    lines = table(screen(), ("a", "", "bbbbbbbbbb"), ("ccc", "12", ""), right=frozenset({"COLUMN1"}))
    assert lines == ["COLUMN0  COLUMN1  COLUMN2", "a              -  bbbbbbbbbb", "ccc           12  -"]


@given(st.lists(st.text(max_size=60), min_size=6, max_size=6), st.integers(1, 100))
def test_a_table_fits_the_terminal(cells: list[str], width: int) -> None:
    for line in table(screen(width), tuple(cells[:3]), tuple(cells[3:])):
        assert line.isprintable()
        assert width_of(line) <= width


def test_the_widest_column_gives_way_first() -> None:
    lines = table(screen(30), ("short", "x" * 60))
    assert lines[1].startswith("short")
    assert lines[1].endswith("…")


def test_a_line_is_not_cut_since_reasons_and_digests_may_be_long() -> None:
    narrow = screen(10)
    narrow.line("x" * 20)
    assert shown(narrow) == ["x" * 20]


def test_colours_are_only_where_they_are_wanted() -> None:
    plain, coloured = screen(80), screen(80, colour=True)
    for target in (plain, coloured):
        target.line("bad", Colour.RED)
    assert shown(plain) == ["bad"]
    assert shown(coloured) == ["\x1b[31mbad\x1b[0m"]


def test_what_a_daemon_says_never_reaches_the_terminal_raw() -> None:
    target = screen(80, colour=True)
    target.line("\x1b[2J", Colour.RED)
    assert shown(target) == ["\x1b[31m" + escape("\x1b[2J") + "\x1b[0m"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return screen()


class Terminal(io.StringIO):
    """A stream that says it is a terminal, of a size that nobody knows."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no descriptor")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_has_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Screen.of(Terminal()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Screen.of(Terminal()).colour
    assert Screen.of(Terminal()).live


@pytest.mark.usefixtures("terminal")
def test_a_dumb_terminal_and_a_pipe_are_not_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Screen.of(io.StringIO()).live
    monkeypatch.setenv("TERM", "dumb")
    assert not Screen.of(Terminal()).live
    assert not Screen.of(Terminal()).colour


@pytest.mark.usefixtures("terminal")
def test_the_width_is_that_of_columns_or_of_the_terminal_or_eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Screen.of(Terminal()).width == 80
    monkeypatch.setenv("COLUMNS", "33")
    assert Screen.of(Terminal()).width == 33
    monkeypatch.delenv("COLUMNS")
    main, other = os.openpty()
    with open(other, "w") as stream, open(main):  # noqa: PTH123 - descriptors, not paths
        assert Screen.of(stream).width
