"""composefsd on a repository that cfsctl made and filled."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from interop.two_tools import Cfsctl, Daemon, add_images, error_of, reference, serving_what_is_there
from real import image, snapshot
from real.ledger import Ledger
from real.oci_layout import Layout

from composefsd.oci.reference import Platform

ALGORITHMS = ("sha512", "sha256")
VERSIONS = (1, 2)
TREE, COPY = "trees/of/a directory", "imported"
REFERRER = "sha256:" + "a" * 64
"""Stands for the digest of an image that something refers to: the library names the referrers of any."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A repository that cfsctl made and filled; `images` are tags of the layout by name."""

    cfsctl: Cfsctl
    layout: Layout
    algorithm: str
    version: int
    images: dict[str, str]
    artifacts: dict[str, str]
    """Manifest digests by tag of the layout."""

    @property
    def sealed(self) -> str:
        return image.tag(self.algorithm)

    def manifest(self, tag: str) -> str:
        return self.layout.read_image(tag).manifest.digest


def fill(filled: Filled, folder: Path) -> None:
    """Everything that can give something a name, and something of everything that has none."""
    cfsctl = filled.cfsctl
    cfsctl.init(algorithm=filled.algorithm, version=filled.version)
    for tag, options in (("base", []), ("full", ["--bootable"]), ("rich", []), (filled.sealed, ["--bootable"])):
        cfsctl.say("oci", "pull", *options, reference(filled.layout, tag), f"pulled/{tag}:1%")
        filled.images[f"pulled/{tag}:1%"] = tag
    cfsctl.say("oci", "tag", filled.manifest("rich"), "öther")
    cfsctl.say("oci", "untag", "pulled/rich:1%")
    filled.images["öther"] = filled.images.pop("pulled/rich:1%")
    tree = folder / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/file").write_bytes(b"only in this tree\n" * 9)
    made = cfsctl.say("create-image", str(tree), TREE).decode().strip().rpartition(":")[2]
    cfsctl.say("import-image", COPY, data=(cfsctl.repository / "images" / made).read_bytes())
    add_artifact(filled)
    cfsctl.say("oci", "pull", reference(filled.layout, "again"), "gone")
    cfsctl.say("oci", "untag", "gone")


def add_artifact(filled: Filled) -> None:
    """An artifact that no tag names, but a referrer, as the library writes it, and a ref of somebody else."""
    blob = filled.layout.add_blob(b"a signature, say\n" * 9, "application/vnd.example.blob")
    host = Platform.host()
    stored = filled.layout.add_artifact("artifact", [blob], platform=f"{host.os}/{host.architecture}")
    filled.artifacts["artifact"] = stored.manifest.digest
    filled.cfsctl.say("oci", "pull", reference(filled.layout, "artifact"), "artifact")
    filled.cfsctl.say("oci", "untag", "artifact")
    refs = filled.cfsctl.repository / "streams/refs"
    (refs / f"oci-referrers/{REFERRER}").mkdir(parents=True)
    target = f"../../../oci-manifest-{stored.manifest.digest}"
    (refs / f"oci-referrers/{REFERRER}/{stored.manifest.digest}").symlink_to(target)
    (refs / "some/body").mkdir(parents=True)
    layer = filled.layout.read_image("rich").layers[-1].diff_id
    (refs / "some/body/else").symlink_to(f"../../../oci-layer-{layer}")


@dataclass(frozen=True, slots=True)
class Both:
    """The daemon on it."""

    filled: Filled
    daemon: Daemon


