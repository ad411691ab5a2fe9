"""The images as the kernel mounts them, against the layers as somebody else unpacks them."""

import stat
from pathlib import Path

import pytest
from real import image, inventory, mounted, unpacked
from real.inventory import Record
from real.stage import Stage

pytestmark = pytest.mark.skipif(bool(mounted.why_not()), reason=mounted.why_not())

Tree = dict[bytes, Record]


@pytest.fixture(scope="module")
def layers(demo_image: image.DemoImage, scratch: Path) -> Tree:
    """What umoci makes of the image."""
    folder = scratch / "unpacked"
    folder.mkdir()
    return inventory.scan(unpacked.unpack(demo_image.layout, "os", folder))


@pytest.fixture(scope="module")
def normative(pulled: Stage) -> Tree:
    """The normative image as it is mounted."""
    return mounted.scan(pulled.image_path(pulled.digests("demo")["normative"]), pulled.repository / "objects")


@pytest.fixture(scope="module")
def boot(pulled: Stage) -> Tree:
    """The boot image as it is mounted."""
    return mounted.scan(pulled.image_path(pulled.digests("demo")["boot"]), pulled.repository / "objects")


def below(tree: Tree, directory: bytes) -> set[bytes]:
    return {name for name in tree if name.startswith(directory + b"/")}


def changes(old: Tree, new: Tree) -> dict[bytes, set[str]]:
    """The entries of both trees that differ, with the fields in which they do."""
    found = {name: inventory.differences(old[name], new[name]) for name in old.keys() & new.keys()}
    return {name: fields for name, fields in found.items() if fields}


def test_the_image_is_worth_the_comparison(layers: Tree) -> None:
    kinds = {stat.S_IFMT(record.mode) for record in layers.values()}
    assert kinds == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR}
    assert len(layers) > 5000
    assert any(record.links > 2 for record in layers.values() if stat.S_ISREG(record.mode))
    assert any(record.mtime_ns % 10**9 for record in layers.values())


def test_the_normative_image_has_the_names_of_the_layers_but_for_those_in_run(layers: Tree, normative: Tree) -> None:
    assert below(layers, b"run")
    assert normative.keys() == layers.keys() - below(layers, b"run")


def test_the_normative_image_differs_in_root_run_and_xattrs_only(layers: Tree, normative: Tree) -> None:
    found = changes(layers, normative)
    assert found.pop(b"") == {"mode", "uid", "mtime_ns"}
    assert found.pop(b"run") == {"mtime_ns"}
    assert set().union(*found.values()) == {"xattrs"}


def test_the_root_has_the_metadata_of_usr(normative: Tree) -> None:
    root, usr = normative[b""], normative[b"usr"]
    assert (root.mode, root.uid, root.gid, root.mtime_ns, root.xattrs) == (
        usr.mode,
        usr.uid,
        usr.gid,
        usr.mtime_ns,
        usr.xattrs,
    )


def test_run_is_as_old_as_usr(normative: Tree) -> None:
    assert normative[b"run"].mtime_ns == normative[b"usr"].mtime_ns


def test_of_the_xattrs_file_capabilities_are_kept_and_nothing_else(layers: Tree, normative: Tree) -> None:
    kept = {
        name: tuple((key, value) for key, value in layers[name].xattrs if key == "security.capability")
        for name in normative
    }
    assert {name: record.xattrs for name, record in normative.items()} == kept
    assert sum(map(bool, kept.values())) == 1
    assert any(key != "security.capability" for record in layers.values() for key, _ in record.xattrs)


def test_the_boot_image_is_the_normative_one_with_boot_and_sysroot_emptied(normative: Tree, boot: Tree) -> None:
    emptied = below(normative, b"boot") | below(normative, b"sysroot")
    assert emptied
    assert boot.keys() == normative.keys() - emptied
    found = changes(normative, boot)
    assert {name for name, fields in found.items() if fields - {"xattrs"}} <= {b"boot", b"sysroot"}
    assert boot[b"boot"].mtime_ns == boot[b"sysroot"].mtime_ns == boot[b"usr"].mtime_ns


def test_the_boot_image_carries_the_labels_of_the_image_s_policy(boot: Tree) -> None:
    labels = {name: dict(record.xattrs).get("security.selinux") for name, record in boot.items()}
    assert labels[b"usr/bin/bash"] == b"system_u:object_r:shell_exec_t:s0"
    assert labels[b"etc/shadow"] == b"system_u:object_r:shadow_t:s0"
    assert labels[b""] == b"system_u:object_r:root_t:s0"
