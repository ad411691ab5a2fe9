"""PE files."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefsd.boot import pe as pe_module
from composefsd.boot.pe import Architecture, PortableExecutable, Section
from composefsd.errors import FormatError, LimitExceededError

MakePe = Callable[..., bytes]

RELAXED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _parse(data: bytes) -> PortableExecutable:
    return PortableExecutable.parse(lambda offset, count: data[offset : offset + count], len(data))


@pytest.mark.parametrize("magic", [0x10B, 0x20B])
def test_sections_are_found_with_the_bytes_that_come_from_the_file(pe: MakePe, magic: int) -> None:
    data = pe([(b".text", b"x" * 600), (b".cmdline", b"quiet")], magic=magic)
    parsed = _parse(data)
    assert [(section.name, section.size_bytes) for section in parsed.sections] == [(b".text", 600), (b".cmdline", 5)]
    at = parsed.sections[1].offset
    assert data[at : at + 5] == b"quiet"
    assert not parsed.signed


@pytest.mark.parametrize(
    ("machine", "architecture"), [(0x8664, Architecture.X64), (0xAA64, Architecture.AA64), (0x14C, Architecture.IA32)]
)
def test_the_machine_type_tells_the_architecture(pe: MakePe, machine: int, architecture: Architecture) -> None:
    assert _parse(pe([], machine=machine)).architecture is architecture


@pytest.mark.parametrize("magic", [0x10B, 0x20B])
def test_certificates_are_seen(pe: MakePe, magic: int) -> None:
    assert _parse(pe([(b".text", b"x")], magic=magic, certificates=b"cert" * 4)).signed


def test_a_raw_size_below_the_virtual_one_ends_the_content(pe: MakePe) -> None:
    data = bytearray(pe([(b".cmdline", b"quiet rw")]))
    table = data.index(b".cmdline")
    data[table + 16 : table + 20] = (5).to_bytes(4, "little")
    (section,) = _parse(bytes(data)).sections
    assert section == Section(b".cmdline", section.offset, 5, 5)


def _changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (0, b"ZM", "not a PE file"),
        (0x3C, b"\x20\0\0\0", "not a PE file"),
        (0x3C, b"\xff\xff\xff\xff", "cut short"),
        (64, b"NE", "no PE header"),
        (68, b"\x34\x12", "unknown machine type 0x1234"),
        (84, b"\xff\xff", "cut short"),
        (84, b"\0\0", "optional header"),
        (88, b"\x0c\x01", "optional header"),
    ],
)
def test_broken_headers_are_told_apart(pe: MakePe, at: int, value: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        _parse(_changed(pe([(b".text", b"x")]), at, value))


def test_a_section_beyond_the_end_is_refused_by_its_name(pe: MakePe) -> None:
    data = pe([(b".linux", b"x" * 512)])
    with pytest.raises(FormatError, match=r"\.linux"):
        _parse(data[:-1])


def test_certificates_beyond_the_end_are_refused(pe: MakePe) -> None:
    with pytest.raises(FormatError, match="certificate table"):
        _parse(pe([(b".text", b"x")], certificates=b"12345678")[:-1])


def test_the_number_of_sections_is_bounded(pe: MakePe) -> None:
    with pytest.raises(LimitExceededError):
        _parse(pe([(b".dtb", b"")] * (pe_module.SECTION_LIMIT + 1)))


@RELAXED
@given(cut=st.integers(0, 1100), flips=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4))
def test_hostile_files_raise_nothing_but_format_and_limit_errors(
    pe: MakePe, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(pe([(b".text", b"x"), (b".cmdline", b"y")], certificates=b"12345678"))
    for at, value in flips:
        data[at] = value
    with suppress(FormatError, LimitExceededError):
        for section in _parse(bytes(data[:cut])).sections:
            assert section.offset + section.size_bytes <= cut or not section.size_bytes
