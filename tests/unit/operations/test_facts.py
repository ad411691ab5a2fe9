"""What is known of an image: it survives the way between processes, and hostile values are refused."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import handmade
from real.uki_signing import sign, signer

from composefsd import verity
from composefsd.digests import Algorithm, OciDigest
from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.operations.facts import (
    BootFact,
    DirectoryFact,
    Facts,
    FileFact,
    ProfileFact,
    SignatureFact,
    add_reference,
    gather,
    load_facts,
    load_references,
    save_facts,
)
from composefsd.tree.table import ROOT, Stat, Tree

VECTORS = Path(__file__).parents[2] / "vectors" / "uki"
IMAGE = OciDigest("sha256", "ab" * 32)
DIRECTORY, FILE = Stat(0o755, 0, 0, 0, 0), Stat(0o644, 0, 0, 0, 0)
FACTS = Facts(
    title="Debian GNU/Linux 13",
    os_version="13",
    os_id="debian",
    resources=(
        BootFact(
            "uki",
            "/boot/a.efi",
            "6.1",
            (FileFact("/boot/a.efi", 9, "ab" * 64),),
            claims=("cd",),
            profiles=(ProfileFact("a", "A", "quiet", "6.1", (".cmdline",)),),
            signatures=(SignatureFact("good", "CN=a", "CN=b", "ab" * 32, "sha256", ""),),
            sbat=("uki 1",),
            pcr_signatures=("sha256, PCR 11",),
            pcr_key="cd" * 32,
            notes=("odd",),
        ),
    ),
    reasons=("because",),
    etc=DirectoryFact(0o700, 1, 2, "system_u:object_r:etc_t:s0"),
)


def wire(facts: Facts) -> Any:
    return json.loads(json.dumps(asdict(facts)))


def test_facts_come_back_from_the_wire_as_they_were() -> None:
    assert Facts.from_wire(wire(FACTS)) == FACTS


def test_facts_are_kept_and_found_again(tmp_path: Path) -> None:
    save_facts(tmp_path, IMAGE, FACTS)
    assert load_facts(tmp_path, IMAGE) == FACTS
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"sha256_{IMAGE.hex}.json"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version":2,"facts":{}}', '{"version":1,"facts":7}', "\0"])
def test_a_file_that_cannot_be_used_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    save_facts(tmp_path, IMAGE, FACTS)
    next((tmp_path / "images").iterdir()).write_text(content)
    assert load_facts(tmp_path, IMAGE) is None


def test_where_an_image_came_from_is_remembered_the_last_first(tmp_path: Path) -> None:
    for reference in ("oci:/a:1", "oci:/b:1", "oci:/a:1", *(f"oci:/c:{number}" for number in range(14))):
        add_reference(tmp_path, IMAGE, reference)
    references = load_references(tmp_path, IMAGE)
    assert references[:2] == ("oci:/c:13", "oci:/c:12")
    assert references[14:] == ("oci:/a:1", "oci:/b:1")
    add_reference(tmp_path, IMAGE, "oci:/new")
    assert "oci:/b:1" not in load_references(tmp_path, IMAGE)


def test_a_state_directory_that_cannot_be_written_loses_facts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file where the folder belongs")
    save_facts(tmp_path, IMAGE, FACTS)
    add_reference(tmp_path, IMAGE, "oci:/a")
    assert load_facts(tmp_path, IMAGE) is None
    assert load_references(tmp_path, IMAGE) == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(asdict(FACTS))), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(asdict(FACTS))), VALUES))
def test_hostile_values_raise_nothing_but_our_errors(changes: dict[str, Any]) -> None:
    with suppress(FormatError, LimitExceededError):
        Facts.from_wire(wire(FACTS) | changes)


def tree_of(files: dict[str, bytes]) -> tuple[Tree, dict[bytes, bytes]]:
    """A tree with these files inline or, over 64 bytes, as objects; and the objects."""
    tree, objects = Tree(Algorithm.SHA256), {}
    for path, content in files.items():
        inode = ROOT
        *folders, name = path.encode().split(b"/")
        for folder in folders:
            found = tree.lookup(inode, folder)
            if found is None:
                found = tree.add_directory(DIRECTORY)
                tree.insert(inode, folder, found)
            inode = found
        if len(content) > 64:
            digest = verity.compute(content, Algorithm.SHA256).digest
            objects[digest] = content
            tree.insert(inode, name, tree.add_external(FILE, len(content), digest))
        else:
            tree.insert(inode, name, tree.add_inline(FILE, content))
    tree.freeze()
    return tree, objects


def gathered(files: dict[str, bytes], boot_error: str = "") -> Facts:
    tree, objects = tree_of(files)

    def make_boot() -> Tree:
        if boot_error:
            raise NotBootableError(boot_error)
        return tree

    def read_range(digest: bytes, offset: int, count: int) -> bytes:
        return objects[digest][offset : offset + count]

    return Facts.from_wire(
        json.loads(json.dumps(gather(tree, lambda digest, _: objects[digest], read_range, make_boot)))
    )


KERNEL = {"usr/lib/modules/6.1/vmlinuz": b"k" * 100, "usr/lib/modules/6.1/initramfs.img": b"i" * 100}
OS_RELEASE = {"usr/lib/os-release": b'ID=debian\nPRETTY_NAME="Debian 13"\nVERSION_ID=13\n'}


def test_an_image_with_kernel_and_initrd_is_bootable() -> None:
    facts = gathered(KERNEL | OS_RELEASE)
    assert (facts.title, facts.os_id, facts.os_version) == ("Debian 13", "debian", "13")
    assert facts.bootable
    assert [file.path for file in facts.resources[0].files] == [f"/{path}" for path in sorted(KERNEL, reverse=True)]


def test_a_uki_tells_its_command_line_and_the_digest_it_claims() -> None:
    uki = handmade.uki(f"composefs.digest=v1-sha256-12:{'ab' * 32} quiet")
    facts = gathered({"boot/EFI/Linux/os.efi": uki})
    assert facts.claimed_digests == {"ab" * 32}
    assert facts.resources[0].command_lines == (f"composefs.digest=v1-sha256-12:{'ab' * 32} quiet",)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no UKI under /boot/EFI/Linux"),
        ({"usr/lib/modules/6.1/vmlinuz": b"k" * 100}, "has no initramfs.img"),
        ({"boot/EFI/Linux/os.efi": b"no PE at all" * 10}, "/boot/EFI/Linux/os.efi: "),
    ],
)
def test_what_cannot_boot_says_why(files: dict[str, bytes], reason: str) -> None:
    facts = gathered(files)
    assert not facts.bootable
    assert any(reason in line for line in facts.reasons)


def test_an_image_whose_boot_image_cannot_be_made_is_not_bootable() -> None:
    assert gathered(KERNEL, "no /boot\nno /sysroot").reasons == ("no /boot", "no /sysroot")


def test_all_reasons_are_told_at_once() -> None:
    files = {
        "boot/EFI/Linux/a.efi": b"no PE at all" * 10,
        "boot/EFI/Linux/b.efi": handmade.uki("composefs=x"),
        "boot/loader/entries/c.conf": b"linux /none\ninitrd /nothing\n",
        "boot/loader/entries/d.conf": b"title only\n",
        "boot/aboot-1.img": b"neither of both",
        "usr/lib/modules/6.1/vmlinuz": b"k" * 100,
    }
    reasons = gathered(files, "no /sysroot").reasons
    assert reasons[0].startswith("the image has no UKI")
    for text in (
        "a.efi: not a PE",
        "b.efi: not an fs-verity digest",
        "c.conf: the image has no file /none",
        "/nothing",
        "d.conf: ",
    ):
        assert sum(text in reason for reason in reasons) == 1, (text, reasons)
    for text in ("aboot-1.img: Android", "aboot-1.img: the DOS", "vmlinuz has no initramfs.img", "no /sysroot"):
        assert sum(text in reason for reason in reasons) == 1, (text, reasons)


def test_an_entry_with_a_kernel_and_an_initrd_makes_an_image_bootable() -> None:
    files = {"boot/loader/entries/c.conf": b"linux /vmlinuz\ninitrd /initrd\n", "vmlinuz": b"k", "initrd": b"i"}
    assert gathered(files).bootable


def test_what_a_uki_says_is_told_in_words() -> None:
    sections = {
        ".osrel": b"NAME=Some\n",
        ".cmdline": b"quiet",
        ".uname": b"6.1",
        ".sbat": b"uki,3,UKI,uki,1,https://example.org/\n",
        ".pcrsig": (VECTORS / "pcrsig.json").read_bytes(),
        ".pcrpkey": (VECTORS / "pcrpkey.pem").read_bytes(),
        ".linux": b"k" * 100,
        ".profile": b"ID=main\nTITLE=Main one\n",
    }
    signed = sign(handmade.pe_file(sections), signer())
    (fact,) = gathered({"boot/EFI/Linux/os.efi": signed}).resources
    details = fact.details
    fingerprint = hashlib.sha256(signer().certificate).hexdigest()
    assert details["architecture"] == "x64"
    assert details["uname"] == "6.1"
    assert details["command-lines"] == ("quiet",)
    assert details["sbat"] == ("uki 3",)
    assert details["profiles"] == ("main: Main one (quiet)",)
    assert details["signatures"] == (f"good; CN=somebody, sha256:{fingerprint}; sha256",)
    assert details["pcr-key"] == "sha256:41854f0519dc1fd97fcefba4876bce69298ea2a1d9cb0236cfbaf475a8c8798f"
    assert isinstance(details["pcr-signatures"], tuple)
    assert [text.partition(":")[0] for text in details["pcr-signatures"]] == ["sha1, PCR 11"] * 2 + [
        "sha256, PCR 11"
    ] * 2
    assert isinstance(details["notes"], tuple)
    assert "no modules" in details["notes"][0]
    assert "problem" not in details


def test_a_signature_that_is_not_good_says_why() -> None:
    signed = bytearray(sign(handmade.uki("quiet"), signer()))
    signed[signed.index(b"not a kernel")] ^= 1
    (fact,) = gathered({"boot/EFI/Linux/os.efi": bytes(signed)}).resources
    (told,) = fact.signatures
    assert (told.state, told.subject) == ("does-not-fit-the-file", "CN=somebody")
    assert told.problem in str(told)
    assert fact.usable


def test_facts_that_are_too_many_become_one_reason() -> None:
    line = "quiet " + "a" * 60_000
    files = {f"boot/EFI/Linux/{number}.efi": handmade.uki(line) for number in range(80)}
    facts = gathered(files)
    assert facts.resources == ()
    assert facts.reasons == ("the image says more about how it boots than can be kept",)


def test_a_state_that_no_signature_has_is_refused() -> None:
    values = wire(FACTS)
    values["resources"][0]["signatures"][0]["state"] = "trusted"
    with pytest.raises(FormatError):
        Facts.from_wire(values)
