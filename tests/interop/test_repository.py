"""cfsctl on a repository that composefsd made and filled."""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from interop import mounting
from interop.two_tools import IMAGES, Cfsctl, Daemon, add_images, plain_tar, reference, serving
from real import image, inventory, mounted, snapshot, unpacked
from real.inventory import Record
from real.ledger import Ledger
from real.oci_layout import Layout
from real.stage import BIN

from composefsd.digests import Algorithm
from composefsd.erofs import reader as erofs
from composefsd.erofs.format import FormatVersion

Tree = dict[bytes, Record]

V1, V2 = FormatVersion.V1, FormatVersion.V2
REPOSITORIES = {
    "sha512-v1": ("sha512", (V1,)),
    "sha256-v2": ("sha256", (V2,)),
    "sha256-v1-and-v2": ("sha256", (V1, V2)),
}
NAMES = ("a/b%2Fc:latest", "%", "%25%2f", "ünï/✓:1%", "docker://example.org/with space", "x" * 255)
"""Names that need escapes, look like them, or are as long as a file name can be: one for each image, and one more."""

RICH, DEPLOYED = NAMES[IMAGES.index("rich")], NAMES[len(IMAGES)]


@dataclass(frozen=True, slots=True)
class Filled:
    """A repository that composefsd filled, deployed an image of included; `images` are tags of the layout by name."""

    daemon: Daemon
    cfsctl: Cfsctl
    layout: Layout
    algorithm: Algorithm
    formats: tuple[FormatVersion, ...]
    images: dict[str, str]

    @property
    def options(self) -> list[str]:
        return [f"--hash={self.algorithm.value}", f"--format={self.formats[0].label}"]


def fill(daemon: Daemon, layout: Layout, names: dict[str, str], formats: tuple[FormatVersion, ...]) -> None:
    """Pull, name a second time, generate whatever format is left, deploy."""
    for name, tag in names.items():
        daemon.pull(reference(layout, tag), name)
        for version in formats[1:]:
            daemon.generate(name, version=version.label)
    daemon.tag(NAMES[0], NAMES[-1])
    names[NAMES[-1]] = names[NAMES[0]]
    daemon.collect()  # what was replaced when more images were recorded
    daemon.deploy(DEPLOYED, kind="uki" if V1 in formats else "type1")  # the UKI names the image of format 1


@pytest.fixture(scope="module", params=REPOSITORIES)
def filled(
    request: pytest.FixtureRequest, cfsctl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Filled]:
    """The repositories, one after the other.  Only the test of collections changes them, and nothing that lives."""
    algorithm, formats = REPOSITORIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    layout = add_images(folder / "oci")
    names = dict(zip(NAMES[:-1], (*IMAGES, image.tag(algorithm)), strict=True))
    with serving(folder, algorithm=algorithm, formats=formats) as daemon:
        fill(daemon, layout, names, formats)
        peer = Cfsctl(cfsctl, daemon.stage.repository)
        yield Filled(daemon, peer, layout, Algorithm(algorithm), formats, names)


def deployments(filled: Filled) -> dict[str, str]:
    """The tag that keeps a deployed image; our listing does not show it."""
    digest = filled.layout.read_image(image.tag(filled.algorithm.value)).manifest.digest
    return {f"deployment/{digest.removeprefix('sha256:')}": digest}


def wanted(filled: Filled) -> dict[str, str]:
    return {name: filled.layout.read_image(tag).manifest.digest for name, tag in filled.images.items()}


