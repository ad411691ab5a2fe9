"""Authenticode signatures: which fit the file, and who made them."""

import hashlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import NameOID
from real import handmade, uki_signing
from real.uki_signing import Recipe, Signer, entry, pkcs7, sign, signer, with_table

from composefsd.boot import authenticode, image_digest
from composefsd.boot.authenticode import Signature, State
from composefsd.boot.pe import PortableExecutable
from composefsd.boot.pkcs7 import NAME_LIMIT

VECTORS = Path(__file__).parents[2] / "vectors" / "uki"
LIMIT = 1 << 30
MODULE = handmade.pe_file({".cmdline": b"debug", ".linux": b"k" * 3000})


def read(data: bytes, limit_bytes: int = LIMIT) -> tuple[Signature, ...]:
    executable = PortableExecutable.parse(source(data), len(data))
    return authenticode.read(source(data), len(data), executable, limit_bytes)


def source(data: bytes) -> Any:
    return lambda offset, count: data[offset : offset + count]


def fingerprint(who: Signer) -> str:
    return hashlib.sha256(who.certificate).hexdigest()


def test_signatures_of_sbsign_are_good_and_name_their_signers() -> None:
    found = read((VECTORS / "twice.addon.efi").read_bytes())
    assert [(one.state, one.subject, one.issuer, one.hash_algorithm) for one in found] == [
        (State.GOOD, "CN=first key", "CN=first key", "sha256"),
        (State.GOOD, "C=DE, O=Some Body, CN=second key", "C=DE, O=Some Body, CN=second key", "sha256"),
    ]
    assert [one.fingerprint for one in found] == [
        "5f84c95ee23c4ea152f946d5d4587b6125d9589d5172a654e4fc2cd586c71f27",
        "1381aa3abebe90b4aa8a92e4f58e799cccdbb87db2a66d5bca303ce396a1bb00",
    ]


def test_a_signature_of_osslsigncode_with_sha384_is_good() -> None:
    (found,) = read((VECTORS / "sha384.addon.efi").read_bytes())
    assert (found.state, found.hash_algorithm, found.problem) == (State.GOOD, "sha384", "")


def test_a_file_without_a_certificate_table_has_no_signatures() -> None:
    assert read(MODULE) == ()


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_the_signature_of_a_key_is_good_and_names_its_certificate(kind: str) -> None:
    who = signer(f"one with {kind}", kind)
    (found,) = read(sign(MODULE, who))
    assert found == Signature(
        State.GOOD, "", f"CN=one with {kind}", f"CN=one with {kind}", fingerprint(who), "sha256"
    )


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
def test_the_digest_of_the_image_is_that_of_the_file_as_it_lies(algorithm: str) -> None:
    data = sign(MODULE, signer())
    executable = PortableExecutable.parse(source(data), len(data))
    found = image_digest.compute(source(data), len(data), executable, [algorithm])
    assert found == {algorithm: uki_signing.image_digest(MODULE, algorithm)}


def test_a_signature_without_signed_attributes_is_over_the_content() -> None:
    assert read(sign(MODULE, signer(), recipes=[Recipe(attributes=False)]))[0].state is State.GOOD


def test_checksum_and_directory_entry_are_not_covered_and_all_else_is() -> None:
    data = sign(MODULE, signer())
    signing = PortableExecutable.parse(source(data), len(data)).signing
    assert signing is not None
    checksum = range(signing.checksum_at, signing.checksum_at + 4)
    # after the headers of a PE file, what is not one of their fields, and the content of the sections
    for at in (*checksum, 2, signing.checksum_at - 8, signing.directory_at - 1, signing.headers_bytes - 1, 600):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        expected = State.GOOD if at in checksum else State.DOES_NOT_FIT
        assert read(changed)[0].state is expected, at


def test_each_signature_is_told_by_itself() -> None:
    first, second = signer("first"), signer("second", "ec")
    found = read(
        sign(MODULE, first, second, first, recipes=[Recipe(), Recipe(signers=2), Recipe(algorithm="sha512")])
    )
    assert [(one.state, one.hash_algorithm) for one in found] == [
        (State.GOOD, "sha256"),
        (State.MALFORMED, ""),
        (State.GOOD, "sha512"),
    ]


@pytest.mark.parametrize(
    ("recipe", "state", "problem"),
    [
        (Recipe(signers=0), State.MALFORMED, "0 signers"),
        (Recipe(signers=2), State.MALFORMED, "2 signers"),
        (Recipe(with_certificate=False), State.MALFORMED, "certificate of its signer is not in it"),
        (Recipe(content_type="1.2.3.4"), State.MALFORMED, "does not sign an executable"),
        (Recipe(signed_type="1.2.3.4"), State.MALFORMED, "signed attributes are not those"),
        (Recipe(signer_algorithm="sha512"), State.MALFORMED, "one hash algorithm for the image"),
        (Recipe(attribute_digest=bytes(32)), State.BAD, "another digest"),
        (Recipe(method="rsassa_pss"), State.UNSUPPORTED, "rsassa_pss"),
        (Recipe(method="sha256_dsa"), State.UNSUPPORTED, "dsa"),
        (Recipe(trailer=b"x"), State.MALFORMED, "behind the PKCS#7"),
    ],
)
def test_what_is_wrong_with_a_signature_is_told_in_words(recipe: Recipe, state: State, problem: str) -> None:
    (found,) = read(sign(MODULE, signer(), recipes=[recipe]))
    assert found.state is state
    assert problem in found.problem


