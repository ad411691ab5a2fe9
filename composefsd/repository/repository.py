"""A repository: a directory with objects, and the links that give them meaning.

All work goes through a descriptor of the directory.  The order that keeps every name meaningful, whenever the power
fails:

 1. objects are written (`objects`), each complete or not there at all, none of them durable;
 2. `sync`, one syncfs for all of them;
 3. links to streams and images (`link_stream`, `link_image`), whose names are not durable by themselves;
 4. refs and tags (`tag`, `set_ref`), which first make durable the links they lead to, then themselves.

Steps 3 and 4 do step 2 by themselves if this process has stored objects since; if another one has, the caller does.

Locking: one advisory lock on the directory; readers and writers share it, garbage collection has it alone.  It is
taken for an operation, never for a daemon's life, as that would stop `cfsctl gc` for ever.  Each `with` block opens
the directory anew and so owns its lock by itself, in this process or with its siblings: to ask for the exclusive lock
within a block that shares it never succeeds.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, IncompatibleRepositoryError, ObjectMissingError, ReadOnlyError
from composefsd.linux import lock
from composefsd.linux.oserrors import translate, translated
from composefsd.linux.syscalls import syncfs
from composefsd.repository import drafts, images, links, refs, setup, streams
from composefsd.repository.links import Category
from composefsd.repository.metadata import Metadata
from composefsd.repository.objects import ObjectStore
from composefsd.splitstream import Splitstream

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TEMPORARY_PREFIXES: Final = (links.TEMPORARY_PREFIX, setup.TEMPORARY_PREFIX)
"""Of names in the directory of the repository itself."""


class Repository:
    """An open repository; `open`, `create` and `adopt` make one.

    formats are the image formats it is for, the default first; verity tells whether it demands fs-verity of every
    object.  Synchronous, and not for two threads at once.
    """

    def __init__(self, fd: int, path: Path, *, writable: bool) -> None:
        """Takes `fd` over, even if this raises."""
        self.fd = fd
        self.path = path
        try:
            self.metadata, self.verity = setup.load(fd)
            self._obstacle = self._find_obstacle(writable=writable)
        except BaseException:
            os.close(fd)
            raise
        self.objects = ObjectStore(
            fd, self.algorithm, demands_verity=self.verity, require_writable=self.require_writable
        )

    @classmethod
    def open(cls, path: Path, *, writable: bool = True, algorithm: Algorithm | None = None) -> Self:
        """The repository at `path`.

        One that cannot be written opens all the same, and writing raises ReadOnlyError.  One from before `meta.json`
        is upgraded, as composefs-rs does, if it is opened for writing; algorithm is the hash that it then has to be
        of.  Raises IncompatibleRepositoryError if there is no repository, or one of later times, or an old one that
        cannot be upgraded, and FormatError if `meta.json` is malformed.
        """
        try:
            fd = os.open(path, _DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise IncompatibleRepositoryError(f"there is no repository at {path}", path=str(path)) from error
            raise translate(error, f"opening the repository at {path}", path=str(path)) from error
        if writable:
            try:
                if setup.is_old(fd):
                    setup.upgrade(fd, algorithm)
            except BaseException:
                os.close(fd)
                raise
        return cls(fd, path, writable=writable)

    @classmethod
    def adopt(cls, fd: int, path: Path | None = None, *, writable: bool = True) -> Self:
        """The repository whose directory is open at `fd`, which now belongs to the new object; raises as `open`."""
        return cls(fd, path or Path(f"/proc/self/fd/{fd}"), writable=writable)

    @classmethod
    def create(cls, path: Path, metadata: Metadata, *, insecure: bool) -> Self:
        """The repository at `path`, which is made if it is not there; the parent directory must be.

        With `insecure` it does not demand fs-verity.  An existing repository of the same hash and image formats is
        opened as it is; of others, IncompatibleRepositoryError.  Raises VerityRequiredError if it shall be secure and
        the filesystem has no fs-verity, or the existing repository is insecure.
        """
        with translated(f"creating the repository at {path}", path=str(path)):
            setup.ensure_directory(path)
            fd = os.open(path, _DIRECTORY)
        try:
            setup.install(fd, metadata, insecure=insecure)
        except BaseException:
            os.close(fd)
            raise
        repository = cls(fd, path, writable=True)
        try:
            setup.check_existing(repository.metadata, metadata, verity=repository.verity, insecure=insecure)
        except BaseException:
            repository.close()
            raise
        return repository

    def close(self) -> None:
        """Close the descriptors; a second time does nothing."""
        if self.fd >= 0:
            self.objects.close()
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def algorithm(self) -> Algorithm:
        return self.metadata.algorithm

    @property
    def formats(self) -> tuple[FormatVersion, ...]:
        return self.metadata.formats

    @property
    def writable(self) -> bool:
        return self._obstacle is None

    def require_writable(self) -> None:
        """Raises ReadOnlyError, which says why, if the repository cannot be written."""
        if self._obstacle is not None:
            raise ReadOnlyError(f"the repository at {self.path} cannot be written: {self._obstacle}")

    def _find_obstacle(self, *, writable: bool) -> str | None:
        if not writable:
            return "it was opened for reading"
        unknown = self.metadata.unknown_read_only_features
        if unknown:
            return f"it has features we do not know: {', '.join(repr(flag[:40]) for flag in unknown[:5])}"
        with translated("looking at the repository"):
            if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
                return "the filesystem is mounted read-only"
        if not os.access(".", os.W_OK, dir_fd=self.fd):  # root may do anything, hence the look at the mount, too
            return "no permission"
        return None

    # Locking and durability

    @contextmanager
    def shared_lock(self, timeout: float | None = None) -> Iterator[None]:
        """Keep garbage collection away; `timeout` in seconds, None for ever, 0 not at all.  Raises LockedError."""
        fd = self._reopened()
        try:
            with lock.shared(fd, timeout=timeout):
                self._look_again()
                yield
        finally:
            os.close(fd)

    @contextmanager
    def exclusive_lock(self, timeout: float | None = None) -> Iterator[int]:
        """Keep everybody else away, as garbage collection must; `timeout` as for `shared_lock`.

        Gives the descriptor that holds the lock: a process that gets a copy of it holds the lock, too, even if this
        one is killed.
        """
        fd = self._reopened()
        try:
            with lock.exclusive(fd, timeout=timeout):
                self._look_again()
                yield fd
        finally:
            os.close(fd)

    def _look_again(self) -> None:
        """Under the lock: the repository may have been made secure since it was opened.

        Nothing else about it ever changes; where `meta.json` is damaged, or another one, that is for fsck to tell.
        """
        with suppress(ComposefsdError):
            _, self.verity = setup.load(self.fd)
            self.objects.demand_verity(demanded=self.verity)

    def make_secure(self) -> None:
        """Have it demand fs-verity of every object from now on; for ever, as nothing takes that back.

        To be called under the exclusive lock, after `secure.enable` and `sync`.  Raises as `setup.make_secure`.
        """
        self.require_writable()
        setup.make_secure(self.fd, self.algorithm)
        self._look_again()

    def _reopened(self) -> int:
        with translated("opening the repository for its lock"):
            return os.open(".", _DIRECTORY, dir_fd=self.fd)

    def sync(self) -> None:
        """Make durable all that anybody has stored so far.  Raises NoSpaceError and DeviceError."""
        with translated("syncing the repository", partition="repository"):
            syncfs(self.fd)
        self.objects.unsynced = False

    def clean_temporaries(self) -> int:
        """Remove files and links that dead writers left under temporary names; how many.

        Only under the exclusive lock: to the living, their names mean something.
        """
        self.require_writable()
        with translated("removing temporary names"):
            removed = [drafts.remove_temporaries(self.fd, prefix) for prefix in _TEMPORARY_PREFIXES]
        return self.objects.clean_temporaries() + sum(removed)

    def _require_linkable(self, digest: bytes) -> None:
        """Before a link: the object exists, and is on the disk."""
        self.require_writable()
        if not self.objects.has(digest):
            raise ObjectMissingError(f"object {digest.hex()} is missing", subject=digest.hex())
        if self.objects.unsynced:
            self.sync()

    # Streams

    def stream(self, name: str) -> bytes | None:
        """The raw digest of the splitstream `name`; None if there is none.

        The object itself is not looked at.  Raises CorruptError if the link names no object, and InvalidNameError.
        """
        return streams.digest(self.fd, name, self.algorithm)

    def streams(self) -> Iterator[str]:
        """The names of all streams, sorted.  Raises CorruptError if something else is among them."""
        return streams.names(self.fd)

    def read_stream(self, name: str, content_type: int | None = None) -> Splitstream:
        """The splitstream `name`, checked against its digest.

        Raises NoSuchObjectError, ObjectMissingError, CorruptError, and FormatError if it is not of `content_type`.
        """
        return streams.read(self.objects, streams.require(self.fd, name, self.algorithm), content_type)

    def read_stream_object(self, digest: bytes, content_type: int | None = None) -> Splitstream:
        """The splitstream that is the object `digest`, as a named reference gives it; raises as `read_stream`."""
        return streams.read(self.objects, digest, content_type)

    def link_stream(self, name: str, digest: bytes) -> None:
        """Let `name` stand for the splitstream `digest`, from now on.

        Raises ObjectMissingError, InvalidNameError, ReadOnlyError, NoSpaceError.
        """
        streams.path(name)
        self._require_linkable(digest)
        streams.put(self.fd, name, digest)

    def unlink_stream(self, name: str) -> bool:
        """Take the name from a splitstream; False if there was none.  Raises InvalidNameError."""
        self.require_writable()
        return links.remove(self.fd, streams.path(name))

    # Images

    def image_ids(self) -> list[bytes]:
        """The raw digests of all images, sorted."""
        return images.ids(self.fd, self.algorithm)

    def has_image(self, digest: bytes) -> bool:
        """Whether there is such an image, and its object."""
        return links.leads_somewhere(self.fd, images.path(digest))

    def read_image(self, digest: bytes) -> bytes:
        """The content of the image, checked against its digest.  Raises ObjectMissingError and CorruptError."""
        return images.read(self.objects, digest)

    def link_image(self, digest: bytes) -> None:
        """Make the object `digest` an image.  Raises as `link_stream`."""
        self._require_linkable(digest)
        images.put(self.fd, digest)

    def unlink_image(self, digest: bytes) -> bool:
        """Make it a mere object again; False if there was no such image."""
        self.require_writable()
        return links.remove(self.fd, images.path(digest))

    # Refs

    def tags(self) -> dict[str, str]:
        """The tags, and the names of the manifest streams they lead to (`oci-manifest-sha256:…`)."""
        return refs.tags(self.fd)

    def tag(self, name: str, stream: str) -> None:
        """Let the tag `name` lead to the manifest stream `stream`; durable.

        Raises InvalidNameError, and NoSuchObjectError if there is no such stream.
        """
        self._require_settled()
        refs.tag(self.fd, name, stream)

    def untag(self, name: str) -> bool:
        """Remove the tag `name`, durably; False if there is none.  Raises InvalidNameError."""
        self.require_writable()
        return refs.untag(self.fd, name)

    def refs(self, category: Category) -> dict[str, str]:
        """All refs of a category, tags included: their paths below `refs`, and the entries they lead to."""
        return refs.named(self.fd, category)

    def set_ref(self, category: Category, name: str, entry: str) -> None:
        """Let the ref `name`, a path, lead to an entry of the category; durable.  Raises as `tag`."""
        self._require_settled()
        refs.put(self.fd, category, name, entry)

    def remove_ref(self, category: Category, name: str) -> bool:
        """Remove a ref, durably; False if there is none.  Raises InvalidNameError."""
        self.require_writable()
        return refs.remove(self.fd, category, name)

    def _require_settled(self) -> None:
        self.require_writable()
        if self.objects.unsynced:
            self.sync()
