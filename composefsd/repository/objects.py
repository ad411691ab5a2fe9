"""The object store: immutable files named by their fs-verity digest.

An object appears under its name complete and with fs-verity, or not at all.  It is not durable before the
repository's `sync`: that is one barrier for all objects of an operation, and it comes before any link to them.
"""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, Self

from composefsd import verity
from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import (
    CorruptError,
    DigestMismatchError,
    LimitExceededError,
    LockedError,
    NoSpaceError,
    ObjectMissingError,
    VerityRequiredError,
)
from composefsd.linux import fsverity
from composefsd.linux.oserrors import translate, translated
from composefsd.linux.reading import pread_all
from composefsd.repository.drafts import MODE, Draft, remove_temporaries, temporary_name
from composefsd.repository.links import ensure_directory
from composefsd.verity import Buffer, Hasher

log = logging.getLogger(__name__)

DIRECTORY: Final = "objects"
TEMPORARY_PREFIX: Final = ".tmp-object-"

_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_COPIES: Final = 8
_COPY_BYTES: Final = 1 << 30


class ObjectStore:
    """The `objects/` of the repository whose directory is open at `root`.

    Digests go in and out as raw bytes.  With `demands_verity` every object has fs-verity; without it, it is enabled
    where the filesystem can.  Not for use by two threads at once; any number of processes may share a store.

    While `distrusts` is set, as it is for a repair, an object that is stored again does not count as there by its
    name: its content is read and compared, and a wrong one is replaced in one step.  Whoever has the old file open,
    or mounted, keeps it.
    """

    def __init__(
        self, root: int, algorithm: Algorithm, *, demands_verity: bool, require_writable: Callable[[], None]
    ) -> None:
        self.added = 0
        self.reused = 0
        self.bytes_added = 0
        self.unsynced = False
        self.distrusts = False
        self.algorithm = algorithm
        self._root = root
        self._demands_verity = demands_verity
        self._can_verity = True  # until the filesystem says that it cannot
        self._require_writable = require_writable
        self._directory = -1
        self._fan_out = [-1] * 256
        self._lent: dict[int, Draft] = {}

    def demand_verity(self, *, demanded: bool) -> None:
        """Whether every object must have fs-verity, as the repository knows once it is locked."""
        self._demands_verity = demanded
        self._can_verity |= demanded

    def close(self) -> None:
        """Close all descriptors, and throw away what was lent out and neither adopted nor discarded."""
        for fd in list(self._lent):
            self.discard(fd)
        for fd in (*self._fan_out, self._directory):
            if fd >= 0:
                os.close(fd)
        self._directory, self._fan_out = -1, [-1] * 256

    # Reading

    def has(self, digest: bytes) -> bool:
        """Whether there is a file of that name; it is not looked into."""
        return os.access(object_path(digest), os.F_OK, dir_fd=self._root)

    def open(self, digest: bytes) -> int:
        """A descriptor of the object for reading, at its start; the caller closes it.

        Its fs-verity digest is compared if it has one, and it must have one where the repository demands it.  Raises
        ObjectMissingError, CorruptError, and DeviceError.
        """
        return self._open(digest)[0]

    def read(self, digest: bytes, limit: int) -> bytes:
        """The content of the object, checked against the digest: by the kernel, or else here.

        Raises LimitExceededError if it has more than `limit` bytes, and what `open` raises.
        """
        fd, measured = self._open(digest)
        with translated("reading an object", subject=digest.hex()), os.fdopen(fd, "rb", buffering=0):
            size = os.fstat(fd).st_size
            if size > limit:
                raise LimitExceededError(f"object {digest.hex()[:12]} has {size} bytes, more than {limit}")
            data = pread_all(fd, size, 0)
        if not measured and verity.compute_digest(data, self.algorithm) != digest:
            raise CorruptError(
                f"the content of object {digest.hex()} is not what its name says", subject=digest.hex()
            )
        return data

    def read_part(self, digest: bytes, start: int, count: int) -> bytes:
        """At most `count` bytes of the object from `start`, nothing beyond its end; only fs-verity checks them.

        Raises what `open` raises.
        """
        fd = self.open(digest)
        with translated("reading an object", subject=digest.hex()), os.fdopen(fd, "rb", buffering=0):
            return pread_all(fd, count, start) if start < os.fstat(fd).st_size else b""

    def pieces(self, digest: bytes) -> Iterator[bytes]:
        """The content of the object in pieces of at most a mebibyte; only fs-verity checks them.

        Raises what `open` raises.
        """
        fd = self.open(digest)
        with os.fdopen(fd, "rb", buffering=0):
            while piece := self._piece(fd, digest):
                yield piece

    def _piece(self, fd: int, digest: bytes) -> bytes:
        with translated("reading an object", subject=digest.hex()):
            return os.read(fd, verity.CHUNK_BYTES)

    def _open(self, digest: bytes) -> tuple[int, bool]:
        """The object's descriptor, and whether the kernel vouches for its content."""
        try:
            fd = os.open(object_path(digest), _READ | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._root)
        except FileNotFoundError as error:
            raise ObjectMissingError(f"object {digest.hex()} is missing", subject=digest.hex()) from error
        except OSError as error:
            raise translate(error, f"opening object {digest.hex()}", subject=digest.hex()) from error
        try:
            _require_regular(fd, digest)
            return fd, self._measured(fd, digest)
        except BaseException:
            os.close(fd)
            raise

    def _measured(self, fd: int, digest: bytes) -> bool:
        """Whether the file has fs-verity; CorruptError if by another digest, or if it ought to and has not."""
        found = fsverity.measure(fd, self.algorithm) if self._can_verity else None
        if found is not None and found.digest != digest:
            raise CorruptError(f"object {digest.hex()} has the digest {found.hex}", subject=digest.hex())
        if found is None and self._demands_verity:
            raise CorruptError(f"object {digest.hex()} has no fs-verity", subject=digest.hex())
        return found is not None

    # Writing

    def store(self, data: Buffer) -> bytes:
        """Make `data` an object, unless it is one already; its digest.

        Raises ReadOnlyError, NoSpaceError, DeviceError, and CorruptError if an object of that name has other content.
        """
        self._require_writable()
        digest = verity.compute_digest(data, self.algorithm)
        name = digest.hex()[2:]
        with translated("storing an object", partition="repository"):
            directory = self._fan_out_directory(digest[0])
            if os.access(name, os.F_OK, dir_fd=directory) and self._usable(directory, name, digest, len(data)):
                self.reused += 1
                return digest
            with Draft.open(directory, self._objects(), TEMPORARY_PREFIX) as draft:
                draft.write(data)
                self._publish(draft, digest, len(data))
        return digest

    def writer(self, size_hint: int = 0) -> "ObjectWriter":
        """For an object that comes in pieces; `size_hint` bytes are asked for, not reserved.

        Raises NoSpaceError if they do not fit, else what `store` raises.
        """
        self._require_writable()
        with translated("storing an object", partition="repository"):
            self._ask_for_room(size_hint)
            return ObjectWriter(self, self._draft())

    def temporary(self) -> int:
        """A descriptor of an empty file for another process to fill; it goes back to `adopt` or `discard`."""
        self._require_writable()
        with translated("storing an object", partition="repository"):
            draft = self._draft()
        self._lent[draft.fd] = draft
        return draft.fd

    def adopt(self, fd: int, digest: bytes) -> None:
        """Make the file that `temporary` gave out an object; `fd` is closed in any case.

        The caller has computed `digest` from the content.  Whoever wrote it must have closed it: with fs-verity the
        kernel sees to that and the digest is compared again, without it nothing but the caller does.  Raises
        DigestMismatchError, and what `store` raises.
        """
        draft = self._lent.pop(fd, None) or Draft(fd)
        with translated("storing an object", partition="repository"), draft:
            self._require_writable()
            self.finish(draft, digest, os.fstat(fd).st_size)

    def discard(self, fd: int) -> None:
        """Close a file of `temporary` that will not be an object."""
        (self._lent.pop(fd, None) or Draft(fd)).close()

    def finish(self, draft: Draft, digest: bytes, size_bytes: int) -> None:
        """Link a complete draft, or leave it alone if there is such an object.  Raises OSError as it comes."""
        directory, name = self._fan_out_directory(digest[0]), digest.hex()[2:]
        if os.access(name, os.F_OK, dir_fd=directory) and self._usable(directory, name, digest, size_bytes):
            self.reused += 1
        else:
            self._publish(draft, digest, size_bytes)

    def reseal(self, digest: bytes) -> None:
        """Give the object `digest` the fs-verity that it lacks, once its content is known to be right.

        A copy takes its place if somebody holds it open for writing, or if it has fs-verity of another kind.  Raises
        ObjectMissingError, CorruptError for content of another digest, and what `store` raises.
        """
        self._require_writable()
        path, hexes = object_path(digest), digest.hex()
        with translated(f"opening object {hexes}", subject=hexes):
            try:
                fd = os.open(path, _READ | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._root)
            except FileNotFoundError as error:
                raise ObjectMissingError(f"object {hexes} is missing", subject=hexes) from error
        try:
            _require_regular(fd, digest)
            with translated("reading an object", subject=hexes):
                if verity.compute_file(fd, self.algorithm).digest != digest:
                    raise CorruptError(f"the content of object {hexes} is not what its name says", subject=hexes)
            with translated("storing an object", partition="repository"):
                if not self._is_sound(self._fan_out_directory(digest[0]), hexes[2:], digest):
                    self._put_copy(fd, digest)
        finally:
            os.close(fd)

    def _put_copy(self, fd: int, digest: bytes) -> None:
        """Put a copy of the file in the object's place."""
        with self._draft() as draft:
            _copy(fd, draft.fd)
            self._seal(draft, digest)
            self._rename(draft, digest)

    def clean_temporaries(self) -> int:
        """Remove what dead writers left behind; how many files.  Only under the exclusive lock."""
        if not os.access(DIRECTORY, os.F_OK, dir_fd=self._root):
            return 0
        with translated("removing temporary objects"):
            return remove_temporaries(self._objects(), TEMPORARY_PREFIX)

    def _publish(self, draft: Draft, digest: bytes, size_bytes: int) -> None:
        if self._demands_verity or self._can_verity:
            self._seal(draft, digest)
        else:
            os.fchmod(draft.fd, MODE)
        if draft.link(self._fan_out_directory(digest[0]), digest.hex()[2:]):
            self.added += 1
            self.bytes_added += size_bytes
            self.unsynced = True
        else:
            self._replace(draft, digest, size_bytes)

    def _seal(self, draft: Draft, digest: bytes) -> None:
        """Enable fs-verity and let the kernel say what the file is."""
        draft.freeze()
        try:
            self._enable(draft)
        except VerityRequiredError:
            if self._demands_verity:
                raise
            self._can_verity = False
            return
        found = fsverity.measure(draft.fd, self.algorithm)
        if found is None or found.digest != digest:
            actual = found.hex if found else None
            raise DigestMismatchError("an object changed while it was stored", expected=digest.hex(), actual=actual)

    def _enable(self, draft: Draft) -> None:
        """A writer that outlives the retries, such as a forked child, keeps its file: we go on with a copy."""
        for _ in range(_COPIES):
            try:
                return fsverity.enable(draft.fd, self.algorithm)
            except LockedError:
                with self._draft() as copy:
                    _copy(draft.fd, copy.fd)
                    copy.freeze()
                    draft.swap(copy)
        return fsverity.enable(draft.fd, self.algorithm)

    def _usable(self, directory: int, name: str, digest: bytes, size_bytes: int) -> bool:
        """Whether the object that is there will do.

        With fs-verity its digest decides, and a wrong one is CorruptError.  Without, only its size can be had
        cheaply: after a power cut, files that were not synced are often empty, and such a one shall be replaced.
        """
        if self.distrusts:
            return self._is_sound(directory, name, digest)
        if not self._can_verity:
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_size == size_bytes
        fd = os.open(name, _READ | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            if os.fstat(fd).st_size != size_bytes:
                if self._demands_verity:
                    raise CorruptError(f"object {digest.hex()} has a wrong size", subject=digest.hex())
                return False
            if fsverity.measure(fd, self.algorithm) is None:
                self._enable_late(fd)
            self._measured(fd, digest)
        finally:
            os.close(fd)
        return True

    def _is_sound(self, directory: int, name: str, digest: bytes) -> bool:
        """Whether the whole file can be read, is what its name says, and has the fs-verity that it needs.

        What cannot be opened or read is as good as wrong: there is something better to put in its place.
        """
        try:
            fd = os.open(name, _READ | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except OSError:
            return False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or verity.compute_file(fd, self.algorithm).digest != digest:
                return False
            if self._can_verity and fsverity.measure(fd, self.algorithm) is None:
                self._enable_late(fd)
            return self._measured(fd, digest) or not self._demands_verity
        except (OSError, CorruptError, LockedError):
            return False
        finally:
            os.close(fd)

    def _enable_late(self, fd: int) -> None:
        """For an object from before the filesystem had fs-verity, or from a writer that does not bother."""
        try:
            fsverity.enable(fd, self.algorithm)
        except VerityRequiredError:
            self._can_verity = self._demands_verity

    def _replace(self, draft: Draft, digest: bytes, size_bytes: int) -> None:
        """The name is taken: by another writer that was quicker, or by a file that `_usable` turned down."""
        directory, name = self._fan_out_directory(digest[0]), digest.hex()[2:]
        if self._usable(directory, name, digest, size_bytes):
            self.reused += 1
            return
        log.warning("object %.12s is not what its name says, and is replaced", digest.hex())
        self._rename(draft, digest)
        self.added += 1
        self.bytes_added += size_bytes

    def _rename(self, draft: Draft, digest: bytes) -> None:
        """Put a complete draft in the place of a file that has its name; the name is never without a file.

        The draft's content is made durable first: after a power cut the new file must not be emptier than the old.
        """
        os.fsync(draft.fd)
        temporary = temporary_name(TEMPORARY_PREFIX)
        draft.link(self._objects(), temporary)
        try:
            directory = self._fan_out_directory(digest[0])
            os.rename(temporary, digest.hex()[2:], src_dir_fd=self._objects(), dst_dir_fd=directory)
        except OSError:
            os.unlink(temporary, dir_fd=self._objects())
            raise
        self.unsynced = True

    def _draft(self) -> Draft:
        return Draft.open(self._objects(), self._objects(), TEMPORARY_PREFIX)

    def _ask_for_room(self, size_bytes: int) -> None:
        """Better now than after a gigabyte; without reserving, as that would defeat compression on btrfs."""
        usage = os.fstatvfs(self._root)
        free = usage.f_bavail * usage.f_frsize
        if size_bytes > free:
            raise NoSpaceError(
                f"an object of {size_bytes} bytes does not fit into {free} free bytes",
                partition="repository", needed_bytes=size_bytes, free_bytes=free,
            )  # fmt: skip

    def _objects(self) -> int:
        if self._directory < 0:
            self._directory = ensure_directory(self._root, DIRECTORY)
        return self._directory

    def _fan_out_directory(self, first: int) -> int:
        fd = self._fan_out[first]
        if fd < 0:
            fd = self._fan_out[first] = ensure_directory(self._objects(), f"{first:02x}")
        return fd


class ObjectWriter:
    """An object that is written piece by piece; it is hashed as it comes.

    As a context manager it throws away what was not committed.
    """

    def __init__(self, store: ObjectStore, draft: Draft) -> None:
        self._store = store
        self._draft = draft
        self._hasher = Hasher(store.algorithm)

    def write(self, data: Buffer) -> None:
        """The next bytes.  Raises NoSpaceError and DeviceError."""
        with translated("storing an object", partition="repository"):
            self._draft.write(data)
        self._hasher.update(data)

    def commit(self) -> bytes:
        """Make what was written an object; its digest.  Raises what `ObjectStore.store` raises."""
        size_bytes, digest = self._hasher.size_bytes, self._hasher.digest()
        with translated("storing an object", partition="repository"), self._draft as draft:
            self._store.finish(draft, digest, size_bytes)
        return digest

    def abort(self) -> None:
        """Throw away what was written; after `commit` nothing happens."""
        self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def object_path(digest: bytes) -> str:
    """Where an object is, relative to the repository."""
    return f"{DIRECTORY}/{ObjectId(digest).path}"


def _require_regular(fd: int, digest: bytes) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CorruptError(f"object {digest.hex()} is not a regular file", subject=digest.hex())


def _copy(source: int, target: int) -> None:
    offset = 0
    while count := os.sendfile(target, source, offset, _COPY_BYTES):
        offset += count
