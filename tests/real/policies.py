"""Real SELinux policies, and a whole Debian to try them on.

Policies of other distributions come in no package that can be had everywhere.  So there are three that differ: Debian
13 has two (`default` of types, `mls` with levels), and Debian 12 an older one.  What installs them compiles them, so
each comes out of a root file system that mmdebstrap makes.
"""

import gzip
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from real import apt, cache, root
from real.layers import Entry, directory, regular, tar_layer

_NEW, _OLD = root.SUITE, "bookworm"
_CONTENTS: Final = ("Contents-amd64", "Contents-all")
_ESCAPED: Final = re.compile(r"[^!-~]|\\")
_HOOK: Final = r"""
mkdir -p "$1/etc/selinux"
printf 'module-store = direct\nexpand-check = 0\nbzip-blocksize = 0\n' > "$1/etc/selinux/semanage.conf"
"""
"""A policy store without bzip2 halves the time of the policy's installation."""

_WITHOUT_STORE: Final = 'rm -rf "$1/var/lib/selinux/"* "$1/boot" && mkdir -p "$1/boot" "$1/sysroot"'


@dataclass(frozen=True, slots=True)
class RealPolicy:
    """A policy by the name that it has in /etc/selinux, and the suite of Debian that it is from."""

    suite: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of Debian's {self.suite}"


POLICIES: Final = (RealPolicy(_NEW, "default"), RealPolicy(_NEW, "mls"), RealPolicy(_OLD, "default"))


def _mmdebstrap(suite: str, variant: str, packages: str, output: Path) -> None:
    """A root file system as a tar.  Raises UnavailableError with the end of what mmdebstrap says."""
    mode = "root" if os.geteuid() == 0 else "unshare"
    command = ["mmdebstrap", f"--mode={mode}", f"--variant={variant}", "--format=tar", f"--include={packages}"]
    command += [f"--aptopt={option}" for option in ('APT::Install-Recommends "false"', *apt.proxy_options())]
    command += ["--dpkgopt=force-confold", f"--essential-hook={_HOOK}", f"--customize-hook={_WITHOUT_STORE}"]
    command += [suite, "-", apt.find_mirror().source(suite)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(root.EPOCH)}
    with output.open("wb") as tar, tempfile.TemporaryFile("w+") as messages:
        try:
            status = subprocess.run(command, stdout=tar, stderr=messages, env=environment, check=False).returncode
        except FileNotFoundError as error:
            raise apt.UnavailableError("mmdebstrap is not installed") from error
        if status != 0:
            messages.seek(0)
            said = "\n".join(messages.read().splitlines()[-12:])
            raise apt.UnavailableError(f"mmdebstrap cannot build a root file system of {suite}:\n{said}")


def standard_system() -> Path:
    """The tar of a Debian 13 with all packages of priority `standard` and both of its policies.

    Nothing boots it: it has a /boot and a /sysroot, but no kernel.  Raises UnavailableError where it cannot be built.
    """

    def build(work: Path) -> None:
        _mmdebstrap(_NEW, "standard", "selinux-policy-default,selinux-policy-mls", work / "root.tar")

    saying = "Building a whole Debian 13 with its SELinux policies, once: 3 to 5 minutes"
    return cache.ensure("standard", cache.key(Path(__file__), apt.architecture()), build, saying=saying) / "root.tar"


def _older_system() -> Path:
    """The tar of a small Debian 12 with its policy."""

    def build(work: Path) -> None:
        _mmdebstrap(_OLD, "minbase", "selinux-policy-default", work / "root.tar")

    saying = "Building a small Debian 12 for its SELinux policy, once: 1 to 2 minutes"
    return cache.ensure("older", cache.key(Path(__file__), apt.architecture()), build, saying=saying) / "root.tar"


def packaged_paths() -> dict[str, list[str]]:
    """What each package of Debian 13 installs, below the root; names that a dumpfile would escape are left out.

    Raises UnavailableError where the archive cannot be had.
    """

    def build(work: Path) -> None:
        for name in _CONTENTS:
            apt.download_index(_NEW, f"main/{name}.gz", work / name)

    saying = "Downloading the lists of files of all Debian packages, once"
    folder = cache.ensure("contents", cache.key(*_CONTENTS, apt.architecture()), build, saying=saying)
    packages: dict[str, list[str]] = {}
    for name in _CONTENTS:
        with gzip.open(folder / name, "rt", errors="replace") as lines:
            for line in lines:
                path, _, owners = line.rstrip().rpartition(" ")
                if path.strip().isascii() and not _ESCAPED.search(path.strip()):
                    packages.setdefault(owners.partition(",")[0], []).append(path.strip())
    return packages


def files(policy: RealPolicy) -> dict[str, bytes]:
    """The files of a policy that say which label a path has, by name.  Raises UnavailableError."""
    folder = f"./etc/selinux/{policy.name}/contexts/files/"
    with tarfile.open(standard_system() if policy.suite == _NEW else _older_system()) as archive:
        return dict(_read(archive, folder))


def _read(archive: tarfile.TarFile, folder: str) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = member.name.removeprefix(folder)
        if member.isreg() and name != member.name and name.startswith("file_contexts") and not name.endswith(".bin"):
            content = archive.extractfile(member)
            yield name, content.read() if content else b""


def layer(policy: RealPolicy) -> bytes:
    """A layer that makes this policy the one of the system below.  Raises UnavailableError."""
    path, entries = "etc/selinux", list[Entry]()
    for part in ("real", "contexts", "files"):
        path += f"/{part}"
        entries.append(directory(path))
    entries += [regular(f"{path}/{name}", content) for name, content in sorted(files(policy).items())]
    return tar_layer([*entries, regular("etc/selinux/config", b"SELINUX=enforcing\nSELINUXTYPE=real\n")])
