"""The storer's commit, stopped at each of its writes: what had a name keeps it, and keeps what it needs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from composefsd import verity
from composefsd.digests import Algorithm, DiffId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import write
from composefsd.errors import ComposefsdError, CorruptError, DigestMismatchError, NameInUseError
from composefsd.oci import settling, store
from composefsd.oci.manifest import CONFIG_TYPE, MANIFEST_TYPE
from composefsd.oci.storage import StoredImage, layer_stream, load_image, manifest_stream
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import check as check_repository
from composefsd.repository.gc import collect
from composefsd.repository.links import Category
from composefsd.splitstream import ContentType, Writer
from composefsd.tree.table import Stat, Tree
from composefsd.workers.serve import Call

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
TAR = bytes(10240)
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"
WRITES = ("symlink", "rename", "link", "unlink")


class PowerFailure(BaseException):
    """Not an Exception: nothing gets the chance to clean up behind it."""


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def documents(number: int = 0) -> dict[str, str]:
    """A config, and a manifest that is another one for each number."""
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [DIFF_ID]}}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": LAYER_TYPE, "digest": DIFF_ID, "size": len(TAR)}],
            "annotations": {"number": str(number)},
        }
    ).encode()
    return {
        "config": config.decode(),
        "config_digest": digest(config),
        "manifest": manifest.decode(),
        "manifest_digest": digest(manifest),
    }


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    metadata = Metadata.new(Algorithm.SHA256)
    with Repository.create(tmp_path / "repository", metadata, insecure=True) as made:
        stream = Writer(Algorithm.SHA256, ContentType.OCI_LAYER)
        stream.inline(TAR)
        made.link_stream(layer_stream(DiffId.parse(DIFF_ID)), made.objects.store(stream.finish()))
        yield made


def image(mtime: int) -> bytes:
    tree = Tree(Algorithm.SHA256)
    tree.set_stat(0, Stat(0o755, 0, 0, mtime, 0))
    tree.freeze()
    return b"".join(write(tree, FormatVersion.V1))


def commit(
    repository: Repository,
    number: int = 0,
    tag: str | None = "os",
    images: dict[str, bytes] | None = None,
    **changes: Any,
) -> None:
    files, told = [], []
    for reference, data in (images or {}).items():
        fd = repository.objects.temporary()
        os.write(fd, data)
        files.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
        repository.objects.discard(fd)
        told.append({"reference": reference, "digest": verity.compute(data, Algorithm.SHA256).hex})
    stream = repository.stream(layer_stream(DiffId.parse(DIFF_ID)))
    assert stream is not None
    order = {**documents(number), "layers": {DIFF_ID: stream.hex()}, "tag": tag, "replace": False, "images": told}
    try:
        store.commit(Call(order | changes, (repository.fd, *files), lambda event: None))
    finally:
        for fd in files:
            os.close(fd)


def load(repository: Repository, number: int = 0) -> StoredImage:
    return load_image(repository, OciDigest.parse(documents(number)["manifest_digest"]))


def references(stored: StoredImage) -> set[str]:
    return {one.reference for one in stored.images}


ONE = {"composefs.image.v1": image(1)}
TWO = {"composefs.image.boot.v1": image(2)}


def test_a_commit_can_be_loaded_back(repository: Repository) -> None:
    commit(repository, images=ONE)
    stored = load(repository)
    assert references(stored) == set(ONE)
    assert stored.content.manifest.data.decode() == documents()["manifest"]
    assert repository.tags() == {"os": manifest_stream(stored.digest)}
    assert list(check_repository(repository, objects=True)) == []


def test_a_second_commit_keeps_the_images_of_the_first(repository: Repository) -> None:
    commit(repository, images=ONE)
    commit(repository, tag=None, images=TWO)
    assert references(load(repository)) == {*ONE, *TWO}
    collect(repository, dry_run=False)
    assert references(load(repository)) == {*ONE, *TWO}
    assert list(check_repository(repository, objects=True)) == []


def test_two_manifests_of_one_config_both_see_its_images(repository: Repository) -> None:
    commit(repository, 0, "first", ONE)
    commit(repository, 1, "second", TWO)
    collect(repository, dry_run=False)
    assert references(load(repository, 0)) == references(load(repository, 1)) == {*ONE, *TWO}
    repository.untag("second")
    collect(repository, dry_run=False)
    assert references(load(repository, 0)) == {*ONE, *TWO}


def test_a_taken_tag_is_refused_before_anything_is_stored(repository: Repository) -> None:
    commit(repository)
    with pytest.raises(NameInUseError):
        commit(repository, 1)
    assert [name for name in repository.streams() if name.startswith("oci-manifest")] == [
        manifest_stream(load(repository).digest)
    ]


def test_a_document_of_another_digest_is_refused(repository: Repository) -> None:
    with pytest.raises(DigestMismatchError):
        commit(repository, manifest_digest="sha256:" + "0" * 64)


def test_an_image_of_another_digest_is_refused(repository: Repository) -> None:
    fd = repository.objects.temporary()
    os.write(fd, ONE["composefs.image.v1"])
    order = {**documents(), "layers": {}, "tag": None, "replace": False}
    order["images"] = [{"reference": "composefs.image.v1", "digest": "0" * 64}]
    with pytest.raises(DigestMismatchError):
        store.commit(Call(order, (repository.fd, fd), lambda event: None))
    assert repository.image_ids() == []


@contextmanager
def power_fails_at(write_number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the write of this number, and everything after it, not happen."""
    made: list[str] = []

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def write(*args: Any, **options: Any) -> Any:
            if len(made) == write_number:
                raise PowerFailure
            made.append(name)
            return real(*args, **options)

        return write

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(os, name, failing(name))
        yield made