@pytest.fixture(
    scope="module", params=[(a, v) for a in ALGORITHMS for v in VERSIONS], ids=lambda one: f"{one[0]}-v{one[1]}"
)
def both(request: pytest.FixtureRequest, cfsctl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The repositories, one after the other."""
    algorithm, version = request.param
    folder = tmp_path_factory.mktemp("repository")
    filled = Filled(Cfsctl(cfsctl, folder / "repository"), add_images(folder / "oci"), algorithm, version, {}, {})
    fill(filled, folder)
    with serving_what_is_there(folder) as daemon:
        yield Both(filled, daemon)


def assert_that_both_see_the_same(both: Both) -> None:
    filled, daemon = both.filled, both.daemon
    assert daemon.damage() == []
    assert filled.cfsctl.damage() == []
    wanted = {name: filled.manifest(tag) for name, tag in filled.images.items()}
    assert daemon.tags() == wanted
    shown = {name: digest for name, digest in filled.cfsctl.tags().items() if not name.startswith("deployment/")}
    assert shown == wanted
    for name in filled.images:
        assert daemon.linked(name) == filled.cfsctl.linked(name)
        for which in ("manifest", "config"):
            assert daemon.document(name, which) == filled.cfsctl.document(name, which)


def test_the_daemon_lists_reads_and_checks_it(both: Both, ledger: Ledger) -> None:
    assert both.daemon.problems() == []
    assert_that_both_see_the_same(both)
    result = "names, documents and image digests are the same; both checks find nothing"
    ledger.record("repository filled by cfsctl: listed, read, checked", "cfsctl", len(both.filled.images), result)


def test_the_daemon_computes_the_digests_that_cfsctl_recorded(both: Both) -> None:
    name = "pulled/full:1%"
    assert both.daemon.compute(name, f"v{both.filled.version}") == both.filled.cfsctl.linked(name)


def test_cfsctl_sees_what_the_daemon_generates(both: Both, ledger: Ledger) -> None:
    name = "pulled/base:1%"
    ((kind, version, normative),) = both.filled.cfsctl.linked(name)
    assert (kind, version) == ("normative", f"v{both.filled.version}")
    boot = both.daemon.generate(name)["boot-digest"].rpartition(":")[2]
    assert both.filled.cfsctl.linked(name) == {("normative", version, normative), ("boot", version, boot)}
    assert both.filled.cfsctl.say("oci", "compute-id", "--bootable", name).decode().strip() == boot
    assert_that_both_see_the_same(both)
    ledger.record(
        "repository filled by cfsctl: missing images generated", "cfsctl", 1, "seen and confirmed by cfsctl"
    )


def test_an_image_that_cfsctl_pulled_is_deployed_and_kept(both: Both) -> None:
    name = f"pulled/{both.filled.sealed}:1%"
    made = both.daemon.deploy(name, kind="uki" if both.filled.version == 1 else "type1")
    boot = made["boot-digest"].rpartition(":")[2]
    assert ("boot", f"v{both.filled.version}", boot) in both.filled.cfsctl.linked(name)
    both.filled.cfsctl.say("oci", "untag", name)
    both.filled.images.pop(name)
    both.filled.cfsctl.say("gc")
    both.daemon.collect()
    assert both.daemon.stage.image_path(boot).exists()
    assert_that_both_see_the_same(both)


def test_our_collection_leaves_whatever_cfsctl_has_given_a_name(both: Both, ledger: Ledger) -> None:
    cfsctl, daemon = both.filled.cfsctl, both.daemon
    kept = refs(cfsctl.repository)
    dry = cfsctl.say("gc", "--dry-run")
    daemon.collect()
    assert refs(cfsctl.repository) == kept
    assert {Path(name).parts[2] for name in kept if name.startswith("streams")} == {"oci", "oci-referrers", "some"}
    assert all((cfsctl.repository / name).exists() for name in snapshot.links(cfsctl.repository))
    assert b"0 removed" in cfsctl.say("gc"), dry
    assert cfsctl.say("cat", f"oci-manifest-{both.filled.artifacts['artifact']}")
    names = {one["name"] for one in cfsctl.ask("images", "--json")["images"]}
    listed = {name for name in names if not name.startswith("composefsd-deployed/")}
    assert listed == {TREE, COPY}
    for name in listed:
        assert cfsctl.say("image-objects", f"refs/{name}").split()
    assert error_of(lambda: daemon.document(both.filled.manifest("again"), "config")) == "NoSuchImage"
    assert_that_both_see_the_same(both)
    result = "tags, nested refs of images and streams, referrers stay; nothing is left for the peer's gc"
    ledger.record("repository filled by cfsctl: our gc", "cfsctl", len(kept), result)


def refs(repository: Path) -> dict[str, str]:
    return {name: text for name, text in snapshot.links(repository).items() if "/refs/" in name}