def test_a_signature_of_another_file_does_not_fit() -> None:
    other = entry(pkcs7(signer(), bytes(32)))
    (found,) = read(with_table(MODULE, other))
    assert (found.state, found.subject) == (State.DOES_NOT_FIT, "CN=somebody")
    assert "other content" in found.problem


def test_a_signature_by_another_key_than_that_of_the_certificate_is_bad() -> None:
    liar = replace(signer("liar"), certificate=signer("victim").certificate)
    (found,) = read(sign(MODULE, liar))
    assert (found.state, found.subject) == (State.BAD, "CN=victim")


def test_a_name_is_safe_to_print_and_bounded() -> None:
    (found,) = read(sign(MODULE, signer("\x1b[31m" + "x" * 50)))
    assert found.subject.startswith("CN=\ufffd[31mxxx")
    assert found.subject.isprintable()
    assert len(found.subject) <= NAME_LIMIT


def good_entry() -> bytes:
    return entry(pkcs7(signer(), uki_signing.image_digest(MODULE)))


@pytest.mark.parametrize(
    ("table", "states", "problem"),
    [
        (entry(b"x" * 16, revision=0x0100), [State.UNSUPPORTED], "revision 0x0100"),
        (entry(b"x" * 16, kind=0x0EF1), [State.UNSUPPORTED], "no PKCS#7"),
        (entry(b"x" * 16, length=7), [State.MALFORMED], "length that cannot be"),
        (entry(b"x" * 16, length=8), [State.MALFORMED], "length that cannot be"),
        (entry(b"x" * 16, length=0xFFFFFFFF), [State.MALFORMED], "length that cannot be"),
        (entry(b"x" * 16), [State.MALFORMED], "no PKCS#7 signature"),
        (entry(b"\x30\x80" * 2000), [State.MALFORMED], "no PKCS#7 signature"),
        (b"\xff" * 4, [State.MALFORMED], "length that cannot be"),
        (entry(b"x" * (authenticode.ENTRY_LIMIT_BYTES + 1)), [State.UNSUPPORTED], "a signature of 65537 bytes"),
        (bytes(authenticode.TABLE_LIMIT_BYTES + 8), [State.UNSUPPORTED], "certificate table has"),
    ],
)
def test_tables_that_are_odd_are_told_in_words(table: bytes, states: list[State], problem: str) -> None:
    found = read(with_table(MODULE, table))
    assert [one.state for one in found] == states
    assert problem in found[-1].problem


@pytest.mark.parametrize("rest", [entry(b"x" * 16, length=100), bytes(8), bytes(16), b"\x09\0\0\0"])
def test_nothing_in_a_table_counts_that_its_entries_do_not_fill_as_firmware_has_it(rest: bytes) -> None:
    found = read(with_table(MODULE, good_entry() + rest))
    assert [one.state for one in found] == [State.MALFORMED, State.MALFORMED]
    assert found[0].subject == "CN=somebody"
    assert "length that cannot be" in found[0].problem


def test_the_padding_of_the_last_entry_belongs_to_the_table() -> None:
    for name in ("some", "body", "else", "other", "names"):
        padded = entry(pkcs7(signer(name), uki_signing.image_digest(MODULE)))
        length = int.from_bytes(padded[:4], "little")
        (*_, last) = read(with_table(MODULE, padded[:length]))
        assert (last.state is State.GOOD) is (length % 8 == 0)
        assert read(with_table(MODULE, padded))[0].state is State.GOOD


@pytest.mark.parametrize("named", [("sha1",), ("sha1", "sha256"), ("sha256", "sha1"), ()])
def test_the_algorithm_has_to_stand_where_firmware_looks_for_it(named: tuple[str, ...]) -> None:
    made = pkcs7(signer(), uki_signing.image_digest(MODULE), Recipe(listed=named))
    (found,) = read(with_table(MODULE, entry(made)))
    assert found.state is State.MALFORMED
    assert "where firmware looks" in found.problem


def test_a_table_of_zeros_has_no_signatures() -> None:
    assert read(with_table(MODULE, bytes(64))) == ()


def test_the_number_of_signatures_is_bounded() -> None:
    found = read(with_table(MODULE, entry(b"x") * (authenticode.ENTRIES_LIMIT + 1)))
    assert len(found) == authenticode.ENTRIES_LIMIT + 1
    assert "more than 16" in found[-1].problem


