"""Unified kernel images."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real import handmade
from real.uki_signing import sign, signer

from composefsd.boot import uki
from composefsd.boot.authenticode import State
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.boot.pe import Architecture
from composefsd.boot.uki import Profile, Uki
from composefsd.digests import ObjectId
from composefsd.errors import FormatError, LimitExceededError

MakePe = Callable[..., bytes]

A, B = ObjectId(bytes(32)), ObjectId(bytes(range(32)))
VECTORS = Path(__file__).parents[2] / "vectors" / "uki"
PCRSIG, PCRPKEY = ((VECTORS / name).read_bytes() for name in ("pcrsig.json", "pcrpkey.pem"))
SBAT = b"uki,3,UKI,uki,1,https://example.org/\n"
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
        Profile("reset", None, f"composefs={B.hex} reset", own=(".cmdline", ".linux")),
    )
    assert parsed.cmdline == f"composefs={A.hex}"
    assert parsed.command_lines == (f"composefs={A.hex}", f"composefs={B.hex} reset")
    assert parsed.arguments == (ComposefsArgument(A), ComposefsArgument(B))
    kernel = parsed.section(uki.LINUX)
    assert kernel is not None
    assert data[kernel.offset :].startswith(b"kernel")


def test_a_profile_without_a_command_line_boots_with_an_empty_one(pe: MakePe) -> None:
    line = f"composefs={A.hex}"
    sections = [(b".linux", b"kernel"), (b".profile", b"ID=a"), (b".cmdline", line.encode()), (b".profile", b"ID=b")]
    assert uki.parse(pe(sections)).command_lines == (line, "")
    assert uki.parse(pe(sections[:3])).command_lines == (line,)
    assert uki.parse(pe([(b".linux", b"kernel")])).command_lines == ()


def test_a_profile_inherits_what_it_has_not_itself(pe: MakePe) -> None:
    parsed = uki.parse(
        pe(
            [
                (b".uname", b"6.1"),
                (b".pcrsig", PCRSIG),
                (b".profile", b"ID=main"),
                (b".profile", b"ID=other"),
                (b".uname", b"6.2"),
                (b".pcrsig", b"{}"),
            ]
        )
    )
    main, other = parsed.profiles
    assert (main.uname, main.pcr_signatures, main.own) == ("6.1", parsed.pcr_signatures, ())
    assert (other.uname, other.pcr_signatures, other.own) == ("6.2", (), (".uname", ".pcrsig"))
    assert parsed.unames == ("6.1", "6.2")
    assert len(parsed.pcr_signatures) == 4


def test_what_is_there_for_shim_and_tpms_is_read(pe: MakePe) -> None:
    parsed = uki.parse(pe([(b".sbat", SBAT), (b".pcrsig", PCRSIG), (b".pcrpkey", PCRPKEY)]))
    assert [(entry.component, entry.generation) for entry in parsed.sbat] == [("uki", 3)]
    assert parsed.pcr_key is not None
    assert {one.key for one in parsed.pcr_signatures} == {parsed.pcr_key.short}
    assert parsed.notes == ()


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        ([(b".uname", b"\xff")], "UKI section .uname is not UTF-8"),
        ([(b".uname", b"6.1\n\n6.2")], ".uname is not the version of a kernel"),
        ([(b".uname", b"../6.1")], ".uname is not the version of a kernel"),
        ([(b".uname", b"6" * 65)], ".uname is not the version of a kernel"),
        ([(b".sbat", b"\xff")], ".sbat is not ASCII"),
        ([(b".pcrsig", b"x")], ".pcrsig is not valid JSON"),
        ([(b".pcrpkey", b"x")], ".pcrpkey is no public key in PEM"),
        ([(b".pcrsig", b"x" * (uki.TEXT_LIMIT_BYTES + 1))], "UKI section .pcrsig has 65537 bytes"),
        ([(b".profile", b"ID=a"), (b".pcrsig", b"x")], ".pcrsig is not valid JSON"),
    ],
)
def test_what_systemd_stub_does_not_look_at_is_a_note_and_no_error(
    pe: MakePe, sections: list[tuple[bytes, bytes]], note: str
) -> None:
    parsed = uki.parse(pe([(b".linux", b"k"), *sections]))
    assert len(parsed.notes) == 1
    assert parsed.notes[0].startswith(note)


def test_a_signature_for_tpms_by_another_key_is_noted(pe: MakePe) -> None:
    strange = PCRSIG.replace(b'"pkfp":"52', b'"pkfp":"53', 1)
    parsed = uki.parse(pe([(b".pcrpkey", PCRPKEY), (b".profile", b"ID=a"), (b".pcrsig", strange)]))
    assert parsed.notes == ("a signature in .pcrsig is by another key than that in .pcrpkey",)


def test_sections_of_which_only_the_first_counts_are_noted(pe: MakePe) -> None:
    sections = [(b".cmdline", b"a"), (b".cmdline", b"b"), (b".dtbauto", b"x"), (b".dtbauto", b"y")]
    assert uki.parse(pe(sections)).notes == ("it has 2 sections .cmdline, of which the first counts",)


def test_signatures_are_read() -> None:
    (found,) = uki.parse(sign(handmade.uki("quiet"), signer())).signatures
    assert (found.state, found.subject) == (State.GOOD, "CN=somebody")


def test_a_section_of_zeros_beyond_its_raw_size_is_read_from_the_file_alone(pe: MakePe) -> None:
    data = bytearray(pe([(b".cmdline", b"quiet"), (b".linux", b"k")]))
    table = data.index(b".cmdline")
    data[table + 8 : table + 12] = (1 << 31).to_bytes(4, "little")  # the virtual size
    assert uki.parse(bytes(data)).cmdline == "quiet"


def test_profiles_and_all_text_together_are_bounded(pe: MakePe) -> None:
    with pytest.raises(LimitExceededError, match="101 profiles"):
        uki.parse(pe([(b".profile", b"ID=a")] * (uki.PROFILES_LIMIT + 1)))
    profile = [(b".profile", b"ID=a"), (b".cmdline", b"a" * uki.TEXT_LIMIT_BYTES)]
    with pytest.raises(LimitExceededError, match="too much text"):
        uki.parse(pe(profile * 9))


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
            st.sampled_from(
                [
                    b".cmdline",
                    b".osrel",
                    b".uname",
                    b".profile",
                    b".linux",
                    b".sbat",
                    b".pcrsig",
                    b".pcrpkey",
                    b"\xff",
                ]
            ),
            st.one_of(st.binary(max_size=12), st.sampled_from([b"ID=a\n", b"composefs=a", PCRSIG, PCRPKEY, SBAT])),
        ),
        max_size=6,
    )
)
def test_hostile_sections_raise_nothing_but_format_error(pe: MakePe, sections: list[tuple[bytes, bytes]]) -> None:
    with suppress(FormatError):
        parsed = uki.parse(pe(sections))
        assert len(parsed.profiles) == sum(name == b".profile" for name, _ in sections)
        _ = parsed.arguments


def _hostile() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((VECTORS / "hostile.json").read_bytes())
    return entries


@pytest.mark.parametrize("entry", _hostile(), ids=lambda entry: entry["what"])
def test_files_of_the_hostile_corpus_are_told_apart(entry: dict[str, Any]) -> None:
    data = bytearray((VECTORS / "twice.addon.efi").read_bytes())
    data = data[: entry.get("size", len(data))]
    for offset, change in entry["changes"]:
        data[offset : offset + len(change) // 2] = bytes.fromhex(change)
    if "problem" in entry:
        with pytest.raises((FormatError, LimitExceededError), match=re.escape(entry["problem"])):
            uki.parse(bytes(data))
        return
    parsed = uki.parse(bytes(data))
    assert [one.state.value for one in parsed.signatures] == entry["states"]
    assert list(parsed.notes) == entry["notes"]
