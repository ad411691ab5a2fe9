"""SBAT: components and their generations."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import sbat
from composefsd.boot.sbat import SbatEntry
from composefsd.errors import FormatError, LimitExceededError

LINE = b"systemd-stub,1,The systemd Developers,systemd,257,https://systemd.io/\n"


def test_lines_are_components_and_generations() -> None:
    found = sbat.parse(b"sbat,1,SBAT Version,sbat,1,https://example.org/SBAT.md\r\n\n" + LINE)
    assert [(entry.component, entry.generation) for entry in found] == [("sbat", 1), ("systemd-stub", 1)]
    assert found[1] == SbatEntry("systemd-stub", 1, "The systemd Developers", "systemd", "257", "https://systemd.io/")


def test_no_text_is_no_entries_and_further_fields_are_passed_over() -> None:
    assert sbat.parse(b"") == ()
    assert sbat.parse(b"a,12,b,c,d,e,more,\n")[0].generation == 12


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"a,1,b,c,d\n", "line 1: there are not six fields"),
        (LINE + b"a,1,,c,d,e\n", "line 2: there are not six fields"),
        (b"a,x,b,c,d,e\n", "generation is not a number"),
        (b"a,-1,b,c,d,e\n", "generation is not a number"),
        (b"a,1234567890,b,c,d,e\n", "generation is not a number"),
        (b"a,1,b\0,c,d,e\n", "no text"),
        (b"a,1," + b"b" * 201 + b",c,d,e\n", "too long"),
        (b"\xc3\xa4,1,b,c,d,e\n", "not ASCII"),
    ],
)
def test_lines_that_shim_would_refuse_are_refused(data: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        sbat.parse(data)


def test_the_number_of_lines_is_bounded() -> None:
    with pytest.raises(LimitExceededError):
        sbat.parse(LINE * (sbat.ENTRIES_LIMIT + 1))


@given(st.lists(st.binary(max_size=8), max_size=12))
def test_hostile_bytes_raise_nothing_but_format_error(fields: list[bytes]) -> None:
    with suppress(FormatError):
        for entry in sbat.parse(b",".join(fields)):
            assert entry.component
