"""Checking a repository.  Damage is the input here, not a failure: it comes out as findings, and the check goes on.

The checks and their codes are those of composefs-rs's fsck, apart from the last group of `Code`.  docs/fsck.md tells
for each code what it means and what repairs it.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from composefsd import verity
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs import reader as erofs
from composefsd.errors import ComposefsdError, CorruptError, FormatError, LimitExceededError, ObjectMissingError
from composefsd.linux import fsverity
from composefsd.linux.oserrors import translate
from composefsd.repository import links, metadata, setup
from composefsd.repository.drafts import is_temporary
from composefsd.repository.links import Category
from composefsd.repository.objects import DIRECTORY, TEMPORARY_PREFIX, object_path
from composefsd.repository.repository import Repository

Tick = Callable[[int, int], None]
"""Told how many objects were checked, and of how many."""

_TICK_OBJECTS: Final = 64
_SMALL_BYTES: Final = verity.CHUNK_BYTES
_FACT_CHARACTERS: Final = 300
_NO_TEXT: Final = re.compile("[\ud800-\udfff]")


class Severity(StrEnum):
    """Errors are damage; warnings are what a healthy repository can do without."""

    ERROR = "error"
    WARNING = "warning"


class Code(StrEnum):
    """What is wrong, in a word that a program can compare."""

    METADATA_PARSE_FAILED = "metadata-parse-failed"
    METADATA_ALGORITHM_MISMATCH = "metadata-algorithm-mismatch"
    OBJECT_INVALID_NAME = "object-invalid-name"
    OBJECT_OPEN_FAILED = "object-open-failed"
    OBJECT_VERITY_MISSING = "object-verity-missing"
    OBJECT_VERITY_FAILED = "object-verity-failed"
    OBJECT_DIGEST_MISMATCH = "object-digest-mismatch"
    ENTRY_NOT_SYMLINK = "entry-not-symlink"
    BROKEN_SYMLINK = "broken-symlink"
    STAT_FAILED = "stat-failed"
    STREAM_OPEN_FAILED = "stream-open-failed"
    STREAM_READ_FAILED = "stream-read-failed"
    MISSING_OBJECT_REF = "missing-object-ref"
    OBJECT_CHECK_FAILED = "object-check-failed"
    MISSING_NAMED_REF = "missing-named-ref"
    IMAGE_OPEN_FAILED = "image-open-failed"
    IMAGE_READ_FAILED = "image-read-failed"
    IMAGE_INVALID = "image-invalid"
    IMAGE_MISSING_OBJECT = "image-missing-object"
    UNEXPECTED_FILE_TYPE = "unexpected-file-type"

    # Ours: the first two stop garbage collection, which goes by the texts of links.
    ENTRY_NOT_AN_OBJECT = "entry-not-an-object"
    REF_NOT_AN_ENTRY = "ref-not-an-entry"
    IMAGE_NAME_MISMATCH = "image-name-mismatch"
    STRAY_TEMPORARY = "stray-temporary"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; subject is a path in the repository, or the digest of an OCI image or a layer.

    facts are what a program needs of it: `object`, `expected`, `actual`, `target` and the like, by code.
    """

    severity: Severity
    code: StrEnum
    subject: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


def check(repo: Repository, *, objects: bool, references: bool = True, tick: Tick | None = None) -> Iterator[Finding]:
    """Everything that is wrong with the repository.

    With `objects`, the content of every object is looked at, and images more closely; without `references`, not even
    whether the objects that streams and images name are there.  The caller holds the shared lock.  What only OCI
    knows, such as that a manifest is what its name says, is not looked at.
    """
    yield from _check_metadata(repo)
    if objects:
        yield from check_objects(repo, range(256), tick)
    context = _Context(repo, _Objects(repo.fd) if references else None, thorough=objects)
    for category in Category:
        yield from _check_category(context, category)
    yield from _strays(repo)


def check_objects(repo: Repository, first_bytes: Iterable[int], tick: Tick | None = None) -> Iterator[Finding]:
    """What is wrong with the objects whose digests begin with one of `first_bytes`: processes can share the work."""
    directories = [f"{DIRECTORY}/{first:02x}" for first in first_bytes]
    names: dict[str, list[str]] = {}
    for directory in directories:
        try:
            names[directory] = [name for name, _, _ in links.listing(repo.fd, directory)]
        except ComposefsdError as error:
            yield _error(Code.STAT_FAILED, directory, error)
    valid = re.compile(f"[0-9a-fA-F]{{{2 * repo.algorithm.digest_bytes - 2}}}")
    done, total = 0, sum(map(len, names.values()))
    for directory, found in names.items():
        for name in found:
            if tick is not None and done % _TICK_OBJECTS == 0:
                tick(done, total)
            done += 1
            if (finding := _check_object(repo, directory, name, valid)) is not None:
                yield finding
    if tick is not None:
        tick(done, total)


