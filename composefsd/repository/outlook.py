"""Where links will lead once what does not live has gone.

composefs-rs removes objects first and then every link that leads nowhere.  To remove links first, and to tell which
they are without removing anything, one has to foresee that.  Nearly all links are as we write them, but any text that
leads to an object counts, so links are followed step by step, as the kernel follows them.
"""

import errno
import os
from typing import Final

from composefsd.linux.oserrors import translate, translated
from composefsd.repository import links
from composefsd.repository.marks import Marks
from composefsd.repository.objects import DIRECTORY

_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STEPS: Final = 40
"""The kernel's MAXSYMLINKS."""


class Outlook:
    """What will become of links.  Ask for those first that others may lead to: what dangles is gone for the rest."""

    def __init__(self, root: int, marks: Marks) -> None:
        self._root = root
        self._marks = marks
        self._gone: set[tuple[int, int, str]] = set()
        self._fan_out = {place: first for first in range(256) if (place := _fan_out_place(root, first)) is not None}

    def dangles(self, path: str) -> bool:
        """Whether the link at `path` will lead nowhere.  Raises as `links.leads_somewhere`."""
        if links.leads_somewhere(self._root, path) and self._stays(path):
            return False
        parent, _, name = path.rpartition("/")
        with translated(f"looking at {parent}", subject=path):
            status = os.stat(parent, dir_fd=self._root)
        self._gone.add((status.st_dev, status.st_ino, name))
        return True

    def _stays(self, path: str) -> bool:
        """Whether what the link leads to now will stay."""
        parent, _, name = path.rpartition("/")
        directory = os.dup(self._root)
        try:
            directory = _step(directory, parent)
            for _ in range(_STEPS):
                status = os.fstat(directory)
                if (status.st_dev, status.st_ino, name) in self._gone:
                    return False
                try:
                    text = os.readlink(name, dir_fd=directory)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    return self._lives(status, name)
                head, _, name = text.rpartition("/")
                if name in ("", ".", ".."):  # a directory, and those stay
                    return True
                directory = _step(directory, head or text[: len(text) - len(name)] or ".")
        except FileNotFoundError:  # somebody removed it just now, which the shared lock allows
            return False
        except OSError as error:
            raise translate(error, f"following {path}", subject=path) from error
        finally:
            os.close(directory)
        return True

    def _lives(self, directory: os.stat_result, name: str) -> bool:
        """Whether a file will stay: all do but the dead ones among the objects."""
        first = self._fan_out.get((directory.st_dev, directory.st_ino))
        return first is None or self._marks.lives(bytes.fromhex(f"{first:02x}{name}"))


def _fan_out_place(root: int, first: int) -> tuple[int, int] | None:
    directory = f"{DIRECTORY}/{first:02x}"
    with translated(f"looking at {directory}", subject=directory):
        try:
            status = os.stat(directory, dir_fd=root)
        except FileNotFoundError:
            return None
    return status.st_dev, status.st_ino


def _step(directory: int, path: str) -> int:
    """The directory at `path` from an open one, which is closed when that has worked."""
    found = os.open(path, _PLACE, dir_fd=directory)
    os.close(directory)
    return found
