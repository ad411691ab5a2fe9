"""The table of a layer, and its serialised form as a process that was taken over might send it."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import layer
from composefsd.tree.layer import HARDLINK, LayerTable, Row
from composefsd.tree.table import Kind

COUNTS = 24  # bytes of the header


def row(kind: int, path: bytes, text: bytes = b"", *, size: int | None = None, xattrs: int = 0, nsec: int = 0) -> Row:
    if size is None:
        size = 0 if kind == HARDLINK else len(text)
    return (kind, 0o644, 1, 2, 3, nsec, size, xattrs, path, text)


def table() -> LayerTable:
    made = LayerTable()
    capability = made.intern(((b"security.capability", b"\1\0"), (b"user.a", b"")))
    made.append_rows(
        [
            row(Kind.DIRECTORY, b"usr/"),
            row(Kind.INLINE, b"usr/small", b"con\0tent", xattrs=capability),
            row(Kind.EXTERNAL, b"usr/large", size=65),
        ]
    )
    made.append_rows([])
    made.append_rows(
        [
            row(Kind.SYMLINK, b"usr/link", b"large"),
            row(HARDLINK, b"usr/hard", b"usr/large"),
            row(Kind.CHAR, b"dev", size=0x0103),
            row(Kind.FIFO, b"fifo", nsec=999_999_999),
            row(Kind.EXTERNAL, b"usr/larger", size=1 << 40),
        ]
    )
    return made


def test_a_table_survives_its_serialised_form() -> None:
    made = table()
    read = LayerTable.parse(memoryview(made.serialize()))
    assert len(read) == 8
    for name in ("kind", "mode", "uid", "gid", "mtime", "nsec", "size", "xattrs", "path_end", "text_end"):
        assert getattr(read, name) == getattr(made, name)
    assert [read.path(at) for at in (0, 1, 7)] == [b"usr/", b"usr/small", b"usr/larger"]
    assert [read.text(at) for at in (0, 1, 4)] == [b"", b"con\0tent", b"usr/large"]
    assert read.xattr_sets == made.xattr_sets
    assert read.count_external() == 2
    assert read.serialize() == made.serialize()


def test_an_empty_table_survives_too() -> None:
    assert len(LayerTable.parse(LayerTable().serialize())) == 0


def test_a_table_that_is_cut_short_or_longer_is_refused() -> None:
    data = table().serialize()
    for end in (*range(0, len(data), 7), len(data) - 1):
        with pytest.raises(FormatError):
            LayerTable.parse(data[:end])
    with pytest.raises(FormatError):
        LayerTable.parse(data + b"\0")


@pytest.mark.parametrize(
    "bad",
    [
        row(3, b"a"),  # UNVERIFIED is nothing that a tar can hold
        row(255, b"a"),
        row(Kind.DIRECTORY, b""),
        row(Kind.DIRECTORY, b"a\0b"),
        row(Kind.DIRECTORY, b"a" * 4097),
        row(Kind.DIRECTORY, b"a", b"text"),
        row(Kind.DIRECTORY, b"a", size=1),
        row(Kind.FIFO, b"a", size=1),
        row(Kind.INLINE, b"a", b"x" * 65),
        row(Kind.INLINE, b"a", b"x", size=2),
        row(Kind.EXTERNAL, b"a", size=64),
        row(Kind.EXTERNAL, b"a", size=(1 << 63) - 511),
        row(Kind.EXTERNAL, b"a", b"x", size=100),
        row(Kind.SYMLINK, b"a", b"to\0"),
        row(Kind.SYMLINK, b"a", b"x" * 4097),
        row(HARDLINK, b"a", b"to\0"),
        row(HARDLINK, b"a", b"b", size=1),
        row(Kind.CHAR, b"a", b"x"),
        row(Kind.FIFO, b"a", nsec=1_000_000_000),
        row(Kind.FIFO, b"a", xattrs=1),
        (*row(Kind.FIFO, b"a")[:4], -1, *row(Kind.FIFO, b"a")[5:]),
    ],
)
def test_an_entry_that_no_tar_could_have_is_refused(bad: Row) -> None:
    made = LayerTable()
    made.append_rows([row(Kind.FIFO, b"before"), bad, row(Kind.FIFO, b"after")])
    with pytest.raises(FormatError):
        LayerTable.parse(made.serialize())


@pytest.mark.parametrize(
    "bad",
    [
        (),
        ((b"b", b""), (b"a", b"")),
        ((b"a", b""), (b"a", b"")),
        ((b"a\0", b""),),
        ((b"a" * 256, b""),),
        ((b"a", b"v" * 65537),),
    ],
)
def test_extended_attributes_are_sorted_and_bounded_and_each_set_is_there_once(
    bad: tuple[tuple[bytes, bytes], ...],
) -> None:
    made = LayerTable()
    made.xattr_sets.append(bad)
    with pytest.raises(FormatError):
        LayerTable.parse(made.serialize())


def test_names_without_entries_are_refused() -> None:
    made = LayerTable()
    made.paths += b"x"
    with pytest.raises(FormatError):
        LayerTable.parse(made.serialize())


@pytest.mark.parametrize(
    ("column", "values"),
    [("path_end", (2, 2)), ("path_end", (3, 2)), ("path_end", (1, 3)), ("text_end", (1, 0)), ("text_end", (0, 1))],
)
def test_ends_have_to_rise_to_the_end(column: str, values: tuple[int, int]) -> None:
    made = LayerTable()
    made.append_rows([row(Kind.FIFO, b"a"), row(Kind.FIFO, b"b")])
    getattr(made, column)[:] = type(made.path_end)("I", values)
    with pytest.raises(FormatError):
        LayerTable.parse(made.serialize())


@pytest.mark.parametrize("at", range(6))
def test_counts_that_do_not_fit_the_size_are_refused_before_anything_is_made_of_them(at: int) -> None:
    data = bytearray(table().serialize())
    for count in (0, 0xFFFF_FFFF, struct.unpack_from("=I", data, 4 * at)[0] + 1):
        struct.pack_into("=I", data, 4 * at, count)
        with pytest.raises(FormatError):
            LayerTable.parse(bytes(data))


@settings(max_examples=150)
@given(st.data())
def test_hostile_bytes_raise_nothing_but_format_error(data: st.DataObject) -> None:
    good = table().serialize()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    with suppress(FormatError):
        assert LayerTable.parse(bytes(bad)).serialize() == bad


def test_a_layer_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_ENTRIES", 2)
    made = LayerTable()
    made.append_rows([row(Kind.FIFO, b"a"), row(Kind.FIFO, b"b")])
    with pytest.raises(LimitExceededError):
        made.append_rows([row(Kind.FIFO, b"c")])
    monkeypatch.setattr(layer, "MAX_TEXT_BYTES", 10)
    LayerTable().append_rows([row(Kind.FIFO, b"a" * 10)])
    with pytest.raises(LimitExceededError):
        LayerTable().append_rows([row(Kind.FIFO, b"a" * 11)])
    with pytest.raises(LimitExceededError):
        LayerTable().intern(((b"user.a", b"value"),))
