"""Repositories of earlier and of later times: what cfsctl and composefsd make of them, side by side."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final

import pytest
from interop.two_tools import Cfsctl, add_images, error_of, reference, serving_what_is_there
from real import snapshot
from real.ledger import Ledger
from real.oci_layout import Layout

from composefsd import verity
from composefsd.digests import Algorithm

KEPT: Final = "kept/from before"
"""The tag of the image that every repository holds."""

NO_META: Final = ""
_HEADER: Final = Struct("<11sBHBB2Q")
_OLD_HEADER: Final = Struct("<2QH11sBBB")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a tool makes of a repository.

    formats are those of the composefs images that a pull records; none if it refuses to write.  reason is part of
    what cfsctl says, or the name of our problem or error.
    """

    reads: bool
    formats: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A `meta.json` (its text), and what both make of it."""

    meta: str
    theirs: Verdict
    ours: Verdict
    upgraded: bool = False
    """Whether whoever opens it for writing replaces a missing `meta.json`."""


def meta(**changes: object) -> str:
    """Today's `meta.json` with other values; None leaves one out."""
    known: dict[str, Any] = {
        "version": 1,
        "algorithm": "fsverity-sha512-12",
        "features": features(read_only=["v1_erofs"]),
        "erofs_formats": {"default": 1},
    }
    return json.dumps({name: value for name, value in {**known, **changes}.items() if value is not None})


def features(*, compatible: object = (), read_only: object = (), incompatible: object = ()) -> dict[str, object]:
    return {"compatible": compatible, "read-only-compatible": read_only, "incompatible": incompatible}


V1, V2 = Verdict(True, ("v1",)), Verdict(True, ("v2",))  # noqa: FBT003
DUAL = Verdict(reads=True, formats=("v1", "v2"))
REFUSED = Verdict(reads=False, reason="IncompatibleRepository")
MALFORMED = Verdict(reads=False, reason="Format")


def refused(words: str) -> Verdict:
    return Verdict(reads=False, reason=words)


