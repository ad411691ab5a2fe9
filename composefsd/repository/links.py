"""The symbolic links of a repository, and the directories they live in.

composefs-rs goes by the text of a link as often as by what it leads to, so the texts are exact: relative, without the
directories that link and target have in common.  Names are `str` as the `os` module decodes them.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from typing import Final, NamedTuple

from composefsd.digests import Algorithm
from composefsd.errors import CorruptError, InvalidNameError
from composefsd.linux.oserrors import translate, translated
from composefsd.repository.drafts import temporary_name

TEMPORARY_PREFIX: Final = ".symlink-"
REFS: Final = "refs"

_NAME_BYTES: Final = 255
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OBJECT: Final = re.compile(r"([0-9a-fA-F]{2})/([0-9a-fA-F]+)\Z")


class Category(StrEnum):
    """The two directories whose links name objects, and whose `refs` hold the roots of garbage collection."""

    IMAGES = "images"
    STREAMS = "streams"


class Link(NamedTuple):
    """A symbolic link: its path in the repository, and its text."""

    path: str
    text: str


def link_text(path: str, target: str) -> str:
    """What a link at `path` says to lead to `target`, both relative to the repository."""
    parents, parts = path.split("/")[:-1], target.split("/")
    common = 0
    while common < min(len(parents), len(parts)) and parents[common] == parts[common]:
        common += 1
    return "/".join([".."] * (len(parents) - common) + parts[common:])


def object_in_text(text: str, algorithm: Algorithm) -> bytes | None:
    """The raw digest at the end of a first-level link's text; None if there is none of `algorithm`'s width.

    That end is all composefs-rs looks at, and the beginning, which it wants to be `../`.
    """
    tail = text[-(2 * algorithm.digest_bytes + 1) :]
    if len(tail) <= 2 * algorithm.digest_bytes or not text.startswith("../") or not _OBJECT.match(tail):
        return None
    return bytes.fromhex(tail[:2] + tail[3:])


def last_component(text: str) -> str | None:
    """The name at the end of a ref's text, as Rust's `Path::file_name` finds it; None if there is none."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return parts[-1] if parts and parts[-1] != ".." else None


def check_component(name: str, what: str) -> None:
    """Raises InvalidNameError unless `name` can be the name of a file."""
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise InvalidNameError(f"{what} {name!r} is not UTF-8", subject=ascii(name)) from error
    if name in ("", ".", "..") or "/" in name or "\0" in name or size > _NAME_BYTES:
        raise InvalidNameError(f"{what} {name[:100]!r} cannot be the name of a file", subject=name[:100])


def ensure_directory(parent: int, name: str) -> int:
    """A descriptor of the directory `name`, which is made with mode 0755 if need be.  Raises OSError as it comes."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
            os.chmod(name, 0o755, dir_fd=parent)  # whatever the umask
    return os.open(name, _DIRECTORY, dir_fd=parent)


def read(root: int, path: str) -> str | None:
    """The text of the link at `path`; None if there is nothing.  Raises CorruptError if it is no link."""
    try:
        return _text(root, path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise CorruptError(f"{path} is not a symbolic link", subject=path) from error
        raise translate(error, f"reading {path}", subject=path) from error


def _text(directory: int, path: str) -> str | None:
    with suppress(FileNotFoundError):
        return os.readlink(path, dir_fd=directory)
    return None


def put(root: int, path: str, target: str) -> None:
    """Let `path` lead to `target`, both relative to `root`; an older link is replaced in one step."""
    parent, _, name = path.rpartition("/")
    text = link_text(path, target)
    with translated(f"linking {path}", partition="repository"):
        directory = _ensure_path(root, parent)
        try:
            _put(root, directory, name, text)
        finally:
            os.close(directory)


def _put(root: int, directory: int, name: str, text: str) -> None:
    try:
        os.symlink(text, name, dir_fd=directory)
    except FileExistsError:
        if _text(directory, name) != text:
            _replace(root, directory, name, text)


def _replace(root: int, directory: int, name: str, text: str) -> None:
    temporary = temporary_name(TEMPORARY_PREFIX)
    os.symlink(text, temporary, dir_fd=root)
    try:
        os.rename(temporary, name, src_dir_fd=root, dst_dir_fd=directory)
    except OSError:
        os.unlink(temporary, dir_fd=root)
        raise


def force(root: int, path: str, target: str) -> None:
    """As `put`, but in place of whatever else than a directory is there."""
    parent, _, name = path.rpartition("/")
    with translated(f"linking {path}", partition="repository"):
        directory = _ensure_path(root, parent)
        try:
            _replace(root, directory, name, link_text(path, target))
        finally:
            os.close(directory)


def _ensure_path(root: int, path: str) -> int:
    fd = os.dup(root)
    for name in path.split("/"):
        try:
            child = ensure_directory(fd, name)
        finally:
            os.close(fd)
        fd = child
    return fd


def remove(root: int, path: str) -> bool:
    """Remove the link at `path`; False if there was none."""
    try:
        os.unlink(path, dir_fd=root)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise translate(error, f"removing {path}", subject=path) from error
    return True


def sync(root: int, path: str) -> None:
    """Make the names in the directory `path`, and its own name, durable; a directory that is not there is fine."""
    while True:
        with translated(f"syncing {path or 'the repository'}", partition="repository"), suppress(FileNotFoundError):
            fd = os.open(path or ".", _DIRECTORY, dir_fd=root)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        if not path:
            return
        path = path.rpartition("/")[0]


def entries(root: int, category: Category) -> Iterator[Link]:
    """The links right below a category, by name.  Raises CorruptError if anything but links and `refs` is there."""
    for name, is_link, _ in listing(root, category.value):
        path = f"{category}/{name}"
        if name == REFS:
            continue
        if not is_link:
            raise CorruptError(f"{path} is not a symbolic link", subject=path)
        text = read(root, path)
        if text is not None:  # else somebody removed it, which the shared lock allows
            yield Link(path, text)


def refs(root: int, category: Category, below: str = "") -> Iterator[Link]:
    """The links in a category's `refs`, or in the directory `below` it, at any depth.

    Raises CorruptError if anything but directories and links is there.
    """
    pending = [f"{category}/{REFS}/{below}".rstrip("/")]
    while pending:
        directory = pending.pop()
        for name, is_link, is_directory in listing(root, directory):
            path = f"{directory}/{name}"
            if is_directory:
                pending.append(path)
            elif not is_link:
                raise CorruptError(f"{path} is neither a directory nor a symbolic link", subject=path)
            elif (text := read(root, path)) is not None:
                yield Link(path, text)


def listing(root: int, path: str) -> list[tuple[str, bool, bool]]:
    """What a directory holds, by name: names, whether they are links, whether they are directories.

    A directory that does not exist holds nothing.
    """
    with translated(f"reading {path}", subject=path):
        try:
            fd = os.open(path, _DIRECTORY, dir_fd=root)
        except FileNotFoundError:
            return []
        try:
            with os.scandir(fd) as found:
                return sorted(
                    (entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in found
                )
        finally:
            os.close(fd)


def leads_somewhere(root: int, path: str) -> bool:
    """Whether following the link at `path` ends at something."""
    try:
        os.stat(path, dir_fd=root)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise translate(error, f"following {path}", subject=path) from error
    return True
