"""Unified kernel images."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefsd.boot import uki
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.boot.pe import Architecture
from composefsd.boot.uki import Profile, Uki
from composefsd.digests import ObjectId
from composefsd.errors import FormatError, LimitExceededError

MakePe = Callable[..., bytes]

A, B = ObjectId(bytes(32)), ObjectId(bytes(range(32)))
OSREL = b'PRETTY_NAME="Some OS"\nVERSION_ID=7\nID=some\n'


def test_what_a_uki_says_about_itself(pe: MakePe) -> None:
    data = pe(
        [
            (b".osrel", OSREL),
            (b".cmdline", f"composefs={A.hex} rw\0\0".encode()),
            (b".uname", b"6.12.1"),
            (b".linux", b"kernel"),
            (b".initrd", b"initrd"),
        ],
        certificates=b"12345678",
    )
    parsed = uki.parse(data)
    assert parsed.architecture is Architecture.X64
    assert parsed.signed
    assert parsed.cmdline == f"composefs={A.hex} rw"
    assert parsed.os_release is not None
    assert (parsed.os_release.title, parsed.os_release.version) == ("Some OS", "7")
    assert parsed.uname == "6.12.1"
    assert parsed.profiles == ()
    assert parsed.arguments == (ComposefsArgument(A),)
    assert parsed.has_kernel
    kernel = parsed.section(uki.LINUX)
    assert kernel is not None
    assert data[kernel.offset : kernel.offset + kernel.size_bytes] == b"kernel"


def test_an_addon_has_no_kernel(pe: MakePe) -> None:
    parsed = uki.parse(pe([(b".cmdline", b"quiet")]))
    assert not parsed.has_kernel
    assert parsed.command_lines == ("quiet",)
    assert parsed.os_release is None


def test_profiles_have_their_own_command_line_or_that_of_the_base(pe: MakePe) -> None:
    data = pe(
        [
            (b".linux", b"kernel"),
            (b".cmdline", f"composefs={A.hex}".encode()),
            (b".cmdline", b"ignored"),
            (b".profile", b"ID=main\nTITLE='Main one'\n"),
            (b".profile", b"ID=reset\n"),
            (b".cmdline", f"composefs={B.hex} reset".encode()),
            (b".linux", b"other"),
        ]
    )
    parsed = uki.parse(data)
    assert parsed.profiles == (
        Profile("main", "Main one", f"composefs={A.hex}"),
        Profile("reset", None, f"composefs={B.hex} reset"),
    )
    assert parsed.cmdline == f"composefs={A.hex}"
    assert parsed.command_lines == (f"composefs={A.hex}", f"composefs={B.hex} reset")
    assert parsed.arguments == (ComposefsArgument(A), ComposefsArgument(B))
    kernel = parsed.section(uki.LINUX)
    assert kernel is not None
    assert data[kernel.offset :].startswith(b"kernel")


def test_sections_of_a_profile_do_not_count_for_the_base(pe: MakePe) -> None:
    parsed = uki.parse(pe([(b".profile", b"ID=x"), (b".cmdline", b"x"), (b".linux", b"k")]))
    assert parsed.cmdline is None
    assert not parsed.has_kernel
    assert parsed.command_lines == ("x",)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (b".cmdline", b"\xff", "not UTF-8"),
        (b".cmdline", b"a\0b", "NUL inside"),
        (b".osrel", b"\xff", "not UTF-8"),
        (b".profile", b"\xff", "not UTF-8"),
    ],
)
def test_sections_that_are_no_text_are_refused(pe: MakePe, name: bytes, content: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        uki.parse(pe([(name, content)]))


def test_text_sections_are_bounded(pe: MakePe) -> None:
    with pytest.raises(LimitExceededError, match=r"\.cmdline"):
        uki.parse(pe([(b".cmdline", b"a" * (uki.TEXT_LIMIT_BYTES + 1))]))


def test_malformed_arguments_are_refused_when_asked_for(pe: MakePe) -> None:
    parsed = uki.parse(pe([(b".cmdline", b"composefs=nonsense")]))
    with pytest.raises(FormatError):
        _ = parsed.arguments


def test_no_more_than_headers_and_texts_are_read(pe: MakePe) -> None:
    data = pe([(b".linux", b"k" * (1 << 20)), (b".cmdline", b"quiet")])
    counts = []

    def source(offset: int, count: int) -> bytes:
        counts.append(count)
        return data[offset : offset + count]

    assert Uki.read(source, len(data)).cmdline == "quiet"
    assert sum(counts) < 1000


def test_a_view_is_taken_without_a_copy(pe: MakePe) -> None:
    assert uki.parse(memoryview(pe([(b".cmdline", b"quiet")]))).cmdline == "quiet"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sections=st.lists(
        st.tuples(
            st.sampled_from([b".cmdline", b".osrel", b".uname", b".profile", b".linux", b"", b"12345678"]),
            st.one_of(st.binary(max_size=12), st.just(b"ID=a\n"), st.just(b"composefs=a")),
        ),
        max_size=6,
    )
)
def test_hostile_sections_raise_nothing_but_format_error(pe: MakePe, sections: list[tuple[bytes, bytes]]) -> None:
    with suppress(FormatError):
        parsed = uki.parse(pe(sections))
        assert len(parsed.profiles) == sum(name == b".profile" for name, _ in sections)
        _ = parsed.arguments