def test_a_table_in_the_midst_of_the_file_is_malformed() -> None:
    (found,) = read(with_table(MODULE, good_entry() + bytes(8), size_bytes=len(good_entry())))
    assert (found.state, found.problem) == (State.MALFORMED, "there is something behind the certificate table")


def test_a_table_that_is_not_aligned_is_malformed() -> None:
    data = bytearray(with_table(MODULE, good_entry()))
    at = uki_signing.directory_at(MODULE)
    start = int.from_bytes(data[at : at + 4], "little") + 4
    data[at : at + 8] = start.to_bytes(4, "little") + (len(data) - start).to_bytes(4, "little")
    (found,) = read(bytes(data))
    assert (found.state, found.problem) == (
        State.MALFORMED,
        "the certificate table is not at a multiple of 8 bytes",
    )


def patched_section(number: int, raw_bytes: int, offset: int) -> bytes:
    data = bytearray(sign(MODULE, signer()))
    table = data.index(b".cmdline") + 40 * number
    data[table + 16 : table + 24] = raw_bytes.to_bytes(4, "little") + offset.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("number", "raw_bytes", "offset"),
    [(0, 1024, 512), (0, 512, 0), (1, 0xFFFFFFFF, 1024), (1, len(MODULE), 1024)],
    ids=["overlap", "in the headers", "huge", "in the table"],
)
def test_a_file_whose_sections_overlap_is_not_hashed(number: int, raw_bytes: int, offset: int) -> None:
    (found,) = read(patched_section(number, raw_bytes, offset))
    assert found.state is State.MALFORMED
    assert "overlap" in found.problem


def test_headers_of_an_impossible_size_are_malformed() -> None:
    data = bytearray(sign(MODULE, signer()))
    at = uki_signing.directory_at(MODULE) - 4 * 8 - 112 + 60
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (found,) = read(bytes(data))
    assert found.state is State.MALFORMED
    assert "headers" in found.problem


def test_no_more_is_read_than_is_allowed() -> None:
    (found,) = read(sign(MODULE, signer()), limit_bytes=1000)
    assert (found.state, found.subject) == (State.UNSUPPORTED, "CN=somebody")


def test_a_large_file_is_hashed_once_in_pieces() -> None:
    data = sign(handmade.pe_file({".linux": bytes(5 << 20)}), signer("a"), signer("b"), recipes=[Recipe(), Recipe()])
    counts = []

    def counting(offset: int, count: int) -> bytes:
        counts.append(count)
        return data[offset : offset + count]

    executable = PortableExecutable.parse(counting, len(data))
    assert {one.state for one in authenticode.read(counting, len(data), executable, LIMIT)} == {State.GOOD}
    assert max(counts) <= 1 << 20
    assert sum(counts) < len(data) + 100_000


@pytest.mark.parametrize("name", ["twice.addon.efi", "sha384.addon.efi"])
def test_mutated_signatures_raise_nothing(name: str) -> None:
    data = (VECTORS / name).read_bytes()
    executable = PortableExecutable.parse(source(data), len(data))
    assert executable.signing is not None
    start, chance, states = executable.signing.offset, random.Random(5), set()
    for _ in range(600):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 6))):
            at, length = chance.randrange(start, len(data)), chance.choice((1, 1, 1, 20))
            changed[at : at + length] = chance.randbytes(min(length, len(data) - at))
        found = authenticode.read(source(bytes(changed)), len(data), executable, LIMIT)
        states |= {one.state for one in found}
        assert all(one.problem or one.state is State.GOOD for one in found)
    assert states >= {State.GOOD, State.BAD, State.MALFORMED, State.UNSUPPORTED}


BEHIND_FENCES = """
import sys
from pathlib import Path
from composefsd.operations import imaging
from composefsd.boot import uki
from composefsd.workers import sandbox
files = [Path(name).read_bytes() for name in sys.argv[1:]]
sandbox.enter()
for data in files:
    print(*(one.state.value for one in uki.parse(data).signatures))
"""


def test_a_worker_behind_its_fences_can_check_signatures(tmp_path: Path) -> None:
    mailed = tmp_path / "mailed.efi"  # names with an address, as openssl asks for one, have encodings of their own
    mailed.write_bytes(sign(MODULE, signer("me@example.org", attribute=NameOID.EMAIL_ADDRESS)))
    named = tmp_path / "named.efi"
    named.write_bytes(sign(MODULE, signer("xn--bcher-kva", attribute=NameOID.DOMAIN_COMPONENT)))
    names = [str(VECTORS / name) for name in ("twice.addon.efi", "sha384.addon.efi")] + [str(mailed), str(named)]
    command = [sys.executable, "-I", "-c", BEHIND_FENCES, *names]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("good good\ngood\ngood\ngood\n", "")
