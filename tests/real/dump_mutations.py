"""Dumps that somebody has tampered with, made by hypothesis, so that it finds the smallest change that matters."""

from collections.abc import Callable, Sequence
from typing import Final

from hypothesis import strategies as st

_TEXTS: Final = (
    b"-", b"", b"/", b"/a", b"//a", b"/a/", b"/./a", b"/../a", b"a", b"0", b"1", b"2", b"+1", b"-1", b"01", b"1_0",
    b"4294967295", b"4294967296", b"9223372036854775807.0", b"9223372036854775808.0", b"18446744073709551615",
    b"18446744073709551616", b"100644", b"40755", b"120777", b"@120000", b"@100644", b"@40000", b"@", b"1@100644",
    b"644", b"20644", b"60644", b"10644", b"140644", b"7100644", b"37777777777", b"177777777777",
    b"0.0", b"1.5", b"5", b"1.999999999", b"1.1000000000", b"-1.0", b"1.-1", b"1.+5", b".5", b"5.", b"1.2.3",
    b"\\x2d", b"\\x00", b"\\xff", b"\\n", b"\\q", b"\\x2", b"\\x2F", b"\\x+1", b"\\",
    b"x" * 512, b"x" * 513, b"x" * 1024, b"x" * 1025, b"/" + b"y" * 255, b"/" + b"y" * 256,
    b"user.a=1", b"user.a=2", b"user.a=", b"=", b"=x", b"nokey", b"k=-", b"k=a=b", b"user." + b"n" * 250 + b"=1",
    b"user." + b"n" * 251 + b"=1", b"v=" + b"v" * 65535, b"v=" + b"v" * 65536, "\u00fc=\u00e9".encode(), b"\xff",
    "\u00e9".encode(), b"ab/" + b"ab" * 31, b"ab" * 32, b"AB" * 32, b"ab" * 31 + b"a", b"/ab/" + b"ab" * 31,
    b"zz/" + b"ab" * 31, b"ab" * 64, b"ab/" + b"ab" * 63,
)  # fmt: skip
_BLANKS: Final = (
    b"",
    b"  ",
    b"\r",
    b"\t",
    b"\x0b",
    b"\x1c",
    b"\x85",
    b"\xc2\x85",
    b"\xc2\xa0",
    "\u2003".encode(),
    b"#x",
)


def _replace_field(lines: list[bytes], line: int, where: int, value: int) -> None:
    fields = lines[line].split(b" ")
    fields[where % len(fields)] = _TEXTS[value % len(_TEXTS)]
    lines[line] = b" ".join(fields)


def _add_field(lines: list[bytes], line: int, where: int, value: int) -> None:
    fields = lines[line].split(b" ")
    fields.insert(where % (len(fields) + 1), _TEXTS[value % len(_TEXTS)])
    lines[line] = b" ".join(fields)


def _drop_field(lines: list[bytes], line: int, where: int, _value: int) -> None:
    fields = lines[line].split(b" ")
    del fields[where % len(fields)]
    lines[line] = b" ".join(fields)


def _exchange_fields(lines: list[bytes], line: int, where: int, value: int) -> None:
    """Take a field from the same place of another line."""
    fields, others = lines[line].split(b" "), lines[value % len(lines)].split(b" ")
    at = where % min(len(fields), len(others))
    fields[at] = others[at]
    lines[line] = b" ".join(fields)


def _repeat_line(lines: list[bytes], line: int, where: int, _value: int) -> None:
    lines.insert(where % (len(lines) + 1), lines[line])


def _drop_line(lines: list[bytes], line: int, _where: int, _value: int) -> None:
    del lines[line]


def _move_line(lines: list[bytes], line: int, where: int, _value: int) -> None:
    lines.insert(where % len(lines), lines.pop(line))


def _add_blank(lines: list[bytes], line: int, _where: int, value: int) -> None:
    lines.insert(line, _BLANKS[value % len(_BLANKS)])


def _add_link(lines: list[bytes], line: int, where: int, value: int) -> None:
    target = lines[where % len(lines)].split(b" ")[0]
    suffix = (b"2", b"", b"/x", b"/..")[value % 4]
    end = (b" - -", b"", b" - - x", b" x y")[value // 4 % 4]
    lines.insert(line, lines[line].split(b" ")[0] + suffix + b" 0 @120000 - - - - 0.0 " + target + end)


def _edit_byte(lines: list[bytes], line: int, where: int, value: int) -> None:
    data = bytearray(lines[line])
    if data:
        data[where % len(data)] = b" /-09@\\x.=\r"[value % 11] if value % 3 else value & 0xFF
    lines[line] = bytes(data)


_LINE_EDITS: Final = (
    _replace_field, _add_field, _drop_field, _exchange_fields, _repeat_line, _drop_line, _move_line, _add_blank,
    _add_link, _edit_byte,
)  # fmt: skip
_OFTEN_ON_LINES: Final = (_replace_field, _replace_field, _replace_field, _exchange_fields, _edit_byte)
_NUMBERS: Final = st.integers(0, 1 << 16)

LINE_EDITS: Final = st.lists(
    st.tuples(st.sampled_from([*_OFTEN_ON_LINES, *_LINE_EDITS]), _NUMBERS, _NUMBERS, _NUMBERS),
    min_size=1,
    max_size=3,
)

LineEdits = Sequence[tuple[Callable[[list[bytes], int, int, int], None], int, int, int]]


def tampered_dump(dump: bytes, edits: LineEdits) -> bytes:
    """The dump after all edits."""
    lines = dump.split(b"\n")
    for edit, line, where, value in edits:
        if lines:
            edit(lines, line % len(lines), where, value)
    return b"\n".join(lines)
