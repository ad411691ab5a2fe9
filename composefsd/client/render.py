"""Where text goes: streams and terminals, colours, and tables that fit.

`Screen.line` and `Table` escape what they print.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self, TextIO

from composefsd.client.text import cut, escape, width_of

SHORT_DIGITS: Final = 12
"""Digits of a digest on a terminal, the fewest that the daemon takes for a prefix."""

_GAP: Final = "  "
_MIN_COLUMN: Final = 8
_FALLBACK_WIDTH: Final = 80


class Colour(Enum):
    """SGR sequences; the value is the parameter."""

    BOLD = "1"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"


Cell = tuple[str, Colour | None]
"""What stands in a table, and its colour."""


@dataclass(frozen=True, slots=True)
class Screen:
    """Where text goes.

    `width` is None, and digests stay whole, if it is no terminal; `live` tells whether a line can be drawn over.
    """

    stream: TextIO
    width: int | None = None
    live: bool = False
    colour: bool = False
    unicode: bool = True

    @classmethod
    def of(cls, stream: TextIO) -> Self:
        """What `stream` can show, by the environment's NO_COLOR and TERM."""
        unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
        if not stream.isatty():
            return cls(stream, unicode=unicode)
        live = os.environ.get("TERM", "dumb") != "dumb"
        return cls(stream, _terminal_width(stream), live, live and not os.environ.get("NO_COLOR"), unicode)

    def current_width(self) -> int:
        """Columns of the terminal now; it may have been resized since this record was made."""
        return _terminal_width(self.stream)

    def paint(self, text: str, colour: Colour | None) -> str:
        """`text` in a colour, where there are any."""
        return f"\x1b[{colour.value}m{text}\x1b[0m" if self.colour and colour and text else text

    def digest(self, text: str) -> str:
        """A digest as it fits: on a terminal its first digits without the algorithm, else whole."""
        return text if self.width is None else text.rpartition(":")[2][:SHORT_DIGITS]

    def deployment(self, identity: str) -> str:
        """A deployment's id as it fits; the number of a repeated deployment stays."""
        digest, dot, number = identity.partition(".")
        return self.digest(digest) + dot + number

    def line(self, text: str = "", colour: Colour | None = None) -> None:
        """Print a line; one that is too long for the terminal goes on below, so that nothing of it is lost."""
        self.write(self.paint(escape(text), colour) + "\n")

    def write(self, text: str) -> None:
        """Print what needs no escaping any more."""
        self.stream.write(text)

    def flush(self) -> None:
        """Let it be seen now."""
        self.stream.flush()


def _terminal_width(stream: TextIO) -> int:
    """COLUMNS, or what the terminal says."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _FALLBACK_WIDTH
    except OSError:
        return _FALLBACK_WIDTH


@dataclass(slots=True)
class Table:
    """Rows under titles; a column named in `right` is aligned to the right, cells may carry a colour."""

    titles: Sequence[str]
    right: frozenset[str] = frozenset()
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: str | Cell) -> None:
        """Add a row; an empty cell shows as `-`, so that columns can be counted by programs."""
        pairs = [(cell, None) if isinstance(cell, str) else cell for cell in cells]
        assert len(pairs) == len(self.titles)
        self.rows.append([(escape(text) or "-", colour) for text, colour in pairs])

    def show(self, screen: Screen) -> None:
        """Print titles and rows, columns as wide as they need or as the terminal allows."""
        titles: list[Cell] = [(title, Colour.BOLD) for title in self.titles]
        rows = [titles, *self.rows]
        widths = _fit([max(width_of(row[at][0]) for row in rows) for at in range(len(titles))], screen.width)
        for row in rows:
            screen.write(self._row(row, widths, screen) + "\n")

    def _row(self, row: Sequence[Cell], widths: Sequence[int], screen: Screen) -> str:
        cells = []
        for (text, colour), width, title in zip(row, widths, self.titles, strict=True):
            if not width:  # the terminal is too narrow for this column
                continue
            shown = cut(text, width)
            space = " " * (width - width_of(shown))
            painted = screen.paint(shown, colour)
            cells.append(space + painted if title in self.right else painted + space)
        return _GAP.join(cells).rstrip()


def _fit(widths: Iterable[int], limit: int | None) -> list[int]:
    """Narrow the widest columns until a row fits into `limit`, then drop the last ones, which are then 0 wide."""
    fitted = list(widths)
    if limit is None:
        return fitted
    while _total(fitted) > limit:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        if fitted[widest] > _MIN_COLUMN:
            fitted[widest] -= 1
        else:
            last = max(at for at, width in enumerate(fitted) if width)
            if last == 0:
                return [limit, *fitted[1:]]
            fitted[last] = 0
    return fitted


def _total(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + len(_GAP) * (len(shown) - 1)
