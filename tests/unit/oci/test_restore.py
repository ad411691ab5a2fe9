"""The storer in a repair: a layer gets another stream, all that name it are written anew, wherever it stops."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, DiffId, ObjectId, OciDigest
from composefsd.oci import store
from composefsd.oci.fsck import Inspector, check_names
from composefsd.oci.manifest import CONFIG_TYPE, MANIFEST_TYPE
from composefsd.oci.storage import layer_stream, load_image, manifest_stream
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import check as check_repository
from composefsd.repository.gc import collect
from composefsd.splitstream import ContentType, Writer
from composefsd.workers.serve import Call

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
FILE = b"file" * 200
HEAD, TAIL = bytes(512), bytes(1024)
DIFF_ID = DiffId.parse(f"sha256:{hashlib.sha256(HEAD + FILE + TAIL).hexdigest()}")
NAME = layer_stream(DIFF_ID)


class PowerFailure(BaseException):
    """Not an Exception: nothing gets the chance to clean up behind it."""


def layer(repository: Repository, note: str = "") -> bytes:
    """Store the layer's stream; a note makes it another stream of the same content."""
    stream = Writer(Algorithm.SHA256, ContentType.OCI_LAYER)
    stream.inline(HEAD)
    stream.external(repository.objects.store(FILE), len(FILE))
    stream.inline(TAIL)
    if note:
        stream.add_reference(note, repository.objects.store(FILE))
    return repository.objects.store(stream.finish())


def documents(number: int) -> dict[str, Any]:
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [str(DIFF_ID)]}, "n": number})
    told = {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)}
    layers = [{"mediaType": LAYER_TYPE, "digest": str(DIFF_ID), "size": 1}]
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": told, "layers": layers})
    digests = {"config_digest": digest_of(config), "manifest_digest": digest_of(manifest)}
    return {"config": config, "manifest": manifest, **digests}


def digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def manifest(number: int) -> OciDigest:
    return OciDigest.parse(documents(number)["manifest_digest"])


def commit(repository: Repository, number: int, stream: bytes, **options: Any) -> None:
    order = {**documents(number), "layers": {str(DIFF_ID): stream.hex()}, "tag": None, "replace": False, "images": []}
    store.commit(Call(order | options, (repository.fd,), lambda event: None))


def name_layer(repository: Repository, stream: bytes) -> None:
    args = {"diff_id": str(DIFF_ID), "stream": stream.hex(), "repair": True}
    store.name_layer(Call(args, (repository.fd,), lambda event: None))


def restore(repository: Repository) -> None:
    """What a repair does once the layer of two images was fetched again, and its stream came out as another one."""
    stream = layer(repository, "note")
    name_layer(repository, stream)
    for number in (0, 1):
        commit(repository, number, stream, repair=True)
    store.end_repair(Call({}, (repository.fd,), lambda event: None))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository.create(tmp_path / "repository", Metadata.new(Algorithm.SHA256), insecure=True) as made:
        stream = layer(made)
        made.link_stream(NAME, stream)
        for number in (0, 1):
            commit(made, number, stream, tag=f"tag{number}")
        yield made


def findings(repository: Repository) -> list[str]:
    inspector = Inspector(repository, contents=True, images=False)
    found = [*check_repository(repository, objects=True), *check_names(repository)]
    found += [one for number in (0, 1) for one in inspector.inspect(manifest(number))]
    return [one.code.value for one in found]


def path_of(repository: Repository, digest: bytes) -> Path:
    return repository.path / "objects" / ObjectId(digest).path


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
        for name in ("symlink", "rename", "link", "unlink"):
            patch.setattr(os, name, failing(name))
        yield made


def test_all_images_that_share_a_layer_name_its_new_stream(repository: Repository) -> None:
    before = repository.stream(NAME)
    restore(repository)
    assert repository.stream(NAME) != before
    assert findings(repository) == []
    assert [load_image(repository, manifest(number)).layers for number in (0, 1)] == [(repository.stream(NAME),)] * 2
    collect(repository, dry_run=False)
    assert findings(repository) == []


def test_wherever_a_repair_stops_nothing_is_lost_to_the_collector(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream that is replaced is whole here: a repair must not make worse what was good."""
    shutil.copytree(repository.path, tmp_path / "probe", symlinks=True)
    with Repository.open(tmp_path / "probe") as probe, power_fails_at(-1, monkeypatch) as made:
        restore(probe)
    assert len(made) > 10
    for stop in range(len(made)):
        path = tmp_path / f"stopped-{stop}"
        shutil.copytree(repository.path, path, symlinks=True)
        with Repository.open(path) as stopped, pytest.raises(PowerFailure), power_fails_at(stop, monkeypatch):
            restore(stopped)
        with Repository.open(path) as reopened:
            reopened.clean_temporaries()
            collect(reopened, dry_run=False)
            left = findings(reopened)
            assert set(left) <= {"repair-unfinished", "layer-ref-outdated", "config-ref-outdated"}, stop
            for number in (0, 1):
                assert load_image(reopened, manifest(number)).digest == manifest(number)
            restore(reopened)
            assert findings(reopened) == [], stop
        shutil.rmtree(path)


def test_a_damaged_object_is_replaced_though_it_has_its_name_and_its_size(repository: Repository) -> None:
    digest = repository.objects.store(FILE)
    path_of(repository, digest).unlink()
    path_of(repository, digest).write_bytes(bytes(len(FILE)))
    documents_of = load_image(repository, manifest(0)).content
    stream = repository.read_stream(manifest_stream(manifest(0)))
    path_of(repository, stream.object_refs[0]).unlink()
    path_of(repository, stream.object_refs[0]).write_bytes(bytes(len(documents_of.manifest.data)))
    current = repository.stream(NAME)
    assert current is not None
    commit(repository, 0, current, repair=True)
    assert "manifest-read-failed" not in findings(repository)


def test_damage_of_another_image_does_not_stop_a_repair(repository: Repository) -> None:
    other = repository.stream(manifest_stream(manifest(1)))
    assert other is not None
    path_of(repository, other).unlink()
    current = repository.stream(NAME)
    assert current is not None
    commit(repository, 0, current, repair=True)
    commit(repository, 1, current, repair=True)
    assert findings(repository) == []


def test_a_link_that_leads_nowhere_is_kept_by_its_name_and_replaced(repository: Repository, tmp_path: Path) -> None:
    link = repository.path / "streams" / NAME
    link.unlink()
    link.symlink_to("../meta.json")
    name_layer(repository, layer(repository))
    assert repository.stream(NAME) is not None
    assert findings(repository) == ["repair-unfinished"]