def _check_metadata(repo: Repository) -> Iterator[Finding]:
    try:
        found, _ = setup.load(repo.fd)
    except ComposefsdError as error:
        yield _error(Code.METADATA_PARSE_FAILED, metadata.NAME, error)
        return
    if found.algorithm is not repo.algorithm:
        message = f"the algorithm is {found.algorithm.label}, not {repo.algorithm.label}"
        facts = {"expected": repo.algorithm.label, "actual": found.algorithm.label}
        yield _error(Code.METADATA_ALGORITHM_MISMATCH, metadata.NAME, message, **facts)


def _check_object(repo: Repository, directory: str, name: str, names: re.Pattern[str]) -> Finding | None:
    path = f"{directory}/{name}"
    if not names.fullmatch(name):
        return _error(Code.OBJECT_INVALID_NAME, path, "not the name of an object")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=repo.fd)
    except OSError as error:
        return _error(Code.OBJECT_OPEN_FAILED, path, translate(error, "opening it"))
    try:
        return _check_content(repo, path, fd)
    finally:
        os.close(fd)


def _check_content(repo: Repository, path: str, fd: int) -> Finding | None:
    measured = None
    try:
        measured = fsverity.measure(fd, repo.algorithm)
    except ComposefsdError as error:
        if repo.verity:
            return _error(Code.OBJECT_VERITY_MISSING, path, error)
    if measured is None and repo.verity:
        return _error(Code.OBJECT_VERITY_MISSING, path, "it has no fs-verity, which the repository demands")
    try:
        found = _read_through(fd, measured).hex if measured else _compute(fd, repo.algorithm).hex()
    except (ComposefsdError, OSError) as error:
        known = translate(error, "reading it") if isinstance(error, OSError) else error
        return _error(Code.OBJECT_VERITY_FAILED, path, known)
    if path.lower() != f"{DIRECTORY}/{found[:2]}/{found[2:]}":
        return _error(Code.OBJECT_DIGEST_MISMATCH, path, f"its digest is {found}", actual=found)
    return None


def _read_through(fd: int, measured: ObjectId) -> ObjectId:
    """Have the kernel compare every block with the digest that it vouches for; what is rotten raises OSError."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while os.read(fd, verity.CHUNK_BYTES):
        pass
    return measured


def _compute(fd: int, algorithm: Algorithm) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError("it is not a regular file")
    if status.st_size <= _SMALL_BYTES:  # most are; one read, and no buffer of a megabyte
        return verity.compute_digest(os.read(fd, status.st_size), algorithm)
    return verity.compute_file(fd, algorithm).digest


class _Objects:
    """Which objects exist.  Layers have most objects in common, so an answer is remembered."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._present: set[bytes] = set()

    def check(self, digest: bytes, missing: Code, subject: str, what: str) -> Iterator[Finding]:
        """A finding unless there is such an object."""
        if digest in self._present:
            return
        try:
            os.stat(object_path(digest), dir_fd=self._root)
        except FileNotFoundError:
            yield _error(missing, subject, f"{what} {digest.hex()} is missing", object=digest.hex())
        except OSError as error:
            known = translate(error, f"looking for object {digest.hex()}")
            yield _error(Code.OBJECT_CHECK_FAILED, subject, known, object=digest.hex())
        else:
            self._present.add(digest)


@dataclass(frozen=True, slots=True)
class _Context:
    """What the checks of links share; without `known` references are not followed."""

    repo: Repository
    known: _Objects | None
    thorough: bool

    def references(self, refs: Iterable[tuple[str, bytes]], missing: Code, subject: str) -> Iterator[Finding]:
        """A finding for each object that `subject` names, by way of what, and that is not there."""
        if self.known is not None:
            for what, digest in refs:
                yield from self.known.check(digest, missing, subject, what)


def _check_category(context: _Context, category: Category) -> Iterator[Finding]:
    repo = context.repo
    try:
        found = links.listing(repo.fd, category.value)
    except ComposefsdError as error:
        yield _error(Code.STAT_FAILED, category.value, error)
        return
    names = {name for name, is_link, _ in found if is_link}
    for name, is_link, _ in found:
        path = f"{category}/{name}"
        if name == links.REFS:
            yield from _check_refs(repo, category, names)
        elif not is_link:
            yield _error(Code.ENTRY_NOT_SYMLINK, path, "not a symbolic link")
        else:
            yield from _check_entry(context, category, path)


def _check_entry(context: _Context, category: Category, path: str) -> Iterator[Finding]:
    repo = context.repo
    try:
        text, resolves = links.read(repo.fd, path), links.leads_somewhere(repo.fd, path)
    except ComposefsdError as error:
        yield _error(Code.STAT_FAILED, path, error)
        return
    if text is None:  # removed since
        return
    if not resolves:
        yield _error(Code.BROKEN_SYMLINK, path, f"it leads to {text[:300]}, which is not there", target=text)
        return
    digest = links.object_in_text(text, repo.algorithm)
    if digest is None:
        yield _error(Code.ENTRY_NOT_AN_OBJECT, path, f"it leads to {text[:300]}, which is no object", target=text)
    elif category is Category.STREAMS:
        yield from _check_stream(context, path, digest)
    else:
        yield from _check_image(context, path, digest)


