"""The state of a deployment: what composefs-setup-root mounts as its /etc and /var.

Below the sysroot, in the arrangement of the initrd tool of composefs-rs with its default, an overlay on /etc:

    state/deploy/<boot digest>/etc/upper    mode, owner and label of the image's /etc
    state/deploy/<boot digest>/etc/work     0700
    state/deploy/<boot digest>/var          link to ../../os/default/var, which all deployments share
    state/deploy/<boot digest>/<boot digest>.origin    which image it came from, as bootc writes it
    state/deploy/<other digest>             link to the first, where the command line may mount another format

`upper` and `work` are made here and not left to the initrd, where no SELinux policy is loaded and what is created has
no label.  A directory appears under a temporary name and is renamed when it is complete and durable.
"""

import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from composefsd.deploy.state import Deployment, DeploymentType
from composefsd.deploy.volume import Volume

log = logging.getLogger(__name__)

DEPLOY: Final = "state/deploy"
SHARED: Final = "state/os/default"

_VAR_LINK: Final = "../../os/default/var"
_UNFINISHED: Final = re.compile(r"\.(?:[0-9a-f]{64}|[0-9a-f]{128}|var)\.[0-9]+\.(?:tmp|gone)")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Directory:
    """Metadata of a directory: permission bits, owner, SELinux label (empty: leave it alone)."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    label: bytes = b""


class Layout(Enum):
    """What is found where the state of a deployment belongs."""

    MISSING = auto()
    OVERLAY = auto()
    OTHER = auto()


def find(sysroot: Volume, deployment_id: str) -> Layout:
    """OTHER is a state that the overlay of composefs-setup-root would misread, such as bootc's full copy of /etc."""
    base = f"{DEPLOY}/{deployment_id}"
    found = sysroot.stat(base)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return Layout.MISSING if found is None else Layout.OTHER
    names = {name.name: name.is_directory for name in sysroot.names(base)}
    etc = {name.name: name.is_directory for name in sysroot.names(f"{base}/etc")} if names.get("etc") else {}
    complete = "var" in names and etc.get("upper") and etc.get("work")
    return Layout.OVERLAY if complete else Layout.OTHER


def create(sysroot: Volume, deployment: Deployment, etc: Directory, var: Directory, kernel_digest: str) -> None:
    """Make what is missing of a deployment's state.  What exists already keeps its content, the origin file apart.

    kernel_digest is the SHA-256 of kernel and initrd (bootc's boot digest), or empty if it is not known.
    """
    _ensure_shared_var(sysroot, var)
    sysroot.ensure_directory(DEPLOY)
    origin = origin_text(deployment, kernel_digest).encode()
    if sysroot.stat(f"{DEPLOY}/{deployment.id}") is None:
        _create(sysroot, deployment, etc, origin)
    else:
        sysroot.replace(f"{DEPLOY}/{deployment.id}/{deployment.id}.origin", origin)
    for alias in deployment.aliases:
        _link(sysroot, f"{DEPLOY}/{alias.hex}", deployment.id)


def origin_text(deployment: Deployment, kernel_digest: str) -> str:
    """The origin file; keys and sections are bootc's."""
    kind = "uki" if deployment.type is DeploymentType.UKI else "bls"
    lines = ["[origin]"]
    if deployment.reference:
        lines.append(f"container-image-reference=ostree-unverified-image:{deployment.reference}")
    lines += ["", "[boot]", f"boot_type={kind}"]
    if kernel_digest:
        lines.append(f"digest={kernel_digest}")
    lines += ["", "[image]", f"manifest_digest={deployment.manifest_digest or ''}"]
    return "\n".join(lines) + "\n"


def _create(sysroot: Volume, deployment: Deployment, etc: Directory, origin: bytes) -> None:
    temporary = f".{deployment.id}.{deployment.seq}.tmp"
    base = f"{DEPLOY}/{temporary}"
    _make(sysroot, base, Directory())
    _make(sysroot, f"{base}/etc", Directory(label=etc.label))
    _make(sysroot, f"{base}/etc/upper", etc)
    _make(sysroot, f"{base}/etc/work", Directory(0o700, label=etc.label))
    _link(sysroot, f"{base}/var", _VAR_LINK)
    sysroot.write_new(f"{base}/{deployment.id}.origin", origin)
    sysroot.move_new(DEPLOY, temporary, deployment.id)


def _ensure_shared_var(sysroot: Volume, var: Directory) -> None:
    sysroot.ensure_directory(SHARED)
    if sysroot.stat(f"{SHARED}/var") is None:
        _make(sysroot, f"{SHARED}/.var.0.tmp", var)
        sysroot.move_new(SHARED, ".var.0.tmp", "var")


