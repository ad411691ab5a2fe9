"""Mending what can be set right with what the repository itself holds.

Each step puts something complete in the place of something broken, in one rename; nothing is removed.  Doing a step
twice does no harm, and stopping anywhere leaves what was there before or what is right.  The caller holds the shared
lock, and calls `Repository.sync` behind all steps.
"""

import os
import stat
from collections.abc import Callable

from composefsd.erofs import reader as erofs
from composefsd.errors import CorruptError, LimitExceededError
from composefsd.linux.oserrors import translated
from composefsd.repository import images, links
from composefsd.repository.links import Category
from composefsd.repository.objects import object_path
from composefsd.repository.repository import Repository
from composefsd.splitstream import Splitstream

_LIMIT_BYTES = images.LIMIT_BYTES


def link_image(repo: Repository, digest: bytes) -> None:
    """Make the object `digest` an image, if it is one.

    Raises ObjectMissingError, CorruptError and FormatError if it is not, and what `Repository.link_image` raises.
    """
    erofs.check(repo.read_image(digest), repo.algorithm)
    repo.link_image(digest)


def link_stream(repo: Repository, name: str, digest: bytes) -> None:
    """Let `name` stand for the splitstream `digest`, whose content the caller knows to be what the name says.

    It takes the place of a file, too, as `adopt_file` finds it.  Raises what `Repository.read_stream_object` and
    `Repository.link_stream` raise.
    """
    repo.read_stream_object(digest)
    path = f"{Category.STREAMS}/{name}"
    if _is_file(repo.fd, path):
        repo.require_writable()
        repo.sync()
        links.force(repo.fd, path, object_path(digest))
    else:
        repo.link_stream(name, digest)


def adopt_file(repo: Repository, path: str, require: Callable[[str, Splitstream], None]) -> None:
    """Make an object of a file that lies where a link ought to be, and put the link in its place.

    That is what a copy of a repository looks like that was made without its symbolic links.  Raises CorruptError if
    it is anything else: an image that is not of its name's digest, no splitstream, no regular file.  A file has no
    digest that vouches for it, so `require` is asked about a stream of that name, and raises if it is not to be had.
    """
    repo.require_writable()
    category, _, name = path.partition("/")
    data = _read(repo.fd, path)
    if category == Category.IMAGES:
        erofs.check(data, repo.algorithm)
    else:
        require(name, Splitstream.parse(data, repo.algorithm))
    digest = repo.objects.store(data)
    if category == Category.IMAGES and digest.hex() != name:
        raise CorruptError(f"{path} is a file with the digest {digest.hex()}", subject=path)
    repo.sync()
    links.force(repo.fd, path, object_path(digest))


def _is_file(root: int, path: str) -> bool:
    with translated(f"looking at {path}", subject=path):
        try:
            return stat.S_ISREG(os.stat(path, dir_fd=root, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False


def _read(root: int, path: str) -> bytes:
    with translated(f"reading {path}", subject=path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
        with os.fdopen(fd, "rb", buffering=0) as file:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise CorruptError(f"{path} is neither a link nor a file", subject=path)
            if about.st_size > _LIMIT_BYTES:
                raise LimitExceededError(
                    f"{path} has {about.st_size} bytes; {_LIMIT_BYTES} are allowed", subject=path
                )
            return file.read(about.st_size) or b""