def assert_that_both_see_everything(filled: Filled) -> None:
    assert filled.cfsctl.damage() == []
    assert filled.daemon.damage() == []
    assert filled.daemon.tags() == wanted(filled)
    assert filled.cfsctl.tags() == wanted(filled) | deployments(filled)
    for name, tag in filled.images.items():
        stored = filled.layout.read_image(tag)
        for which, blob in (("manifest", stored.manifest), ("config", stored.config)):
            document = filled.layout.blob_path(blob.digest).read_bytes()
            assert filled.cfsctl.document(name, which) == document
            assert filled.daemon.document(name, which) == document
        linked = filled.daemon.linked(name)
        made = {(kind, version.label) for kind in ("normative", "boot") for version in filled.formats}
        also = {(kind, version) for kind, version, _ in linked} - made
        assert len(linked) == len(made) + len(also)
        assert all(kind == "boot" for kind, _ in also)  # what a UKI asks for, in whatever format
        assert filled.cfsctl.linked(name) == linked


def test_cfsctl_lists_and_reads_all_images_and_finds_no_fault(filled: Filled, ledger: Ledger) -> None:
    assert_that_both_see_everything(filled)
    for one in filled.cfsctl.ask("oci", "images", "--json")["images"]:
        if one["name"] in filled.images:
            assert one["layer_count"] == len(filled.layout.read_image(filled.images[one["name"]]).layers)
            assert one["is_container"]
    result = "names, documents and image digests are the same; both checks find nothing"
    ledger.record("repository filled by composefsd: listed, read, checked", "cfsctl", len(filled.images), result)


def test_cfsctl_computes_the_digests_that_are_recorded(filled: Filled, ledger: Ledger) -> None:
    count = 0
    for name in filled.images:
        for kind, version, digest in filled.daemon.linked(name):
            options = ["--bootable"] if kind == "boot" else []
            arguments = ["--erofs-version", version.removeprefix("v"), "oci", "compute-id", *options, name]
            assert filled.cfsctl.say(*arguments).decode().strip() == digest
            count += 1
    ledger.record("repository filled by composefsd: `oci compute-id`", "cfsctl", count, "the recorded digests")


def test_cfsctl_dumps_the_same_trees(filled: Filled, ledger: Ledger) -> None:
    options = ["--bootable"] if filled.algorithm is Algorithm.SHA512 else []
    ours = [*filled.options, *options, "--dumpfile", reference(filled.layout, "rich")]
    command = [str(BIN / "composefsctl"), "compute-id", *ours]
    dumpfile = subprocess.run(command, check=True, capture_output=True).stdout
    assert filled.cfsctl.say("oci", "dump", *options, RICH) == dumpfile
    ledger.record("repository filled by composefsd: `oci dump`", "cfsctl", 1, "byte for byte our dumpfile")


def test_cfsctl_finds_the_objects_of_every_image(filled: Filled) -> None:
    for name in filled.images:
        for _, _, digest in filled.daemon.linked(name):
            found = filled.cfsctl.say("image-objects", digest).decode().split()
            image_file = filled.daemon.stage.image_path(digest).read_bytes()
            objects = {one.hex() for one in erofs.object_ids(image_file, filled.algorithm)}
            assert {one.rpartition(":")[2] for one in found} == objects
    refs = [one["name"].partition("/") for one in filled.cfsctl.ask("images", "--json")["images"]]
    assert {folder for folder, _, _ in refs} == {"composefsd-deployed"}
    assert {digest for _, _, digest in refs} <= {digest for _, _, digest in filled.daemon.linked(DEPLOYED)}


def test_cfsctl_gives_back_every_layer_byte_for_byte(filled: Filled, ledger: Ledger) -> None:
    stored = {
        layer.diff_id: layer for tag in filled.images.values() for layer in filled.layout.read_image(tag).layers
    }
    for diff_id, layer in stored.items():
        tar = plain_tar(filled.layout, layer)
        assert filled.cfsctl.say("oci", "layer", diff_id) == tar
        assert filled.cfsctl.say("cat", f"oci-layer-{diff_id}") == tar
        assert filled.cfsctl.ask("oci", "layer", diff_id, "--json")["size"] == len(tar)
        lines = filled.cfsctl.say("oci", "layer", diff_id, "--dumpfile").splitlines()
        assert {unescaped(line.split()[0]) for line in lines} == names_in(tar)
    result = "the plain tars, byte for byte"
    ledger.record("repository filled by composefsd: `oci layer`, `cat`", "cfsctl", len(stored), result)


