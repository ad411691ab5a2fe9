"""The keeper: what loops over a whole repository, beside the daemon."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from composefsd.digests import DiffId, OciDigest
from composefsd.errors import ComposefsdError
from composefsd.oci.storage import STREAM_BYTES, StoredImage, load_image, manifest_stream, manifests
from composefsd.repository import Repository
from composefsd.repository.fsck import check as check_repository
from composefsd.repository.gc import collect as collect_repository
from composefsd.splitstream.format import ContentType
from composefsd.splitstream.reader import Splitstream
from composefsd.verity import CHUNK_BYTES
from composefsd.workers.serve import Call, Task

_LOCK_SECONDS: Final = 60.0


def collect(call: Call) -> dict[str, Any]:
    """Collect garbage.  args: `repository` (its path), `dry_run`; answers with the fields of CollectResult."""

    def tick(done: int, total: int) -> None:
        call.report({"done": done, "total": total})

    dry_run = call.args["dry_run"]
    with Repository.open(Path(call.args["repository"])) as repository:
        lock = repository.shared_lock if dry_run else repository.exclusive_lock
        with lock(timeout=_LOCK_SECONDS):
            if not dry_run:
                repository.clean_temporaries()
            result = collect_repository(repository, dry_run=dry_run, tick=tick)
    return {
        "objects_removed": result.objects_removed,
        "bytes_freed": result.bytes_removed,
        "images_pruned": result.images_pruned,
        "streams_pruned": result.streams_pruned,
    }


def check(call: Call) -> dict[str, Any]:
    """Check a repository.  args: `repository`, `depth`, `image` (None for all); reports each `finding` as its fields.

    Answers with `objects`, the number of objects whose content was compared with their names.
    """
    objects = 0

    def tick(done: int, total: int) -> None:
        nonlocal objects
        objects = done
        call.report({"done": done, "total": total})

    image, depth = call.args["image"], call.args["depth"]
    with (
        Repository.open(Path(call.args["repository"]), writable=False) as repository,
        repository.shared_lock(timeout=_LOCK_SECONDS),
    ):
        if image is None:
            for found in check_repository(
                repository, objects=depth == "full", references=depth != "metadata", tick=tick
            ):
                call.report({"finding": [found.severity, found.code, found.subject, found.message]})
        if image is not None or depth != "metadata":
            for finding in _check_images(repository, image, contents=depth == "full"):
                call.report({"finding": finding})
    return {"objects": objects}


def _check_images(repository: Repository, image: str | None, *, contents: bool) -> Iterator[list[str]]:
    """What is wrong with the OCI images: documents that do not load, broken layers, names that lead nowhere."""
    try:
        digests = list(manifests(repository)) if image is None else [OciDigest.parse(image)]
        tags = repository.tags()
    except ComposefsdError:  # something else lies among the links, which has been told by now
        return
    checked: set[bytes] = set()
    for digest in digests:
        try:
            stored = load_image(repository, digest)
        except ComposefsdError as error:
            yield ["error", "image-broken", str(digest), error.message]
            continue
        yield from _check_layers(repository, stored, checked, contents=contents)
    known = {manifest_stream(digest) for digest in digests}
    for tag, stream in sorted(tags.items()):
        if image is None and stream not in known:
            yield ["error", "tag-dangling", tag, f"the name leads to {stream}, which is not there"]


def _check_layers(
    repository: Repository, stored: StoredImage, checked: set[bytes], *, contents: bool
) -> Iterator[list[str]]:
    for diff_id, digest in zip(stored.image.config.diff_ids, stored.layers, strict=True):
        if digest in checked:
            continue
        checked.add(digest)
        try:
            actual = _diff_id(repository, digest, diff_id) if contents else diff_id
        except ComposefsdError as error:
            yield ["error", "layer-broken", str(diff_id), error.message]
            continue
        if actual != diff_id:
            yield ["error", "diff-id-mismatch", str(diff_id), f"the layer's tar has the digest {actual}"]
    for one in stored.images:
        if not repository.has_image(one.digest.digest):
            yield ["warning", "image-unlinked", str(one.digest), f"{one.reference} of {stored.digest} has no link"]


def _diff_id(repository: Repository, stream: bytes, expected: DiffId) -> DiffId:
    """The digest of the tar that a layer's splitstream stands for."""
    tar = hashlib.new(expected.algorithm)
    data = repository.objects.read(stream, STREAM_BYTES)
    layer = Splitstream.parse(data, repository.algorithm, ContentType.OCI_LAYER)
    for chunk in layer.chunks():
        if isinstance(chunk, bytes):
            tar.update(chunk)
            continue
        with os.fdopen(repository.objects.open(layer.object_refs[chunk]), "rb", buffering=0) as file:
            while piece := file.read(CHUNK_BYTES):
                tar.update(piece)
    return DiffId(expected.algorithm, tar.hexdigest())


TASKS: Final[dict[str, Task]] = {"collect": collect, "check": check}