def writes_of(repository_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many writes the commit of these tests has."""
    with Repository.open(repository_path) as repository, power_fails_at(-1, monkeypatch) as made:
        commit(repository, 1, "second", TWO)
    return len(made)


def test_wherever_a_commit_stops_what_was_named_stays_whole(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second commit rewrites the config that the first one's manifest names: the worst case there is."""
    commit(repository, 0, "first", ONE)
    shutil.copytree(repository.path, tmp_path / "probe", symlinks=True)
    count = writes_of(tmp_path / "probe", monkeypatch)
    assert count > 8
    for stop in range(count):
        path = tmp_path / f"stopped-{stop}"
        shutil.copytree(repository.path, path, symlinks=True)
        with Repository.open(path) as stopped, pytest.raises(PowerFailure), power_fails_at(stop, monkeypatch):
            commit(stopped, 1, "second", TWO)
        with Repository.open(path) as reopened, reopened.exclusive_lock():
            reopened.clean_temporaries()
            assert set(ONE) <= references(load(reopened, 0)), stop
            collect(reopened, dry_run=False)
            assert set(ONE) <= references(load(reopened, 0)), stop
            assert all(reopened.has_image(one.digest.digest) for one in load(reopened, 0).images)
            assert list(check_repository(reopened, objects=True)) == [], stop
        with Repository.open(path) as again:
            commit(again, 1, "second", TWO)
            assert references(load(again, 0)) == references(load(again, 1)) == {*ONE, *TWO}
            assert not any(name.startswith("composefsd-held") for name in again.refs(store.Category.STREAMS))
        shutil.rmtree(path)


def test_errors_of_the_storer_are_ours(repository: Repository) -> None:
    with pytest.raises(ComposefsdError):
        commit(repository, layers={DIFF_ID: "00" * 32}, config_digest="nonsense")


def old_config(repository: Repository) -> tuple[str, bytes, bytes]:
    """The name of a config's stream of which a manifest names an older one; the current one and that."""
    commit(repository, images=ONE)
    name = f"oci-config-{documents()['config_digest']}"
    older, stream = repository.stream(name), repository.read_stream(name)
    assert older is not None
    writer = Writer(Algorithm.SHA256, ContentType.OCI_CONFIG)
    writer.external(stream.object_refs[0], stream.size_bytes)
    for key, target in (*stream.named_refs.items(), ("more", older)):
        writer.add_reference(key, target)
    current = repository.objects.store(writer.finish())
    repository.link_stream(name, current)
    return name, current, older


def test_a_manifest_is_settled_on_the_current_config(repository: Repository) -> None:
    name, current, _ = old_config(repository)
    assert settling.unsettled_configs(repository) == {name}
    settling.settle(repository)
    stream = repository.read_stream(manifest_stream(load(repository).digest))
    assert stream.named_refs[name.replace("oci-config-", "config:")] == current
    assert settling.unsettled_configs(repository) == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda repository, name, path: path.unlink(),
        lambda repository, name, path: path.write_bytes(b"rotten" * 100),
        lambda repository, name, path: repository.unlink_stream(name),
    ],
)
def test_a_sound_config_that_the_collector_would_take_stops_it(
    repository: Repository, damage: Callable[[Repository, str, Path], object]
) -> None:
    """The collector follows references to current streams alone: the document and the images were lost."""
    name, current, older = old_config(repository)
    path = repository.path / "objects" / current.hex()[:2] / current.hex()[2:]
    path.chmod(0o600)
    damage(repository, name, path)
    for look in (settling.settle, settling.unsettled_configs):
        with pytest.raises(CorruptError, match="repair"):
            look(repository)
    repository.link_stream(name, older)  # as a repair does
    settling.settle(repository)
    collect(repository, dry_run=False)
    assert references(load(repository)) == set(ONE)


