"""What is known of an image: it survives the way between processes, and hostile values are refused."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import handmade

from composefsd import verity
from composefsd.digests import Algorithm, OciDigest
from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.operations.facts import (
    BootFact,
    DirectoryFact,
    Facts,
    FileFact,
    add_reference,
    gather,
    load_facts,
    load_references,
    save_facts,
)
from composefsd.tree.table import ROOT, Stat, Tree

IMAGE = OciDigest("sha256", "ab" * 32)
DIRECTORY, FILE = Stat(0o755, 0, 0, 0, 0), Stat(0o644, 0, 0, 0, 0)
FACTS = Facts(
    title="Debian GNU/Linux 13",
    os_version="13",
    os_id="debian",
    resources=(BootFact("uki", "/boot/a.efi", "6.1", (FileFact("/boot/a.efi", 9, "ab" * 64),), claims=("cd",)),),
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
