"""The keeper: what loops over a whole repository, beside the daemon."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

from composefsd.digests import OciDigest
from composefsd.errors import ComposefsdError, FormatError, LimitExceededError
from composefsd.oci.fsck import Inspector, check_names, require_layer
from composefsd.oci.settling import outdated_layers, settle, unsettled_configs
from composefsd.oci.storage import manifests
from composefsd.operations.explaining import reasons_for
from composefsd.operations.listing import Listing
from composefsd.repository import Repository, metadata, secure
from composefsd.repository.fsck import Code, Finding, Severity
from composefsd.repository.fsck import check as check_repository
from composefsd.repository.gc import GcResult, temporaries
from composefsd.repository.gc import collect as collect_repository
from composefsd.repository.links import Category
from composefsd.repository.mend import adopt_file, link_image, link_stream
from composefsd.repository.objects import object_path
from composefsd.workers.serve import Call, Task

_LOCK_SECONDS: Final = 60.0
_EXPLAIN_LOCK_SECONDS: Final = 30.0
_SWEEP_SECONDS: Final = 10.0


def collect(call: Call) -> dict[str, Any]:
    """Collect garbage.  args: `repository` (its path), `dry_run`; fds: none, or an empty file for the listing.

    Answers with the fields of CollectResult.
    """
    dry_run = call.args["dry_run"]
    with Repository.open(Path(call.args["repository"])) as repository:
        lock = repository.shared_lock if dry_run else repository.exclusive_lock
        listing = Listing(*call.fds, algorithm=repository.algorithm.value) if call.fds else None
        with lock(timeout=_LOCK_SECONDS), listing or nullcontext():
            result = _collect(call, repository, listing, dry_run=dry_run)
    return {
        "objects_removed": result.objects_removed,
        "bytes_freed": result.bytes_removed,
        "images_pruned": result.images_pruned,
        "streams_pruned": result.streams_pruned,
        "unlisted": listing.unlisted if listing is not None else 0,
    }


def _collect(call: Call, repository: Repository, listing: Listing | None, *, dry_run: bool) -> GcResult:
    left_behind = list(temporaries(repository))
    roots = outdated_layers(repository)
    if dry_run:
        roots |= unsettled_configs(repository)
    else:
        repository.clean_temporaries()
        settle(repository)
    if listing is not None:
        for gone in left_behind:
            listing.goes(gone)
    tick = partial(_tick, call)
    return collect_repository(repository, roots=roots, dry_run=dry_run, tick=tick, witness=listing)


def _tick(call: Call, done: int, total: int) -> None:
    call.report({"done": done, "total": total})


def explain(call: Call) -> dict[str, Any]:
    """Tell what keeps something.  args: `repository`, `what`; answers with `reasons`, a list of words and names."""
    with (
        Repository.open(Path(call.args["repository"]), writable=False) as repository,
        repository.shared_lock(timeout=_EXPLAIN_LOCK_SECONDS),
    ):
        return {"reasons": reasons_for(repository, call.args["what"])}


def check(call: Call) -> dict[str, Any]:
    """Check a repository.  args: `repository`, `depth`, `image` (None for all).

    Reports each `finding` as its fields, and the `state` of each OCI image that was looked at.  Answers with
    `objects`, the number of objects whose content was compared with their names.
    """
    objects = 0

    def tick(done: int, total: int) -> None:
        nonlocal objects
        objects = done
        call.report({"done": done, "total": total})

    image, depth = call.args["image"], call.args["depth"]
    try:
        repository = Repository.open(Path(call.args["repository"]), writable=False)
    except (FormatError, LimitExceededError) as error:  # nothing else can be looked at without it
        code = Code.METADATA_PARSE_FAILED
        call.report({"finding": [Severity.ERROR, code, metadata.NAME, error.message, {}]})
        return {"objects": 0}
    with repository, repository.shared_lock(timeout=_LOCK_SECONDS):
        if image is None:
            looks = check_repository(repository, objects=depth == "full", references=depth != "metadata", tick=tick)
            _report(call, looks)
        if image is not None or depth != "metadata":
            _check_images(call, repository, image, contents=depth == "full")
    return {"objects": objects}


def _report(call: Call, findings: Iterable[Finding]) -> None:
    for found in findings:
        fields = [found.severity, found.code, found.subject, found.message, dict(found.facts)]
        call.report({"finding": fields})


def _check_images(call: Call, repository: Repository, image: str | None, *, contents: bool) -> None:
    """Tell what is wrong with the OCI images, or with one, and what is left of them."""
    inspector = Inspector(repository, contents=contents, images=image is not None)
    try:
        digests = sorted(manifests(repository)) if image is None else [OciDigest.parse(image)]
    except ComposefsdError:  # there is no such directory, which has been told by now
        return
    for digest in digests:
        _report(call, _inspect(call, inspector, digest))
    if image is None:
        _report(call, check_names(repository))
        if contents:
            _report(call, inspector.inspect_unused_layers())


def _inspect(call: Call, inspector: Inspector, digest: OciDigest) -> Iterator[Finding]:
    state = yield from inspector.inspect(digest)
    call.report({"state": state.values()})


def mend(call: Call) -> dict[str, Any]:
    """Set right what the repository can set right by itself.  fds: the repository.

    args: `seals` (objects that lack fs-verity), `files` (paths of files in the place of links), `images` (objects
    that ought to be linked as images), `streams` (names, and what they ought to lead to).  Objects go by digest.
    Answers with `done` and `failed`: paths, and how or why not.
    """
    done, failed = dict[str, str](), dict[str, str]()

    def attempt(path: str, how: str, step: Callable[[], None]) -> None:
        try:
            step()
        except ComposefsdError as error:
            failed[path] = error.message
        else:
            done[path] = how

    with Repository.adopt(os.dup(call.fds[0])) as repository:
        repository.objects.distrusts = True
        for digest in map(bytes.fromhex, call.args["seals"]):
            attempt(object_path(digest), "given fs-verity", partial(repository.objects.reseal, digest))
        for path in call.args["files"]:
            step = partial(adopt_file, repository, path, partial(require_layer, repository))
            attempt(path, "made an object, and linked", step)
        for digest in map(bytes.fromhex, call.args["images"]):
            attempt(f"{Category.IMAGES}/{digest.hex()}", "linked again", partial(link_image, repository, digest))
        for name, hexes in call.args["streams"].items():
            step = partial(link_stream, repository, name, bytes.fromhex(hexes))
            attempt(f"{Category.STREAMS}/{name}", "linked again", step)
        if done:
            repository.sync()
    return {"done": done, "failed": failed}


def sweep(call: Call) -> dict[str, Any]:
    """Remove what dead writers left behind.  args: `repository`; answers with `removed`, how many names.

    Waits for everybody else to let go of the repository, but not for long: LockedError.
    """
    with (
        Repository.open(Path(call.args["repository"])) as repository,
        repository.exclusive_lock(timeout=_SWEEP_SECONDS),
    ):
        return {"removed": repository.clean_temporaries()}


def find_damages(call: Call) -> dict[str, Any]:
    """Compare every object with its name.  fds: the repository, and what holds its exclusive lock.

    Reports each `finding` as its fields; answers with the number of `objects` and their `bytes`.
    """
    seen = secure.Count()

    def tick(done: secure.Count, total: secure.Count) -> None:
        nonlocal seen
        seen = done
        call.report(_counts(done, total))

    with Repository.adopt(os.dup(call.fds[0])) as repository:
        for found in secure.damages(repository, tick):
            call.report({"finding": [found.severity, found.code, found.subject, found.message]})
    return {"objects": seen.objects, "bytes": seen.bytes}


def enable_verity(call: Call) -> dict[str, Any]:
    """Give every object fs-verity, durably.  fds: as `find_damages`; answers with `enabled`: how many had none."""

    def tick(done: secure.Count, total: secure.Count) -> None:
        call.report(_counts(done, total))

    with Repository.adopt(os.dup(call.fds[0])) as repository:
        enabled = secure.enable(repository, tick)
        repository.sync()
    return {"enabled": enabled}


def make_secure(call: Call) -> dict[str, Any]:
    """Have the repository demand fs-verity from now on.  fds: as `find_damages`."""
    with Repository.adopt(os.dup(call.fds[0])) as repository:
        repository.make_secure()
        repository.sync()  # not every filesystem promises that the sync of a directory keeps the verity of a new file
    return {}


def _counts(done: secure.Count, total: secure.Count) -> dict[str, int]:
    return {"done": done.objects, "total": total.objects, "bytes": done.bytes, "bytes_total": total.bytes}


TASKS: Final[dict[str, Task]] = {
    "collect": collect,
    "explain": explain,
    "check": check,
    "mend": mend,
    "sweep": sweep,
    "find_damages": find_damages,
    "enable_verity": enable_verity,
    "make_secure": make_secure,
}