def test_a_commit_goes_on_beside_a_config_that_is_damaged(repository: Repository) -> None:
    name, current, _ = old_config(repository)
    (repository.path / "objects" / current.hex()[:2] / current.hex()[2:]).unlink()
    repository.set_ref(Category.STREAMS, f"{settling.HELD}/abc", name)
    commit(repository, 1, tag="other")
    assert repository.refs(Category.STREAMS).keys() == {"oci/os", "oci/other"}


@pytest.mark.parametrize("key", ["config:../../meta.json", "config:", "config:" + "x" * 300])
def test_a_reference_to_an_impossible_config_does_not_stop_a_collection(repository: Repository, key: str) -> None:
    commit(repository)
    name = manifest_stream(load(repository).digest)
    stream = repository.read_stream(name)
    writer = Writer(Algorithm.SHA256, ContentType.OCI_MANIFEST)
    writer.external(stream.object_refs[0], stream.size_bytes)
    writer.add_reference(key, stream.object_refs[0])
    repository.link_stream(name, repository.objects.store(writer.finish()))
    settling.settle(repository)
    assert repository.read_stream(name).named_refs.keys() == {key}


def test_a_manifest_without_a_document_is_left_alone(repository: Repository) -> None:
    name, _, older = old_config(repository)
    manifest = manifest_stream(load(repository).digest)
    writer = Writer(Algorithm.SHA256, ContentType.OCI_MANIFEST)
    writer.inline(b"{}")
    writer.add_reference(name.replace("oci-config-", "config:"), older)
    stream = repository.objects.store(writer.finish())
    repository.link_stream(manifest, stream)
    settling.settle(repository)
    assert repository.stream(manifest) == stream


def test_a_layer_without_its_link_stops_a_collection_that_would_take_its_files(repository: Repository) -> None:
    commit(repository)
    name = layer_stream(load(repository).content.config.diff_ids[0])
    layer = repository.stream(name)
    assert layer is not None
    assert settling.outdated_layers(repository) == set()
    repository.unlink_stream(name)
    with pytest.raises(CorruptError, match="repair"):
        settling.outdated_layers(repository)
    (repository.path / "objects" / layer.hex()[:2] / layer.hex()[2:]).unlink()
    assert settling.outdated_layers(repository) == set()  # what is lost shall not keep all else


def test_the_current_stream_of_a_layer_is_kept_while_a_config_names_another(repository: Repository) -> None:
    commit(repository)
    name = layer_stream(load(repository).content.config.diff_ids[0])
    writer = Writer(Algorithm.SHA256, ContentType.OCI_LAYER)
    writer.inline(b"the same layer, cut in another way")
    current = repository.objects.store(writer.finish())
    repository.link_stream(name, current)
    roots = settling.outdated_layers(repository)
    assert roots == {name}
    collect(repository, roots=roots, dry_run=False)
    assert repository.stream(name) == current
    assert repository.objects.has(current)
