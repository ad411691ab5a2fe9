"""The storer with artifacts: blobs that are kept as they are, and a config that many artifacts share."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, DiffId, OciDigest
from composefsd.errors import CorruptError, DigestMismatchError, FormatError, NoSpaceError, UnsupportedError
from composefsd.oci import settling, store
from composefsd.oci.manifest import MANIFEST_TYPE
from composefsd.oci.storage import config_stream, layer_stream, load_image, manifest_stream
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import check as check_repository
from composefsd.repository.gc import collect
from composefsd.splitstream import ContentType
from composefsd.workers.serve import Call

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
THING = "application/vnd.example.thing"
WRITES = ("symlink", "rename", "link", "unlink")


class PowerFailure(BaseException):
    """Not an Exception: nothing gets the chance to clean up behind it."""


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


EMPTY = config_stream(OciDigest.parse(digest(b"{}")))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    metadata = Metadata.new(Algorithm.SHA256)
    with Repository.create(tmp_path / "repository", metadata, insecure=True) as made:
        yield made


@pytest.fixture
def put(repository: Repository, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Stores a blob from a file, as if its descriptor had told `changes`; answers as the storer does."""

    def put(data: bytes, offset: int = 0, **changes: Any) -> dict[str, Any]:
        path = tmp_path / "blob"
        path.write_bytes(bytes(offset) + data)
        args = {
            "algorithm": "sha256",
            "hex": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "offset": offset,
            "limit": 1 << 30,
        } | changes
        blob = os.open(path, os.O_RDONLY)
        try:
            return store.store_blob(Call(args, (repository.fd, blob), lambda event: None))
        finally:
            os.close(blob)

    return put


def manifest_of(layers: list[bytes]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": THING,
            "config": {"mediaType": EMPTY_TYPE, "digest": digest(b"{}"), "size": 2},
            "layers": [{"mediaType": THING, "digest": digest(data), "size": len(data)} for data in layers],
        }
    ).encode()


def commit(repository: Repository, layers: dict[bytes, str], tag: str | None) -> OciDigest:
    """An artifact with the config `{}` of layers that are stored; the digest of its manifest."""
    manifest = manifest_of(list(layers))
    order = {
        "manifest": manifest.decode(),
        "manifest_digest": digest(manifest),
        "config": "{}",
        "config_digest": digest(b"{}"),
        "layers": {digest(data): stream for data, stream in layers.items()},
        "tag": tag,
        "replace": False,
        "images": [],
    }
    store.commit(Call(order, (repository.fd,), lambda event: None))
    return OciDigest.parse(digest(manifest))


@pytest.fixture
def add(repository: Repository, put: Callable[..., dict[str, Any]]) -> Callable[..., OciDigest]:
    """Stores and names an artifact of some blobs."""

    def add(tag: str | None, *blobs: bytes) -> OciDigest:
        layers = {}
        for data in blobs:
            layers[data] = put(data)["stream"]
            args = {"diff_id": digest(data), "stream": layers[data]}
            store.name_layer(Call(args, (repository.fd,), lambda event: None))
        return commit(repository, layers, tag)

    return add


def named(repository: Repository, stream: str) -> set[str]:
    return set(repository.read_stream(stream).named_refs)


@pytest.mark.parametrize("size", [0, 1, 64, 65, 4096, (8 << 20) + 1])
def test_a_blob_is_one_object_whatever_its_size(
    repository: Repository, put: Callable[..., dict[str, Any]], size: int
) -> None:
    data = bytes(size)
    stream = repository.read_stream_object(bytes.fromhex(put(data, offset=512)["stream"]), ContentType.OCI_BLOB)
    assert (stream.size_bytes, stream.named_refs) == (size, {})
    assert list(stream.chunks()) == [0]
    (ref,) = stream.object_refs
    assert repository.objects.read(ref, 1 << 30) == data


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"hex": "0" * 64}, DigestMismatchError),
        ({"size": 12}, FormatError),
        ({"size": 10}, DigestMismatchError),
        ({"limit": 10}, NoSpaceError),
    ],
)
def test_a_blob_that_is_not_as_promised_leaves_nothing(
    repository: Repository,
    put: Callable[..., dict[str, Any]],
    changes: dict[str, Any],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        put(b"some bytes.", **changes)
    assert [path for path in (repository.path / "objects").rglob("*") if path.is_file()] == []


def test_a_copy_is_made_of_the_bytes_that_were_promised_or_the_task_fails(tmp_path: Path) -> None:
    data = b"packed " * 100_000
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"before" + data + b"behind")
    args = {"algorithm": "sha256", "hex": hashlib.sha256(data).hexdigest(), "size": len(data), "offset": 6}
    with source.open("rb") as blob, target.open("wb") as file:
        call = Call(args | {"limit": len(data)}, (blob.fileno(), file.fileno()), lambda event: None)
        store.copy_blob(call)
        assert target.read_bytes() == data
        for changes in ({"offset": 5}, {"hex": "0" * 64}):
            with pytest.raises(DigestMismatchError):
                store.copy_blob(Call(call.args | changes, call.fds, call.report))
        with pytest.raises(NoSpaceError):
            store.copy_blob(Call(call.args | {"limit": 10}, call.fds, call.report))