def _check_stream(context: _Context, path: str, digest: bytes) -> Iterator[Finding]:
    try:
        stream = context.repo.read_stream_object(digest)
    except (ObjectMissingError, CorruptError) as error:
        yield _error(Code.STREAM_OPEN_FAILED, path, error)
        return
    except ComposefsdError as error:
        yield _error(Code.STREAM_READ_FAILED, path, error)
        return
    objects = (("object", ref) for ref in stream.object_refs)
    yield from context.references(objects, Code.MISSING_OBJECT_REF, path)
    named = ((f"what it calls {name[:200]}, object", ref) for name, ref in stream.named_refs.items())
    yield from context.references(named, Code.MISSING_NAMED_REF, path)


def _check_image(context: _Context, path: str, digest: bytes) -> Iterator[Finding]:
    repo = context.repo
    if path != f"{Category.IMAGES}/{digest.hex()}":
        yield _error(Code.IMAGE_NAME_MISMATCH, path, f"it leads to the image {digest.hex()}", actual=digest.hex())
    try:
        image = repo.read_image(digest)
    except ObjectMissingError as error:
        yield _error(Code.IMAGE_OPEN_FAILED, path, error)
        return
    except ComposefsdError as error:
        yield _error(Code.IMAGE_READ_FAILED, path, error)
        return
    try:
        if context.thorough:
            erofs.check(image, repo.algorithm)
        refs = erofs.object_ids(image, repo.algorithm)
    except (FormatError, LimitExceededError) as error:
        yield _error(Code.IMAGE_INVALID, path, error)
        return
    yield from context.references((("object", ref) for ref in sorted(refs)), Code.IMAGE_MISSING_OBJECT, path)


def _check_refs(repo: Repository, category: Category, names: set[str]) -> Iterator[Finding]:
    pending = [f"{category}/{links.REFS}"]
    while pending:
        directory = pending.pop()
        try:
            found = links.listing(repo.fd, directory)
        except ComposefsdError as error:
            yield _error(Code.STAT_FAILED, directory, error)
            continue
        for name, is_link, is_directory in found:
            path = f"{directory}/{name}"
            if is_directory:
                pending.append(path)
            elif is_link:
                yield from _check_ref(repo, path, names)
            else:
                yield _error(Code.UNEXPECTED_FILE_TYPE, path, "neither a directory nor a symbolic link")


def _check_ref(repo: Repository, path: str, names: set[str]) -> Iterator[Finding]:
    try:
        text, resolves = links.read(repo.fd, path), links.leads_somewhere(repo.fd, path)
    except ComposefsdError as error:
        yield _error(Code.STAT_FAILED, path, error)
        return
    if text is None:  # removed since
        return
    if not resolves:
        yield _error(Code.BROKEN_SYMLINK, path, f"it leads to {text[:300]}, which is not there", target=text)
    elif not _is_entry(repo, path, links.last_component(text), names):
        message = f"it leads to {text[:300]}, not to an entry of its category"
        yield _error(Code.REF_NOT_AN_ENTRY, path, message, target=text)


def _is_entry(repo: Repository, ref: str, name: str | None, names: set[str]) -> bool:
    """Whether the ref leads to a link of its category: one of `names`, or one that was made since they were read."""
    if name is None or name in names:
        return name is not None
    try:
        return links.read(repo.fd, f"{ref.partition('/')[0]}/{name}") is not None
    except ComposefsdError:  # no link
        return False


def _strays(repo: Repository) -> Iterator[Finding]:
    prefixes = {"": (links.TEMPORARY_PREFIX, setup.TEMPORARY_PREFIX), f"{DIRECTORY}/": (TEMPORARY_PREFIX,)}
    for directory, candidates in prefixes.items():
        try:
            found = links.listing(repo.fd, directory or ".")
        except ComposefsdError as error:
            yield _error(Code.STAT_FAILED, directory, error)
            continue
        for name, _, _ in found:
            if any(is_temporary(name, prefix) for prefix in candidates):
                message = "left behind by a writer, or in use by one right now"
                yield Finding(Severity.WARNING, Code.STRAY_TEMPORARY, f"{directory}{name}", message)


def _error(code: Code, subject: str, message: str | ComposefsdError, **facts: str) -> Finding:
    known = {name: printable(fact[:_FACT_CHARACTERS]) for name, fact in facts.items()}
    return Finding(Severity.ERROR, code, printable(subject), printable(str(message)), known)


def printable(text: str) -> str:
    """Names need not be UTF-8, and JSON can write what is none; findings must be."""
    return _NO_TEXT.sub("\ufffd", text)
