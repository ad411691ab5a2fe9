"""os-release files."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot.os_release import LIMIT_BYTES, OsRelease
from composefsd.errors import FormatError, LimitExceededError


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", ""),
        ('""', ""),
        ("""''""", ""),
        ('''""''""''', ""),
        ("hello", "hello"),
        (r"\$\`\\", r"\$\`\\"),
        ('"closed"', "closed"),
        (r'"\""', '"'),
        (r'"\\"', "\\"),
        (r'"\$5"', "$5"),
        (r'"\`tick\`"', "`tick`"),
        (r"'\'", "\\"),
        ("'a' \t", "a"),
        ('"Debian GNU/Linux 13 (trixie)"', "Debian GNU/Linux 13 (trixie)"),
        ("\"a\"'b'c", "abc"),
    ],
)
def test_quotes_are_undone_as_in_upstream(written: str, value: str) -> None:
    assert OsRelease.parse(f"NAME={written}\n".encode()).first("NAME") == value


@pytest.mark.parametrize("written", ['"open', r'"open\"', '"', r'"\ '.strip(), r"'", r"'\''"])
def test_a_value_with_an_open_quote_is_none(written: str) -> None:
    assert OsRelease.parse(f"NAME={written}".encode()).first("NAME") is None


@pytest.mark.parametrize(
    ("text", "title", "version", "label"),
    [
        ("PRETTY_NAME='prettyOS'\nVERSION_ID=\"Rocky\"\nVERSION=42\nID=p", "prettyOS", "Rocky", "prettyOS Rocky"),
        ("PRETTY_NAME='prettyOS\nVERSION=42\nID=p", "p", "42", "p 42"),
        ("NAME=n\nID=p", "n", None, "n"),
        ("VERSION=1", None, "1", None),
        ("ID=first\n#ID=no\n # ID=no\nID=last\r\n", "last", None, "last"),
        (" ID=indented", None, None, None),
    ],
)
def test_names_fall_back_as_in_upstream(text: str, title: str | None, version: str | None, label: str | None) -> None:
    release = OsRelease.parse(text.encode())
    assert (release.title, release.version, release.label) == (title, version, label)


def test_the_id_stands_alone() -> None:
    assert OsRelease.parse(b"ID=debian\nNAME=Debian").id == "debian"
    assert OsRelease.parse(b"NAME=Debian").id is None


@given(st.binary(max_size=80))
def test_hostile_bytes_raise_nothing_but_format_error(data: bytes) -> None:
    with suppress(FormatError):
        _ = OsRelease.parse(data).label


@given(st.text("a\\\"'=# \n\r", max_size=40))
def test_hostile_text_never_raises(text: str) -> None:
    _ = OsRelease.parse(text.encode()).label


def test_size_is_bounded() -> None:
    with pytest.raises(LimitExceededError):
        OsRelease.parse(b"#" * (LIMIT_BYTES + 1))