def names_in(tar: bytes) -> set[bytes]:
    """What a layer deletes is told in the peer's dump of it as it stands in the tar."""
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8") as archive:
        return {b"/" + os.fsencode(name) for name in archive.getnames()}


def unescaped(name: bytes) -> bytes:
    """A name as it stands in a dumpfile."""
    return re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), name).replace(b"\\\\", b"\\")


@pytest.mark.parametrize("tag", ["full", "rich"])
def test_what_cfsctl_mounts_is_what_the_layers_hold(tag: str, filled: Filled, tmp_path: Path, ledger: Ledger) -> None:
    assert not mounted.why_not(), mounted.why_not()
    name, point = NAMES[IMAGES.index(tag)], tmp_path / "point"
    point.mkdir()
    tree = mounting.scan(filled.cfsctl.command("oci", "mount", name), point)
    assert_that_it_is_the_normative_tree(tree, inventory.scan(unpacked.unpack(filled.layout.path, tag, tmp_path)))
    for kind, _, digest in filled.daemon.linked(name):
        again = mounting.scan(filled.cfsctl.command("mount", digest), point)
        assert again == mounted.scan(
            filled.daemon.stage.image_path(digest), filled.daemon.stage.repository / "objects"
        )
        assert kind == "boot" or without_times(again) == without_times(tree)
    cases = 1 + 2 * len(filled.formats)
    ledger.record("repository filled by composefsd: `mount`, `oci mount`", "cfsctl", cases, "the trees of the layers")


def without_times(tree: Tree) -> dict[bytes, Record]:
    """Format 2 keeps no nanoseconds."""
    return {name: replace(record, mtime_ns=record.mtime_ns // 10**9) for name, record in tree.items()}


def assert_that_it_is_the_normative_tree(tree: Tree, layers: Tree) -> None:
    """All is the same but the root, which is as /usr, the age of /run, and xattrs, of which only some are kept."""
    assert tree.keys() == layers.keys()
    tree, layers = without_times(tree), without_times(layers)
    found = {name: inventory.differences(tree[name], layers[name]) - {"xattrs"} for name in tree}
    assert {name for name, fields in found.items() if fields} <= {b"", b"run"}
    assert found[b"run"] <= {"mtime_ns"}


def test_what_is_named_or_deployed_survives_the_collection_of_cfsctl(filled: Filled, ledger: Ledger) -> None:
    daemon, cfsctl = filled.daemon, filled.cfsctl
    names, objects = snapshot.links(cfsctl.repository), snapshot.objects(cfsctl.repository)
    assert b"0 removed" in cfsctl.say("gc", "--dry-run")
    assert b"0 removed" in cfsctl.say("gc")
    assert snapshot.links(cfsctl.repository) == names
    assert snapshot.objects(cfsctl.repository) == objects

    (deployment,) = daemon.stage.ask("deployments")
    daemon.untag(DEPLOYED)
    filled.images.pop(DEPLOYED)
    daemon.untag(RICH)
    filled.images.pop(RICH)
    dry = cfsctl.say("gc", "--dry-run").decode().splitlines()[-1]
    assert dry == cfsctl.say("gc").decode().splitlines()[0]
    assert_that_both_see_everything(filled)
    removed = objects.keys() - snapshot.objects(cfsctl.repository).keys()
    assert removed
    ours = daemon.collect()
    assert (ours["objects-removed"], ours["images-pruned"], ours["streams-pruned"]) == (0, 0, 0)
    assert daemon.stage.image_path(deployment["boot_digest"].rpartition(":")[2]).exists()
    result = "what is tagged, named or deployed stays, all else goes; nothing is left for our gc"
    ledger.record("repository filled by composefsd: `gc`", "cfsctl", 2, result)