def test_an_artifact_can_be_loaded_back_and_is_no_image(
    repository: Repository, add: Callable[..., OciDigest]
) -> None:
    stored = load_image(repository, add("thing", b"one", b"two"))
    assert [str(layer.diff_id) for layer in stored.content.layers] == [digest(b"one"), digest(b"two")]
    assert stored.layers == tuple(
        repository.stream(layer_stream(DiffId.parse(digest(data)))) for data in (b"one", b"two")
    )
    assert (stored.content.config.data, stored.images) == (b"{}", ())
    with pytest.raises(UnsupportedError, match=f"{stored.digest} is an artifact of type {THING}, not a container"):
        stored.require_image()
    assert list(check_repository(repository, objects=True)) == []


def test_a_layer_that_only_the_config_names_is_lost(repository: Repository, add: Callable[..., OciDigest]) -> None:
    """composefs-rs looks for it in the manifest's stream alone."""
    found = add("thing", b"one")
    name = manifest_stream(found)
    stream = repository.read_stream(name)
    references = {key: value for key, value in stream.named_refs.items() if key.startswith("config:")}
    repository.link_stream(name, repository.objects.store(settling.rewritten(repository, stream, references)))
    with pytest.raises(CorruptError, match="lost its layer"):
        load_image(repository, found)


def test_artifacts_of_one_config_find_their_layers_in_it(
    repository: Repository, add: Callable[..., OciDigest]
) -> None:
    first, second = add("first", b"one", b"both"), add("second", b"two", b"both")
    add("third")
    assert named(repository, EMPTY) == {digest(data) for data in (b"one", b"two", b"both")}
    current = repository.stream(EMPTY)
    for one in (first, second):
        key = f"config:{digest(b'{}')}"
        assert repository.read_stream(manifest_stream(one)).named_refs[key] == current
    collect(repository, dry_run=False)
    assert {len(load_image(repository, one).layers) for one in (first, second)} == {2}
    assert list(check_repository(repository, objects=True)) == []


def test_what_no_artifact_has_any_more_goes_with_the_next_commit(
    repository: Repository, add: Callable[..., OciDigest]
) -> None:
    add("first", b"one")
    add("second", b"two")
    repository.untag("first")
    collect(repository, dry_run=False)
    add("third", b"three")
    assert named(repository, EMPTY) == {digest(b"two"), digest(b"three")}


def test_a_config_lets_the_layers_of_a_removed_artifact_go(
    repository: Repository, add: Callable[..., OciDigest]
) -> None:
    first, second = add("first", b"one", b"both"), add("second", b"two", b"both")
    repository.untag("first")
    repository.unlink_stream(manifest_stream(first))
    settling.drop_layers(repository, OciDigest.parse(digest(b"{}")))
    collect(repository, dry_run=False)
    assert named(repository, EMPTY) == {digest(b"two"), digest(b"both")}
    assert repository.stream(layer_stream(DiffId.parse(digest(b"one")))) is None
    assert len(load_image(repository, second).layers) == 2
    assert list(check_repository(repository, objects=True)) == []


def test_a_config_that_nothing_has_any_more_is_left_to_the_collector(
    repository: Repository, add: Callable[..., OciDigest]
) -> None:
    only = add("only", b"one")
    repository.untag("only")
    repository.unlink_stream(manifest_stream(only))
    before = repository.stream(EMPTY)
    settling.drop_layers(repository, OciDigest.parse(digest(b"{}")))
    assert repository.stream(EMPTY) == before
    settling.drop_layers(repository, OciDigest.parse(digest(b"nothing")))
    collect(repository, dry_run=False)
    assert list(repository.streams()) == []


@pytest.mark.parametrize("step", ["commit", "drop"])
def test_wherever_it_stops_artifacts_of_one_config_stay_whole(
    tmp_path: Path,
    repository: Repository,
    add: Callable[..., OciDigest],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """A second artifact rewrites the config that the first one names, and so does removing it."""
    first, gone = add("first", b"one"), add(None, b"gone")
    layers = {b"two": load_stream(repository, add)}

    def act(opened: Repository) -> None:
        if step == "commit":
            commit(opened, layers, "second")
        else:
            opened.unlink_stream(manifest_stream(gone))
            settling.drop_layers(opened, OciDigest.parse(digest(b"{}")))

    for stop in range(100):
        path = tmp_path / f"stopped-{stop}"
        shutil.copytree(repository.path, path, symlinks=True)
        stopped = interrupted(path, act, stop, monkeypatch)
        with Repository.open(path) as reopened, reopened.exclusive_lock():
            reopened.clean_temporaries()
            collect(reopened, dry_run=False)
            assert load_image(reopened, first).content.config.data == b"{}", stop
            assert list(check_repository(reopened, objects=True)) == [], stop
        shutil.rmtree(path)
        if not stopped:
            break
    assert stop > 2


def load_stream(repository: Repository, add: Callable[..., OciDigest]) -> str:
    """Store a layer that belongs to nothing yet; its stream."""
    removed = add(None, b"two")
    repository.unlink_stream(manifest_stream(removed))
    settling.drop_layers(repository, OciDigest.parse(digest(b"{}")))
    stream = repository.stream(layer_stream(DiffId.parse(digest(b"two"))))
    assert stream is not None
    return stream.hex()


def interrupted(path: Path, act: Callable[[Repository], None], stop: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the power failed at the write of this number, before the work was done."""
    made = 0

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def write(*args: Any, **options: Any) -> Any:
            nonlocal made
            if made == stop:
                raise PowerFailure
            made += 1
            return real(*args, **options)

        return write

    with Repository.open(path) as repository, monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(os, name, failing(name))
        try:
            act(repository)
        except PowerFailure:
            return True
        return False
