"""A Debian 13 root file system, made by mmdebstrap from the machine's own mirror: a tar, and a tree to run tools in.

As root mmdebstrap works in a chroot (without mount rights too); as an ordinary user in a user namespace.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from real import apt, cache

EPOCH: Final = 1750000000
"""No file of the root is younger than this (seconds): SOURCE_DATE_EPOCH of the build."""

SUITE: Final = "trixie"
_SYSTEM: Final = ("systemd", "systemd-sysv", "dbus", "udev", "kmod", "busybox-static", "selinux-policy-default")
_UKI_TOOLS: Final = ("systemd-ukify", "systemd-boot-efi")
_UNWANTED: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_HOOK: Final = r"""
mkdir -p "$1/etc/selinux" "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
printf 'module-store = direct\nexpand-check = 0\nbzip-blocksize = 0\n' > "$1/etc/selinux/semanage.conf"
echo MODULES=list > "$1/etc/initramfs-tools/conf.d/composefs"
printf '%s\n' virtio_pci virtio_blk ext4 erofs overlay > "$1/usr/share/initramfs-tools/modules.d/composefs"
"""
"""A policy store without bzip2 halves the time of the policy's installation; an initrd with few modules is small."""

_LAST_HOOK: Final = 'rm -rf "$1/var/lib/selinux/default"'
"""The policy store is big, and only to change the policy."""

_EFI_NAMES: Final = {"amd64": "x64", "arm64": "aa64"}


@dataclass(frozen=True, slots=True)
class Root:
    """The cached root: `tar` with owners, devices and modes as they are; `tree` unpacked without them, for tools."""

    tar: Path
    tree: Path

    @property
    def stub(self) -> str:
        """The UKI stub, as a path inside the tree."""
        return f"/usr/lib/systemd/boot/efi/linux{_EFI_NAMES[apt.architecture()]}.efi.stub"

    def run(self, *command: str) -> None:
        """Run a command inside the tree, as root of it.  Raises UnavailableError with what it said if it fails."""
        enter = ["chroot"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "chroot"]
        environment = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(EPOCH)}
        _run([*enter, str(self.tree), *command], environment)


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    path = f"{environment.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env={**environment, "PATH": path})
    except FileNotFoundError as error:
        raise apt.UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        said = "\n".join(error.stderr.strip().splitlines()[-8:])
        raise apt.UnavailableError(f"{shlex.join(command[:2])} … fails:\n{said}") from error


def _check() -> None:
    """Raises UnavailableError in words for what is known to be missing before minutes are spent."""
    if apt.architecture() not in _EFI_NAMES:
        raise apt.UnavailableError(f"there is no UKI stub for {apt.architecture()}")
    if not apt.KEYRING.exists():
        raise apt.UnavailableError(f"{apt.KEYRING} is missing (package debian-archive-keyring)")
    if os.geteuid() == 0:
        return
    if shutil.which("newuidmap") is None:
        raise apt.UnavailableError("newuidmap is not installed (package uidmap)")
    try:
        _run(["unshare", "--map-root-user", "true"], {})
    except apt.UnavailableError as error:
        raise apt.UnavailableError("an ordinary user may not make a user namespace on this machine") from error


def _mmdebstrap(output: Path) -> None:
    options = [f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--variant=minbase", "--format=tar"]
    options += [f"--include={','.join((*_SYSTEM, *_UKI_TOOLS, f'linux-image-cloud-{apt.architecture()}'))}"]
    options += [f"--aptopt={option}" for option in ('APT::Install-Recommends "false"', *apt.proxy_options())]
    options += [
        f"--dpkgopt={option}" for option in ("force-confold", *(f"path-exclude={path}" for path in _UNWANTED))
    ]
    command = ["mmdebstrap", *options, f"--essential-hook={_HOOK}", f"--customize-hook={_LAST_HOOK}"]
    command += [SUITE, "-", apt.find_mirror().source(SUITE)]
    with ExitStack() as stack:
        messages = stack.enter_context(tempfile.TemporaryFile("w+"))
        tar = stack.enter_context(output.open("wb"))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
        status = subprocess.run(command, stdout=tar, stderr=messages, env=environment, check=False).returncode
        if status != 0:
            messages.seek(0)
            said = "\n".join(messages.read().splitlines()[-12:])
            raise apt.UnavailableError(f"mmdebstrap cannot build a Debian 13 root file system here:\n{said}")


def _build(work: Path) -> None:
    _mmdebstrap(work / "root.tar")
    (work / "tree").mkdir()
    owners = ["--no-same-owner", "--no-same-permissions", "--exclude=./dev/*"]
    _run(["tar", "-C", str(work / "tree"), *owners, "-xf", str(work / "root.tar")], {})


def ensure() -> Root:
    """The root file system, built if the cache has none.  Raises UnavailableError where that is not possible."""
    made_from = cache.key(Path(__file__), apt.architecture())
    if not (cache.directory() / f"root-{made_from}").is_dir():
        _check()
    saying = "Building a Debian 13 root file system, once: 1 to 2 minutes"
    path = cache.ensure("root", made_from, _build, saying=saying)
    return Root(path / "root.tar", path / "tree")
