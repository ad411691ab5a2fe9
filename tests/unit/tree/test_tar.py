"""Tar layers, good and hostile.  What is accepted was compared with cfsctl 0.9.4 by hand, entry for entry."""

import io
import os
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import layer
from composefsd.tree.layer import HARDLINK, LayerTable
from composefsd.tree.table import Kind
from composefsd.tree.tar import MAX_EXTENSION_BYTES, parse_layer

USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)
END = bytes(1024)


class Source:
    """A tar in memory; `cuts` are negative for inline bytes and positive for external files."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.cuts: list[int] = []

    def _take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        self.at += len(taken)
        return taken

    def inline(self, count: int) -> bytes:
        taken = self._take(count)
        self.cuts.append(-len(taken))
        return taken

    def external(self, size: int) -> None:
        if len(self._take(size)) != size:
            raise FormatError("the input ends in an external file")
        self.cuts.append(size)

    def rest(self) -> None:
        self.cuts.append(-len(self._take(len(self.data))))


def parse(data: bytes) -> LayerTable:
    return parse_layer(Source(data))


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def header(
    name: bytes = b"file", typeflag: bytes = b"0", *, size: int | bytes = 0, mode: int | bytes = 0o644,
    uid: int | bytes = 0, gid: int | bytes = 0, mtime: int | bytes = 0, link: bytes = b"", magic: bytes = USTAR,
    device: bytes = bytes(16), prefix: bytes = b"", checksum: int | None = None,
) -> bytes:  # fmt: skip
    numbers = ((mode, 8), (uid, 8), (gid, 8), (size, 12), (mtime, 12))
    fields = [value if isinstance(value, bytes) else octal(value, width) for value, width in numbers]
    head = name.ljust(100, b"\0") + b"".join(fields)
    tail = typeflag + link.ljust(100, b"\0") + magic + bytes(64) + device + prefix.ljust(167, b"\0")
    if checksum is None:
        checksum = sum(head) + sum(tail) + 8 * 0x20
    made = head + b"%06o\0 " % checksum + tail
    assert len(made) == 512
    return made


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def pax(*records: tuple[bytes, bytes], data: bytes | None = None, typeflag: bytes = b"x") -> bytes:
    if data is None:
        data = b"".join(record(key, value) for key, value in records)
    return header(b"pax", typeflag, size=len(data)) + pad(data)


def long(typeflag: bytes, text: bytes) -> bytes:
    return header(b"././@LongLink", typeflag, size=len(text), magic=GNU) + pad(text)


def only(data: bytes) -> LayerTable:
    table = parse(data + END)
    assert len(table) == 1
    return table


# What a header says


def test_a_header_is_read_field_by_field() -> None:
    table = only(header(b"usr/bin/su", b"0", mode=0o104755, uid=1000, gid=5, mtime=1_700_000_000))
    assert (table.kind[0], table.path(0), table.text(0)) == (Kind.INLINE, b"usr/bin/su", b"")
    assert (table.mode[0], table.uid[0], table.gid[0]) == (0o104755, 1000, 5)
    assert (table.mtime[0], table.nsec[0], table.size[0], table.xattrs[0]) == (1_700_000_000, 0, 0, 0)


@pytest.mark.parametrize(
    ("typeflag", "kind", "size", "text"),
    [
        (b"0", Kind.INLINE, 0, b""), (b"\0", Kind.INLINE, 0, b""), (b"7", Kind.INLINE, 0, b""),
        (b"1", HARDLINK, 0, b"to"), (b"2", Kind.SYMLINK, 2, b"to"), (b"3", Kind.CHAR, 0x0F12345, b""),
        (b"4", Kind.BLOCK, 0x0F12345, b""), (b"5", Kind.DIRECTORY, 0, b""), (b"6", Kind.FIFO, 0, b""),
    ],
)  # fmt: skip
def test_each_type_of_entry_becomes_its_kind(typeflag: bytes, kind: int, size: int, text: bytes) -> None:
    device = octal(0x123, 8) + octal(0xF45, 8)
    table = only(header(b"x", typeflag, link=b"to", device=device))
    assert (table.kind[0], table.size[0], table.text(0)) == (kind, size, text)


def test_device_numbers_are_those_of_linux() -> None:
    for major, minor in ((0, 0), (8, 1), (4095, 255), (1, 70_000), (5000, 1)):
        table = only(header(b"x", b"3", device=octal(major, 8) + octal(minor, 8)))
        assert table.size[0] == os.makedev(major, minor)


@pytest.mark.parametrize("typeflag", [b"8", b"A", b"V", b"M", b"D", b"\xff"])
def test_other_types_are_refused(typeflag: bytes) -> None:
    with pytest.raises(FormatError, match="not supported"):
        parse(header(b"x", typeflag) + END)


@pytest.mark.parametrize("typeflag", [b"L", b"K", b"x", b"S"])
def test_headers_without_a_magic_have_no_extensions(typeflag: bytes) -> None:
    with pytest.raises(FormatError, match="not supported"):
        parse(header(b"x", typeflag, magic=V7) + END)


def test_headers_without_a_magic_have_no_prefix_and_no_devices() -> None:
    assert only(header(b"x", magic=V7, prefix=b"usr", device=b"not octal".ljust(16))).path(0) == b"x"
    with pytest.raises(FormatError, match="device"):
        parse(header(b"x", b"3", magic=V7) + END)


def test_the_prefix_comes_before_the_name_unless_the_header_is_gnus() -> None:
    assert only(header(b"x" * 100, prefix=b"p" * 155)).path(0) == b"p" * 155 + b"/" + b"x" * 100
    assert only(header(b"x", prefix=b"p", magic=GNU)).path(0) == b"x"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644), (b"644".ljust(8, b"\0"), 0o644), (b"   644 \0", 0o644), (b"\t 644\x0b\x0c\0", 0o644),
        (b"00000644", 0o644), (b"644\0 8 9", 0o644), (b"+644   \0", 0o644), (bytes(8), 0), (b"        ", 0),
        (b"\x00000644\0", 0), (b"\x80\0\0\0\0\0\1\xa4", 0o644), (b"\x81\0\0\0\0\0\0\7", 7), (b"77777777", 0o77777777),
    ],
)  # fmt: skip
def test_numbers_are_octal_or_binary(field: bytes, value: int) -> None:
    table = only(header(uid=field, mode=field))
    assert (table.uid[0], table.mode[0]) == (value, value)


@pytest.mark.parametrize(
    "field", [b"0000648\0", b"0x00644\0", b"-000644\0", b"6 4     ", b"6_44\0\0\0\0", b"0o644\0\0\0"]
)
@pytest.mark.parametrize("name", ["mode", "uid", "gid", "size", "mtime"])
def test_numbers_that_are_not_octal_are_refused(name: str, field: bytes) -> None:
    if name in ("size", "mtime"):
        field = field.ljust(12, b"\0")
    with pytest.raises(FormatError):
        parse(header(**{name: field}) + END)


@pytest.mark.parametrize(
    "field", [b"\xff" * 12, b"\xc0" + bytes(11), b"\x80\0\0\1" + bytes(8), b"\x80\0\0\0\x80" + bytes(7)]
)
@pytest.mark.parametrize("name", ["size", "mtime"])
def test_negative_numbers_and_those_above_63_bits_are_refused(name: str, field: bytes) -> None:
    with pytest.raises(FormatError):
        parse(header(**{name: field}) + END)


def test_ids_are_cut_to_32_bits() -> None:
    table = only(header(uid=b"\x80\0\0\1\0\0\0\5", gid=b"\x80\0\0\0\xff\xff\xff\xff"))
    assert (table.uid[0], table.gid[0]) == (5, 0xFFFF_FFFF)


def test_device_fields_have_to_be_octal_in_every_header_with_a_magic() -> None:
    with pytest.raises(FormatError):
        parse(header(device=b"nonsense" * 2) + END)


def test_a_wrong_checksum_is_refused() -> None:
    right = sum(header(checksum=0)) - sum(b"000000\0 ") + 8 * 0x20
    for checksum in (right - 1, right + 1, right + 65521, 0):
        with pytest.raises(FormatError, match="checksum"):
            parse(header(checksum=checksum) + END)


def test_signed_checksums_are_accepted_and_high_bytes_counted_right() -> None:
    name = b"\xe9" * 99
    made = header(name)
    unsigned = sum(made[:148]) + sum(made[156:]) + 8 * 0x20
    for checksum in (unsigned, unsigned - 256 * 99):
        assert only(header(name, checksum=checksum)).path(0) == name
    with pytest.raises(FormatError, match="checksum"):
        parse(header(name, checksum=unsigned - 256) + END)


# Content


def test_content_of_64_bytes_is_inline_and_of_65_external() -> None:
    data = header(b"a", size=64) + pad(b"a" * 64) + header(b"b", size=65) + pad(b"b" * 65) + END
    source = Source(data)
    table = parse_layer(source)
    assert list(table.kind) == [Kind.INLINE, Kind.EXTERNAL]
    assert [table.text(0), table.text(1)] == [b"a" * 64, b""]
    assert list(table.size) == [64, 65]
    assert [cut for cut in source.cuts if cut > 0] == [65]
    assert sum(map(abs, source.cuts)) == len(data)


def test_what_follows_the_end_is_inline() -> None:
    source = Source(header() + END + b"junk")
    parse_layer(source)
    assert source.cuts == [-512, -512, -512, -4]


def test_content_without_padding_is_followed_by_the_next_header() -> None:
    table = parse(header(b"a", size=1024) + bytes(1024) + header(b"b") + END)
    assert [table.path(0), table.path(1)] == [b"a", b"b"]


@pytest.mark.parametrize("typeflag", [b"1", b"2", b"3", b"5", b"6"])
def test_content_of_what_has_none_is_passed_over_in_pieces(typeflag: bytes) -> None:
    source = Source(header(b"x", typeflag, size=3 << 20, link=b"to") + bytes(3 << 20) + header(b"next") + END)
    table = parse_layer(source)
    assert [table.path(0), table.path(1)] == [b"x", b"next"]
    assert min(source.cuts) >= -(1 << 20)


# Extensions


def test_gnu_long_names_lose_one_nul() -> None:
    path, target = b"d/" * 100 + b"x", b"t" * 300
    data = long(b"L", path + b"\0") + long(b"K", target) + header(b"cut", b"2", link=b"cut", magic=GNU)
    table = only(data)
    assert (table.path(0), table.text(0)) == (path, target)
    with pytest.raises(FormatError, match="NUL"):
        parse(long(b"L", b"x\0\0") + header() + END)


def test_pax_records_win_over_long_names_and_the_header() -> None:
    records = ((b"path", b"p"), (b"linkpath", b"t"), (b"uid", b"4294967297"), (b"gid", b"+7"), (b"mtime", b"5"))
    data = long(b"L", b"gnu\0") + pax(*records) + long(b"K", b"gnu\0") + header(b"h", b"2", link=b"h", uid=9)
    table = only(data)
    assert (table.path(0), table.text(0), table.uid[0], table.gid[0], table.mtime[0]) == (b"p", b"t", 1, 7, 5)


def test_a_pax_size_decides_what_is_external_and_where_the_next_header_is() -> None:
    data = pax((b"size", b"600")) + header(b"a", size=3) + pad(b"a" * 600) + header(b"b") + END
    source = Source(data)
    table = parse_layer(source)
    assert (table.size[0], table.path(1)) == (600, b"b")
    assert 600 in source.cuts


@pytest.mark.parametrize(
    ("value", "mtime", "nsec"),
    [
        (b"17", 17, 0), (b"17.5", 17, 500_000_000), (b"17.000000001", 17, 1), (b"17.1234567899", 17, 123_456_789),
        (b"17.", 17, 0), (b"17.x", 17, 0), (b"17.5.5", 17, 0), (b"17.+5", 17, 50_000_000),
        (b"+17.5", 17, 500_000_000), (b"9223372036854775807", (1 << 63) - 1, 0),
    ],
)  # fmt: skip
def test_pax_times_have_nine_digits(value: bytes, mtime: int, nsec: int) -> None:
    table = only(pax((b"mtime", value)) + header(mtime=3))
    assert (table.mtime[0], table.nsec[0]) == (mtime, nsec)


def test_of_two_times_the_seconds_are_the_last_and_the_rest_the_first_as_in_composefs_rs() -> None:
    table = only(pax((b"mtime", b"1.25"), (b"mtime", b"2.75")) + header())
    assert (table.mtime[0], table.nsec[0]) == (2, 250_000_000)


@pytest.mark.parametrize("key", [b"uid", b"gid", b"size", b"mtime"])
@pytest.mark.parametrize(
    "value", [b"", b"-1", b"1e3", b" 1", b"1_0", b"0x1", b"18446744073709551616", b"9" * 5000, b"\xff"]
)
def test_pax_numbers_are_decimal(key: bytes, value: bytes) -> None:
    with pytest.raises(FormatError):
        parse(pax((key, value)) + header() + END)


def test_leading_zeros_do_not_count() -> None:
    assert only(pax((b"uid", b"0" * 5000 + b"7")) + header()).uid[0] == 7


@pytest.mark.parametrize("value", [b"9223372036854775808", b"1.\xc3\xa9"])
def test_times_beyond_what_images_hold_are_refused(value: bytes) -> None:
    with pytest.raises(FormatError):
        parse(pax((b"mtime", value)) + header() + END)


def test_extended_attributes_are_raw_and_the_last_of_a_name_wins() -> None:
    records = (
        (b"SCHILY.xattr.user.z", b"1"), (b"SCHILY.xattr.user.a=b", b"x"), (b"SCHILY.xattr.user.z", b"\0=\n9 a=b\n"),
        (b"LIBARCHIVE.xattr.user.c", b"eA"), (b"SCHILY.xattr.user.empty", b""),
    )  # fmt: skip
    table = parse(pax(*records) + header(b"1") + header(b"2") + pax(*records) + header(b"3") + END)
    expected = ((b"user.a", b"b=x"), (b"user.empty", b""), (b"user.z", b"\0=\n9 a=b\n"))
    assert [table.xattr_sets[index] for index in table.xattrs] == [expected, (), expected]
    assert len(table.xattr_sets) == 2


def test_global_headers_are_ignored_and_take_a_local_one_with_them() -> None:
    data = pax((b"path", b"lost")) + pax((b"path", b"global"), typeflag=b"g") + header(b"kept")
    assert only(data).path(0) == b"kept"


@pytest.mark.parametrize(
    "data",
    [
        b"garbage", b"12 path=abcd", b"5 x\n", b"99 path=a\n", b"8 path=a\n", b"10 path=a\n10 path=b\n\n", b"0 a=b\n",
        b"\n", b" 6 a=b\n", b"-6 a=b\n", b"6 \xff=b\n", b"6 a=b\n\0\0", b"x 6 a=b\n", b"4 =\n3\n",
        b"99999999999999999999 a=b\n",
    ],
)  # fmt: skip
def test_malformed_pax_records_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(pax(data=data) + header() + END)


def test_a_record_may_have_an_empty_key_and_keys_may_have_spaces() -> None:
    assert only(pax(data=b"4 =\n" + record(b"a b", b"c")) + header(b"x")).path(0) == b"x"


@pytest.mark.parametrize("extension", [long(b"L", b"a\0"), long(b"K", b"a\0"), pax((b"a", b"b"))])
def test_two_extensions_of_one_type_are_refused(extension: bytes) -> None:
    with pytest.raises(FormatError, match="two"):
        parse(extension + extension + header() + END)


@pytest.mark.parametrize("end", [END, b""])
def test_extensions_without_an_entry_are_refused(end: bytes) -> None:
    with pytest.raises(FormatError, match="extension"):
        parse(pax((b"a", b"b")) + end)


@pytest.mark.parametrize(
    "data",
    [
        header(b"x", b"S", magic=GNU),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")) + header(),
        pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"9")) + header(),
        pax((b"GNU.sparse.numblocks", b"0"), (b"GNU.sparse.size", b"1000")) + header(),
    ],
)
def test_sparse_files_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="sparse"):
        parse(data + END)


@pytest.mark.parametrize(
    "data",
    [
        header(b""),
        pax((b"path", b"")) + header(b"x"),
        long(b"L", b"\0") + header(b"x"),
        pax((b"path", b"a\0b")) + header(),
        pax((b"linkpath", b"a\0b")) + header(b"x", b"2"),
        pax((b"SCHILY.xattr.user.\0", b"")) + header(),
    ],
)
def test_empty_paths_and_nuls_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data + END)


# The end, and limits


def test_the_end_blocks_may_be_missing_between_entries_only() -> None:
    data = header(b"a", size=3) + pad(b"abc") + pax((b"mtime", b"1.5")) + header(b"b", size=100) + pad(b"b" * 100)
    complete = {0: 0, 1024: 1, len(data): 2}
    for end in (*range(0, len(data), 64), len(data)):
        if end in complete:
            assert len(parse(data[:end])) == complete[end]
        else:
            with pytest.raises(FormatError):
                parse(data[:end])


@pytest.mark.parametrize("tail", [b"", bytes(100), header(b"hidden") + END, b"x" * 512])
def test_a_single_block_of_zeros_is_refused(tail: bytes) -> None:
    with pytest.raises(FormatError):
        parse(header() + bytes(512) + tail)


def test_an_error_tells_where_its_header_is() -> None:
    data = header(b"a", size=65) + pad(b"a" * 65) + pax((b"a", b"b")) + header(b"", size=0) + END
    with pytest.raises(FormatError, match="byte 2048") as caught:
        parse(data)
    assert caught.value.facts["offset"] == 2048


def test_extension_data_is_bounded_for_an_entry_and_not_for_the_archive() -> None:
    room = MAX_EXTENSION_BYTES - 20
    full = pax(data=b"%d a=" % room + b"x" * (room - 11) + b"\n") + long(b"L", b"n" * 19 + b"\0")
    table = parse((full + header()) * 2 + END)
    assert [table.path(0), table.path(1)] == [b"n" * 19] * 2
    with pytest.raises(LimitExceededError):
        parse(full + long(b"K", b"k\0") + header() + END)
    with pytest.raises(LimitExceededError):
        parse(header(b"pax", b"g", size=MAX_EXTENSION_BYTES + 1) + END)
    parse(header(b"pax", b"g", size=MAX_EXTENSION_BYTES) + bytes(MAX_EXTENSION_BYTES) + END)


def test_a_long_name_is_bounded_at_64_kib_and_a_path_at_4096_bytes() -> None:
    assert only(long(b"L", b"x" * 65536) + pax((b"path", b"x" * 4096)) + header()).path(0) == b"x" * 4096
    for data in (
        long(b"L", b"x" * 65537) + pax((b"path", b"x")) + header(),
        long(b"L", b"x" * 4097) + header(),
        pax((b"linkpath", b"x" * 4097)) + header(b"x", b"2"),
    ):
        with pytest.raises(LimitExceededError):
            parse(data + END)


def test_extended_attributes_are_bounded_like_those_of_linux() -> None:
    name, value = b"user." + b"n" * 250, b"v" * 65536
    table = only(pax((b"SCHILY.xattr." + name, value)) + header())
    assert table.xattr_sets[1] == ((name, value),)
    for bad in ((name + b"n", value), (name, value + b"v")):
        with pytest.raises(LimitExceededError):
            parse(pax((b"SCHILY.xattr." + bad[0], bad[1])) + header() + END)


def test_a_layer_has_a_bound_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_ENTRIES", 3000)
    assert len(parse(header() * 3000 + END)) == 3000
    with pytest.raises(LimitExceededError):
        parse(header() * 3001 + END)


def test_a_size_that_no_input_has_ends_with_the_input() -> None:
    for typeflag in (b"0", b"5"):
        with pytest.raises(FormatError):
            parse(header(b"x", typeflag, size=b"\x80\0\0\0\x7f" + bytes(7)) + END)


# Others' archives


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_python_mean_here_what_they_mean_there(form: int) -> None:
    file = io.BytesIO()
    names = ["usr", "usr/" + "n" * 90, "usr/" + "d" * 60 + "/" + "n" * 90]
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.mtime = 100 * number, 0o755, number, 1_000_000 + number
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    table = parse(file.getvalue())
    assert [table.path(at).decode() for at in range(3)] == names
    assert list(table.kind) == [Kind.INLINE, Kind.EXTERNAL, Kind.EXTERNAL]
    assert (list(table.size), list(table.mtime)) == ([0, 100, 200], [1_000_000, 1_000_001, 1_000_002])


SAMPLE = (
    header(b"usr/", b"5", mode=0o755)
    + pax((b"mtime", b"1700000000.25"), (b"SCHILY.xattr.user.x", b"a\nb"))
    + header(b"usr/a", size=70) + pad(b"a" * 70)
    + long(b"L", b"usr/" + b"l" * 120 + b"\0") + header(b"usr/l", b"2", link=b"a", magic=GNU)
    + header(b"usr/h", b"1", link=b"usr/a") + header(b"usr/s", size=5) + pad(b"small") + END
)  # fmt: skip


def test_the_sample_is_sound() -> None:
    assert len(parse(SAMPLE)) == 5


@settings(max_examples=200, deadline=1000)
@given(st.data())
def test_hostile_bytes_raise_nothing_but_two_errors(data: st.DataObject) -> None:
    bad = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        block = data.draw(st.integers(0, len(bad) // 512 - 1)) * 512
        bad[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        total = sum(bad[block : block + 148]) + sum(bad[block + 156 : block + 512]) + 8 * 0x20
        if data.draw(st.booleans()):  # else the checksum is all that is tested
            bad[block + 148 : block + 156] = b"%06o\0 " % total
    source = Source(bytes(bad))
    with suppress(FormatError, LimitExceededError):
        table = parse_layer(source)
        assert LayerTable.parse(table.serialize()).serialize() == table.serialize()
        assert sum(map(abs, source.cuts)) == source.at
