"""Random tars of layers: every kind of entry, under names that meet each other, in every form of header."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from real.corpus.case import BASE, blocks
from real.rawtar import END, GNU, USTAR, V7, Header, Number, base256, long_name, octal, padded, pax, spaced

_DIRECTORIES: Final = (b"usr", b"usr/bin", b"usr/lib", b"etc", b"run", b"run/x", b"boot", b"sysroot", b"usr/lib/deep")
"""Each comes after the one it lies in."""

_NAMES: Final = (b"a", b"b", b"c", b"bin", b"lib", b"x", b"\xff", b"long" * 30, b"-", b"sp ace", b"e=q", b"deep")
_ODD_PATHS: Final = (
    b"..", b"usr/..", b"../q", b"usr/../etc/a", b"none/x", b".wh.", b"usr/.wh.", b"usr/.wh..wh.plnk", b".wh..wh..opq",
    b"usr/a/..", b".", b"/", b"etc/.wh...",
)  # fmt: skip
_TIMES: Final = (b"1700000000.5", b"17.000000001", b"3.1234567891", b"5.", b"5.x", b"8.+5", b"1.5.7", b"44", b"+1.25")
_ATTRIBUTES: Final = (
    b"user.foo",
    b"user.x=y",
    b"security.capability",
    b"security.selinux",
    b"trusted.overlay.opaque",
)
_VALUES: Final = (b"v", b"", b"\0\1\2=\n x", b"7 a=b\n", bytes(range(40)), b"s" * 300)
_SIZES: Final = (0, 1, 63, 64, 65, 511, 512, 513, 5000)
_TARGETS: Final = (b"target", b"/abs/x" * 30, b"", b"../..//x", b"a\nb")
_ENDS: Final = (END, END, END, bytes(10240), END + b"behind it" * 100)
_KEPT_THOUGH_REFUSED: Final = 0.004

Accepts = Callable[[bytes], bool]
"""Whether a tar is one that the layers so far can take."""


@dataclass(frozen=True, slots=True)
class RandomLayers:
    """A maker of layers; `accepts` is asked, so that most of what comes out makes an image."""

    rng: Random
    accepts: Accepts

    def first(self) -> bytes:
        """A layer with all directories."""
        known = {entry.path for entry in BASE}
        return self._grown(
            blocks(BASE) + b"".join(self._entry(path, b"5") for path in _DIRECTORIES if path.decode() not in known)
        )

    def further(self) -> bytes:
        """A layer on top."""
        return self._grown(self._entry(self.rng.choice((b"./", b"/", b"usr/..")), b"5") if self._chance(0.3) else b"")

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _grown(self, start: bytes) -> bytes:
        tar = start
        for _ in range(self.rng.randrange(1, 20)):
            entry = self._any_entry()
            if self.accepts(tar + entry + END) or self._chance(_KEPT_THOUGH_REFUSED):
                tar += entry
        return tar + self.rng.choice(_ENDS)

    def _path(self) -> bytes:
        name = self.rng.choice(_NAMES)
        return self.rng.choice(_DIRECTORIES) + b"/" + name if self._chance(0.9) else name

    def _spelt(self, path: bytes, *, slash: float = 0.05) -> bytes:
        """The path in one of many spellings."""
        change = self.rng.choice(("", "", "", "", "./", "./", "/", "//", "/./"))
        path = path.replace(b"/", change.encode()) if change in ("//", "/./") else change.encode() + path
        return path + b"/" * self._chance(slash)

    def _any_entry(self) -> bytes:
        rng, path = self.rng, self._path()
        parent, _, name = path.rpartition(b"/")
        makers: tuple[Callable[[], bytes], ...] = (
            lambda: self._entry(
                self._spelt(path), rng.choice((b"0", b"0", b"\0", b"7")), rng.randbytes(rng.choice(_SIZES))
            ),
            lambda: self._entry(self._spelt(path), b"2", link=rng.choice(_TARGETS)),
            lambda: self._entry(self._spelt(path), b"1", link=self._spelt(self._path())),
            lambda: self._entry(self._spelt(path, slash=0.7), b"5"),
            lambda: self._entry(self._spelt(rng.choice(_DIRECTORIES), slash=0.7), b"5"),
            lambda: self._entry(parent + b"/.wh." + name if parent else b".wh." + name, b"0"),
            lambda: self._entry(self._spelt(rng.choice(_DIRECTORIES[1:]) + b"/.wh..wh..opq"), b"0"),
            lambda: self._entry(self._spelt(path), rng.choice((b"3", b"4"))),
            lambda: self._entry(self._spelt(path), b"6"),
            lambda: self._entry(rng.choice(_ODD_PATHS), rng.choice((b"0", b"5"))),
        )
        return rng.choices(makers, weights=(30, 10, 20, 10, 6, 10, 4, 5, 3, 3))[0]()

    # Headers

    def _number(self, number: int, width: int) -> Number:
        form = self.rng.choice((octal, octal, octal, spaced, base256))
        if form is base256 or number >= 8 ** (width - 2):
            return base256(number, width) if width > 8 or number < 1 << 62 else number
        return form(number, width)

    def _entry(self, path: bytes, kind: bytes, content: bytes = b"", *, link: bytes = b"") -> bytes:
        rng = self.rng
        header = Header(
            path,
            kind,
            self._number(len(content), 12),
            link,
            mode=rng.choice((0o644, 0o755, 0o4755, 0o100644, 0o40755, 0o1777)),
            uid=self._number(rng.choice((0, 0, 1000, 70000, 1 << 21, 1 << 31)), 8),
            gid=self._number(rng.choice((0, 5, 3_000_000_000)), 8),
            mtime=self._number(rng.choice((0, 1, 1_700_000_000, (1 << 33) + 5)), 12),
            magic=rng.choice((USTAR, USTAR, USTAR, GNU, GNU, V7)),
            major=rng.choice((0, 1, 8, 4095)),
            minor=rng.choice((0, 1, 255, 256, 70000)),
        )
        if header.magic == V7 and (len(path) > 100 or len(link) > 100 or kind in b"34"):
            header = replace(header, magic=USTAR)
        extensions, header = self._extended(header, len(content))
        return extensions + header.block() + padded(content)

    def _extended(self, header: Header, size: int) -> tuple[bytes, Header]:
        """Extension headers, and what is left to the header itself."""
        if header.magic == V7:
            return b"", header
        rng, records, found = self.rng, self._records(size), list[bytes]()
        if len(header.name) > 100 or self._chance(0.1):
            header = self._named(header, records, found)
        if len(header.link) > 100 or (header.link and self._chance(0.1)):
            if self._chance(0.5):
                records.append((b"linkpath", header.link))
            else:
                found.append(long_name(header.link, kind=b"K", terminated=self._chance(0.6)))
            header = replace(header, link=header.link[:100])
        if records:
            rng.shuffle(records)
            found.append(pax(records))
        rng.shuffle(found)
        return b"".join(found), header

    def _named(self, header: Header, records: list[tuple[bytes, bytes]], found: list[bytes]) -> Header:
        """Put the name into a record, a header of GNU, or the prefix."""
        way, path = self.rng.choice("xLp" if header.magic == USTAR else "xL"), header.name
        cut = path.rfind(b"/", 0, 155)
        if way == "p" and cut > 0 and 0 < len(path) - cut - 1 <= 100:
            return replace(header, prefix=path[:cut], name=path[cut + 1 :])
        if way == "L":
            found.append(long_name(path, terminated=self._chance(0.6)))
        else:
            records.append((b"path", path))
        return replace(header, name=self.rng.choice((b"junk", path[:100])))

    def _records(self, size: int) -> list[tuple[bytes, bytes]]:
        rng = self.rng
        choices: Sequence[tuple[float, bytes, Sequence[bytes]]] = (
            (0.25, b"mtime", _TIMES),
            (0.05, b"mtime", (b"44.75",)),
            (0.15, b"SCHILY.xattr." + rng.choice(_ATTRIBUTES), _VALUES),
            (0.1, b"SCHILY.xattr." + rng.choice(_ATTRIBUTES), _VALUES),
            (0.05, b"uid", (b"77", b"4294967297", b"+9")),
            (0.05, b"size", (b"%d" % size,)),
            (0.05, rng.choice((b"comment", b"LIBARCHIVE.x", "ü".encode())), (b"zz\nyy",)),
        )
        return [(key, rng.choice(values)) for probability, key, values in choices if self._chance(probability)]