def _make(sysroot: Volume, path: str, wanted: Directory) -> None:
    """A new directory with its metadata, durably."""
    with sysroot.above(path, "create") as (above, name):
        sysroot.step(f"make {path}/")
        os.mkdir(name, 0o700, dir_fd=above)
        fd = os.open(name, _DIRECTORY, dir_fd=above)
        try:
            _dress(fd, path, wanted)
            sysroot.sync(fd, path)
        finally:
            os.close(fd)
        sysroot.sync(above, path.rpartition("/")[0])


def _dress(fd: int, path: str, wanted: Directory) -> None:
    """Owner and label are root's to give: a scratch sysroot of an ordinary user goes without."""
    os.fchmod(fd, wanted.mode & 0o7777)
    if os.geteuid() != 0:
        return
    os.fchown(fd, wanted.uid, wanted.gid)
    os.fchmod(fd, wanted.mode & 0o7777)  # once more, for chown clears set-user-ID and set-group-ID
    if wanted.label:
        try:
            os.setxattr(fd, "security.selinux", wanted.label)
        except OSError as error:
            log.warning("cannot label %s as %s: %s", path, wanted.label.decode(errors="replace"), error.strerror)


def _link(sysroot: Volume, path: str, target: str) -> None:
    """A symbolic link, durably, unless something has the name."""
    if sysroot.stat(path) is not None:
        return
    with sysroot.above(path, "create") as (above, name):
        sysroot.step(f"link {path}")
        os.symlink(target, name, dir_fd=above)
        sysroot.sync(above, path.rpartition("/")[0])


# Removing


def remove(sysroot: Volume, deployment: Deployment) -> None:
    """Remove the state of a deployment: its /etc, and the shared /var if no other state is left that uses it.

    Can be called again after it was interrupted.
    """
    if sysroot.stat(f"{DEPLOY}/{deployment.id}") is not None:
        _discard(sysroot, DEPLOY, deployment.id, deployment.seq)
    for name in sysroot.names(DEPLOY):
        if not name.is_directory and not name.is_file and _leads_to(sysroot, name.name, deployment.id):
            sysroot.remove(f"{DEPLOY}/{name.name}")
    in_use = any(name.is_directory and not _UNFINISHED.fullmatch(name.name) for name in sysroot.names(DEPLOY))
    if not in_use and sysroot.stat(f"{SHARED}/var") is not None:
        _discard(sysroot, SHARED, "var", deployment.seq)


def sweep(sysroot: Volume) -> None:
    """Remove what was being made or removed when it was interrupted."""
    for directory in (DEPLOY, SHARED):
        for name in sysroot.names(directory):
            if name.is_directory and _UNFINISHED.fullmatch(name.name):
                _remove_tree(sysroot, f"{directory}/{name.name}")


def _leads_to(sysroot: Volume, name: str, target: str) -> bool:
    with sysroot.above(f"{DEPLOY}/{name}", "look at") as (above, _):
        return os.readlink(name, dir_fd=above) == target


def _discard(sysroot: Volume, directory: str, name: str, seq: int) -> None:
    """Out of the way first, in one durable step, so that nothing half removed is ever mounted."""
    aside = f".{name}.{seq}.gone"
    sysroot.move_new(directory, name, aside)
    _remove_tree(sysroot, f"{directory}/{aside}")


def _remove_tree(sysroot: Volume, path: str) -> None:
    with sysroot.above(path, "remove") as (above, name):
        sysroot.step(f"remove {path}/")
        fd = os.open(name, _DIRECTORY, dir_fd=above)
        try:
            _empty(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=above)
        sysroot.sync(above, path.rpartition("/")[0])


def _empty(top: int) -> None:
    """Remove all that is in a directory, however deep, without following a link or crossing a mount.

    Every directory is first renamed into `top`: that needs no recursion, and a mount point refuses to be renamed.
    """
    while directories := _unlink_files(top):
        for name in directories:
            moved = _move(top, name, top)
            fd = os.open(moved, _DIRECTORY, dir_fd=top)
            try:
                for child in _unlink_files(fd):
                    _move(fd, child, top)
            finally:
                os.close(fd)
            os.rmdir(moved, dir_fd=top)


def _move(source: int, name: str, top: int) -> str:
    moved = f".{secrets.token_hex(8)}"
    os.rename(name, moved, src_dir_fd=source, dst_dir_fd=top)
    return moved


def _unlink_files(directory: int) -> list[str]:
    """Unlink everything but directories, whose names are returned."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return directories
