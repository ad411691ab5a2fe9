"""Directories with everything that a file system holds, made at random, for comparisons of how they are scanned.

Names need not be text: they have surrogates where they are not, as `os.fsdecode` puts them.
"""

import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, TypeAlias

_SUFFIXES: Final = (
    "", " space", "\u00e9\u2713", os.fsdecode(b"\xff\xfe"), "=-", "\n", "\\x41", "\t", "\x7f", "~", "x" * 200,
)  # fmt: skip
_SIZES: Final = (0, 0, 1, 63, 64, 65, 100, 4095, 4096, 4097, 70_000)
_LARGE: Final = 3_000_000
_TARGETS: Final = ("x", "/absolute", "../..", "q" * 200, os.fsdecode(b"\xff\n"), "-", "l/" * 500)
_TIMES: Final = (0, 1, 1_700_000_000_123_456_789, 10**9, -5, 7 - 3 * 10**9)
_MODES: Final = (0o644, 0o4755, 0o1777, 0, 0o2711)
_OWNERS: Final = (0, 1000, 70_000)
_CAPABILITY: Final = bytes.fromhex("0100000200040000000000000000000000000000")
_XATTRS: Final = (
    ("security.capability", (_CAPABILITY,)), ("security.selinux", (b"system_u:object_r:x_t:s0\0",)),
    ("user.foo", (b"v\0=", b"", b"z" * 300)), ("user.overlay.whiteout", (b"",)), ("trusted.bar", (b"1", b"")),
    ("trusted.overlay.opaque", (b"y",)),
)  # fmt: skip
_CONTEXTS: Final = b"""\
/.* system_u:object_r:default_t:s0
/usr(/.*)? system_u:object_r:usr_t:s0
/usr/bin(/.*)? system_u:object_r:bin_t:s0
/etc(/.*)? -- system_u:object_r:etc_t:s0
/etc/n.* -d <<none>>
/run system_u:object_r:var_run_t:s0
"""

_Step: TypeAlias = Callable[[Path], None]
"""Adds something at a path."""


class _Maker:
    """Adds to a directory, which is `directories[0]`."""

    def __init__(self, root: Path, chance: Random, times: Sequence[int]) -> None:
        self._chance, self._times = chance, times
        self._directories = [root]
        self._linkable: list[Path] = []
        self._steps: list[tuple[int, _Step]] = [
            (20, self._add_directory), (35, self._add_file), (13, self._add_symlink), (8, self._add_link),
            (5, self._add_fifo), (3, self._add_socket), (7 if os.geteuid() == 0 else 0, self._add_device),
        ]  # fmt: skip

    def add_system(self) -> None:
        """What a root file system has, in half of all cases with a policy of SELinux."""
        for name in ("usr", "usr/bin", "usr/lib", "etc", "run", "run/lock", "boot", "boot/efi", "sysroot"):
            self._add_directory(self._directories[0] / name)
        if self._chance.random() < 0.5:
            policy = self._directories[0] / "etc" / "selinux"
            (policy / "targeted" / "contexts" / "files").mkdir(parents=True)
            (policy / "targeted" / "policy").mkdir()
            (policy / "config").write_bytes(b"SELINUX=enforcing\nSELINUXTYPE=targeted\n")
            (policy / "targeted" / "contexts" / "files" / "file_contexts").write_bytes(_CONTEXTS)
            (policy / "targeted" / "policy" / "policy.33").write_bytes(b"x" * 100)

    def add_names(self, count: int) -> None:
        """Names anywhere, of anything, with any metadata."""
        weights, steps = zip(*self._steps, strict=True)
        for number in range(count):
            path = self._chance.choice(self._directories) / f"n{number}{self._chance.choice(_SUFFIXES)}"
            self._chance.choices(steps, weights)[0](path)
            if os.path.lexists(path):
                self._adorn(path)

    def add_many(self) -> None:
        """A directory of several blocks, and a chain of directories."""
        many, deep = self._directories[0] / "usr/lib/many", self._directories[0] / "usr/lib/deep"
        many.mkdir()
        for number in range(self._chance.choice((100, 400))):
            (many / f"entry-{number:05}").symlink_to(f"t{number % 7}")
        for number in range(30):
            deep.mkdir()
            deep /= f"d{number}"

    def finish(self) -> None:
        """Times of directories, which adding has changed."""
        for path in self._chance.sample(self._directories, 5):
            os.utime(path, ns=(0, self._chance.choice((3, 1_700_000_000_000_000_001, 10**9))))

    def _add_directory(self, path: Path) -> None:
        path.mkdir()
        self._directories.append(path)

    def _add_file(self, path: Path) -> None:
        size = _LARGE if self._chance.random() < 0.05 else self._chance.choice(_SIZES)
        with path.open("wb") as file:
            file.write(self._chance.randbytes(size))
            if self._chance.random() < 0.1:
                file.truncate(size + self._chance.choice((4096, 1 << 20, (1 << 22) + 5)))
        path.chmod(self._chance.choice(_MODES) if os.geteuid() == 0 else 0o644)
        self._linkable.append(path)

    def _add_symlink(self, path: Path) -> None:
        path.symlink_to(self._chance.choice(_TARGETS))
        self._linkable += [path] if self._chance.random() < 0.2 else []

    def _add_link(self, path: Path) -> None:
        if self._linkable:
            os.link(self._chance.choice(self._linkable), path, follow_symlinks=False)

    def _add_fifo(self, path: Path) -> None:
        os.mkfifo(path)
        self._linkable += [path] if self._chance.random() < 0.5 else []

    def _add_socket(self, path: Path) -> None:
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(path.parent)  # the path of a socket has to be short
            with socket.socket(socket.AF_UNIX) as listener, suppress(OSError):
                listener.bind(os.fsencode(path.name))
        finally:
            os.fchdir(here)
            os.close(here)

    def _add_device(self, path: Path) -> None:
        number = os.makedev(self._chance.choice((0, 1, 8, 300)), self._chance.choice((0, 5, 300)))
        os.mknod(path, self._chance.choice((stat.S_IFCHR, stat.S_IFBLK)) | 0o600, number)

    def _adorn(self, path: Path) -> None:
        """Attributes, owners and times; what this user or file system cannot have is left out."""
        for _ in range(self._chance.choice((0, 0, 0, 1, 3))):
            name, values = self._chance.choice(_XATTRS)
            with suppress(OSError):
                os.setxattr(path, name, self._chance.choice(values), follow_symlinks=False)
        if self._chance.random() < 0.3:
            with suppress(OSError):
                os.chown(path, self._chance.choice(_OWNERS), self._chance.choice(_OWNERS), follow_symlinks=False)
        if self._chance.random() < 0.5:
            os.utime(path, ns=(0, self._chance.choice(self._times)), follow_symlinks=False)


def make_directory(root: Path, chance: Random, *, before_1970: bool = True) -> None:
    """Make a root file system at `root`, which must not exist; dumpfiles cannot have times before 1970."""
    root.mkdir()
    maker = _Maker(root, chance, [time for time in _TIMES if time >= 0 or before_1970])
    maker.add_system()
    maker.add_names(chance.choice((5, 40, 120)))
    if chance.random() < 0.2:
        maker.add_many()
    maker.finish()