STATES = {
    "today's": State(meta(), V1, V1),
    "no meta.json": State(NO_META, V1, V1, upgraded=True),
    "an older version": State(meta(version=0), V1, V1),
    "a later version": State(meta(version=2), refused("unsupported repository format version 2"), REFUSED),
    "an unknown key": State(meta(more=1), V1, V1),
    "an unknown compatible feature": State(
        meta(features=features(compatible=["later"], read_only=["v1_erofs"])), V1, V1
    ),
    # cfsctl works out that it may only read, and then writes
    "an unknown read-only-compatible feature": State(
        meta(features=features(read_only=["v1_erofs", "later"])), V1, Verdict(reads=True, reason="ReadOnly")
    ),
    "an unknown incompatible feature": State(
        meta(features=features(incompatible=["later"])), refused('incompatible features: ["later"]'), REFUSED
    ),
    # it takes no OCI image in either tool; we do not open it at all
    "format 0": State(
        meta(erofs_formats={"default": 0}, features=features()),
        Verdict(reads=True, reason="did not produce the repository's default EROFS format"),
        REFUSED,
    ),
    "format 1 without its flag": State(meta(features=features()), V1, V1),
    "format 2": State(meta(erofs_formats={"default": 2}, features=features()), V2, V2),
    "format 2 with the flag of format 1": State(meta(erofs_formats={"default": 2}), V1, V1),
    "no formats": State(meta(erofs_formats=None, features=features()), V2, V2),
    "no formats but the flag": State(meta(erofs_formats=None), V1, V1),
    "neither formats nor features": State(meta(erofs_formats=None, features=None), V2, V2),
    # we record the format that was asked for, and the default one if none was
    "formats 1 and 2": State(meta(erofs_formats={"default": 1, "extra": [2]}), DUAL, V1),
    "formats 2 and 1": State(meta(erofs_formats={"default": 2, "extra": [1]}, features=features()), DUAL, V2),
    "a later default format": State(meta(erofs_formats={"default": 3}), refused("expected one of: 0, 1, 2"), REFUSED),
    "a later extra format": State(
        meta(erofs_formats={"default": 1, "extra": [9]}), refused("expected one of: 0, 1, 2"), REFUSED
    ),
    "another block size": State(
        meta(algorithm="fsverity-sha512-16"), refused("unsupported lg_blocksize 16"), REFUSED
    ),
    "half a file": State(meta()[:40], refused("EOF while parsing"), MALFORMED),
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Repositories that cfsctl made and pulled one image into, by hash; and images."""

    repositories: dict[str, Path]
    layout: Layout


@pytest.fixture(scope="module")
def sources(cfsctl: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    layout, repositories = add_images(folder / "oci"), {}
    for algorithm in ("sha512", "sha256"):
        peer = Cfsctl(cfsctl, folder / algorithm)
        peer.init(algorithm=algorithm)
        peer.say("oci", "pull", "--bootable", reference(layout, "base"), KEPT)
        peer.say("gc")  # what it wrote twice
        repositories[algorithm] = peer.repository
    return Sources(repositories, layout)


def copy(source: Path, folder: Path, text: str) -> Path:
    """A repository like `source` in a new folder, with another `meta.json`, or without one."""
    shutil.copytree(source, folder / "repository", symlinks=True)
    path = folder / "repository/meta.json"
    path.unlink()
    if text != NO_META:
        path.write_text(text)
    return path


def their_verdict(cfsctl: Cfsctl, sources: Sources) -> Verdict:
    looked = cfsctl.run("oci", "images", "--json")
    if looked.returncode != 0:
        return Verdict(reads=False, reason=looked.stderr.decode())
    assert KEPT in cfsctl.tags()
    pulled = cfsctl.run("oci", "pull", "--bootable", reference(sources.layout, "full"), "new")
    if pulled.returncode != 0:
        return Verdict(reads=True, reason=pulled.stderr.decode())
    assert cfsctl.damage() == []
    return Verdict(reads=True, formats=tuple(sorted({version for _, version, _ in cfsctl.linked("new")})))


def our_verdict(folder: Path, cfsctl: Cfsctl, sources: Sources, algorithm: str = "sha512") -> Verdict:
    """What the daemon makes of it; what it has written is whole for cfsctl."""
    with serving_what_is_there(folder, algorithm=algorithm) as daemon:
        problems, tags = daemon.problems(), daemon.tags()
        error = error_of(lambda: daemon.pull(reference(sources.layout, "full"), "new"))
        if problems:
            assert [error] == problems
            return Verdict(reads=KEPT in tags, reason=error)
        assert error == ""
        assert KEPT in tags
        assert daemon.damage("quick") == []
        assert cfsctl.damage() == []
        assert cfsctl.linked("new") == daemon.linked("new")
        return Verdict(reads=True, formats=tuple(sorted({version for _, version, _ in daemon.linked("new")})))


@pytest.mark.parametrize("name", STATES)
def test_a_repository_is_opened_read_or_refused_as_the_format_says(
    name: str, sources: Sources, cfsctl: Path, tmp_path: Path, ledger: Ledger
) -> None:
    state, source = STATES[name], sources.repositories["sha512"]
    for folder in ("theirs", "ours"):
        (tmp_path / folder).mkdir()
        copy(source, tmp_path / folder, state.meta)
    peers = {folder: Cfsctl(cfsctl, tmp_path / folder / "repository") for folder in ("theirs", "ours")}
    theirs = their_verdict(peers["theirs"], sources)
    assert (theirs.reads, theirs.formats) == (state.theirs.reads, state.theirs.formats)
    assert state.theirs.reason in theirs.reason
    before = everything(tmp_path / "ours/repository")
    assert our_verdict(tmp_path / "ours", peers["ours"], sources) == state.ours
    if not state.ours.formats:
        assert everything(tmp_path / "ours/repository") == before, "it was written to"
    metas = [(peer.repository / "meta.json").read_text() for peer in peers.values()]
    assert metas == ([(source / "meta.json").read_text()] * 2 if state.upgraded else [state.meta] * 2)
    result = "as the format document says; the unknown read-only flag is enforced by composefsd alone"
    ledger.record("states of a repository: `meta.json` of earlier and later times", "cfsctl", 1, result)


def everything(repository: Path) -> set[str]:
    return set(snapshot.files(repository))


@pytest.mark.parametrize("has_objects", [False, True])
def test_what_is_no_repository_yet(*, has_objects: bool, cfsctl: Path, sources: Sources, tmp_path: Path) -> None:
    """cfsctl wants `init`, the daemon makes a repository by itself; what may have been one is for neither."""
    (tmp_path / "repository").mkdir()
    if has_objects:
        (tmp_path / "repository/objects/00").mkdir(parents=True)
    peer = Cfsctl(cfsctl, tmp_path / "repository")
    words = b"no objects found in repository" if has_objects else b"no meta.json in"
    assert words in peer.run("oci", "images").stderr
    with serving_what_is_there(tmp_path) as daemon:
        assert daemon.problems() == (["IncompatibleRepository"] if has_objects else [])
        error = error_of(lambda: daemon.pull(reference(sources.layout, "full"), "new"))
        assert error == ("IncompatibleRepository" if has_objects else "")
    assert (tmp_path / "repository/meta.json").exists() != has_objects


@pytest.mark.parametrize("configured", ["sha256", "sha512"])
def test_an_old_repository_is_upgraded_by_the_hash_of_its_objects(
    configured: str, cfsctl: Path, sources: Sources, tmp_path: Path
) -> None:
    """Ours refuses one of another hash than is configured, as the digests that boot entries name are of that."""
    source = sources.repositories["sha256"]
    path = copy(source, tmp_path, NO_META)
    wanted = Verdict(reads=True, formats=("v1",)) if configured == "sha256" else REFUSED
    peer = Cfsctl(cfsctl, tmp_path / "repository")
    assert our_verdict(tmp_path, peer, sources, configured) == wanted
    assert path.exists() == (configured == "sha256")
    assert peer.tags()[KEPT]
    assert path.read_text() == (source / "meta.json").read_text()


# Old splitstreams


def make_old(repository: Path, algorithm: Algorithm) -> int:
    """Give all splitstreams the header that was written up to bootc 1.15; how many there were.

    Their digests change by that, so whatever refers to them follows: layers first, then configs, then manifests.
    """
    streams = repository / "streams"
    changed: dict[bytes, bytes] = {}
    for prefix in ("oci-layer-", "oci-config-", "oci-manifest-"):
        for link in sorted(streams.glob(f"{prefix}*")):
            old = link.resolve()
            data = old.read_bytes()
            for before, after in changed.items():
                data = data.replace(before, after)  # the tables of references are not compressed
            magic, version, flags, number, bits, start, end = _HEADER.unpack_from(data)
            header = _OLD_HEADER.pack(start, end, flags, magic, version, number, bits)
            data = header + data[len(header) :]
            digest = verity.compute(data, algorithm)
            (repository / "objects" / digest.path).parent.mkdir(exist_ok=True)
            (repository / "objects" / digest.path).write_bytes(data)
            changed[bytes.fromhex(old.parent.name + old.name)] = digest.digest
            old.unlink()
            link.unlink()
            link.symlink_to(f"../objects/{digest.path}")
    return len(changed)


@pytest.mark.parametrize("text", [meta(), NO_META], ids=["with meta.json", "without meta.json"])
def test_both_read_and_extend_a_repository_of_old_splitstreams(
    text: str, cfsctl: Path, sources: Sources, tmp_path: Path, ledger: Ledger
) -> None:
    copy(sources.repositories["sha512"], tmp_path, text)
    count = make_old(tmp_path / "repository", Algorithm.SHA512)
    peer = Cfsctl(cfsctl, tmp_path / "repository")
    with serving_what_is_there(tmp_path) as daemon:
        assert daemon.damage() == []
        assert peer.damage() == []
        assert daemon.linked(KEPT) == peer.linked(KEPT)
        for which in ("manifest", "config"):
            assert daemon.document(KEPT, which) == peer.document(KEPT, which)
        result = daemon.pull(reference(sources.layout, "full"), "new")
        assert result["bytes-reused"] > 0
        assert daemon.collect()["objects-removed"] == 0
        assert b"0 removed" in peer.say("gc")
        daemon.generate(KEPT)
        daemon.untag("new")
        daemon.collect()
        assert daemon.damage() == []
        assert peer.damage() == []
    ledger.record("states of a repository: old splitstream headers", "cfsctl", count, "read, reused, kept by both")


# Names and modes


def test_an_object_whose_name_is_in_upper_case_is_one_to_both(cfsctl: Path, sources: Sources, tmp_path: Path) -> None:
    """Nobody writes such names, and no link leads to one: a collection takes it, or keeps it if it has a double."""
    copy(sources.repositories["sha512"], tmp_path, meta())
    peer, objects = Cfsctl(cfsctl, tmp_path / "repository"), tmp_path / "repository/objects"
    living = next(objects.glob("*/*[a-f]*"))
    double = living.with_name(living.name.upper())
    with serving_what_is_there(tmp_path) as daemon:
        for collect in (daemon.collect, lambda: peer.say("gc")):
            garbage = b"garbage in upper case"
            digest = verity.compute(garbage, Algorithm.SHA512).hex
            lone = objects / digest[:2] / digest[2:].upper()
            lone.parent.mkdir(exist_ok=True)
            lone.write_bytes(garbage)
            shutil.copyfile(living, double)
            assert peer.damage() == []
            assert daemon.damage() == []
            collect()
            assert not lone.exists()
            assert double.exists()
            assert living.exists()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_the_umask_of_whoever_writes_is_nobody_else_s_trouble(
    mask: int, cfsctl: Path, sources: Sources, tmp_path: Path
) -> None:
    """cfsctl lets the umask decide who may read the objects; we do not."""
    peer = Cfsctl(cfsctl, tmp_path / "repository")
    with umask(mask):
        peer.init()
        peer.say("oci", "pull", reference(sources.layout, "base"), KEPT)
        with serving_what_is_there(tmp_path) as daemon:
            theirs = snapshot.objects(peer.repository)
            daemon.pull(reference(sources.layout, "rich"), "new")
            ours = snapshot.objects(peer.repository)
            peer.say("oci", "pull", "--bootable", reference(sources.layout, "rich"), "new")
            assert daemon.damage() == []
            assert peer.damage() == []
            assert daemon.linked("new") == peer.linked("new")
    assert {mode for _, _, mode in theirs.values()} <= {0o644 & ~mask, 0o666 & ~mask}
    assert {ours[name][2] for name in ours.keys() - theirs.keys()} == {0o644}
    assert stat.S_IMODE(peer.repository.stat().st_mode) == 0o700 & ~mask


def test_objects_that_only_root_may_read_are_listed_checked_and_kept(
    cfsctl: Path, sources: Sources, tmp_path: Path
) -> None:
    peer = Cfsctl(cfsctl, tmp_path / "repository")
    with umask(0o077):
        peer.init()
        peer.say("oci", "pull", "--bootable", reference(sources.layout, "base"), KEPT)
        peer.say("gc")
    assert 0o600 in {mode for _, _, mode in snapshot.objects(peer.repository).values()}
    with serving_what_is_there(tmp_path) as daemon:
        assert daemon.problems() == []
        assert daemon.damage("quick") == []
        assert daemon.linked(KEPT) == peer.linked(KEPT)
        assert daemon.document(KEPT, "config") == peer.document(KEPT, "config")
        assert daemon.collect()["objects-removed"] == 0
        assert peer.damage() == []
