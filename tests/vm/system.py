"""What the virtual machine boots: Debian's kernel, an initrd of one script, and a disk with Python and tools.

Built once and kept; what changes from run to run goes to the machine on a second disk.
"""

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from real import apt, cache, root

_PACKAGES: Final = (
    "python3", "python3-asn1crypto", "python3-cryptography", "python3-dbus-next", "python3-isal", "python3-pyxattr",
    "python3-pytest", "python3-systemd", "python3-zstandard", "dbus-daemon", "fsverity", "btrfs-progs", "e2fsprogs",
    "kmod", "mount", "libssl3",
)  # fmt: skip
_UNWANTED: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_DISK_MIB: Final = 768
_BUSYBOX: Final = "usr/bin/busybox"
_FIRST_MODULE: Final = "virtio_blk"
"""The one module without which there is no disk to load others from; it needs none itself."""

_PYTHON_PATH: Final = "usr/lib/python3/dist-packages/composefsd-under-test.pth"
_PROGRAMS: Final = {"composefsd": "composefsd.service.main", "composefsctl": "composefsd.client.cli"}

_INIT: Final = """\
#!/bin/busybox sh
set -e
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t ext4 /dev/vdb /root/data
exec /bin/busybox switch_root /root /bin/sh /data/code/tests/vm/guest-init
"""


@dataclass(frozen=True, slots=True)
class System:
    """Files for QEMU; `disk` is never written to."""

    kernel: Path
    initrd: Path
    disk: Path


def run(*command: str, **environment: str) -> None:
    """Run a tool.  Raises UnavailableError with the end of what it said if it is missing or fails."""
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    try:
        known = {**os.environ, "PATH": path, **environment}
        subprocess.run(command, check=True, capture_output=True, text=True, env=known)
    except FileNotFoundError as error:
        raise apt.UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        said = "\n".join(error.stderr.strip().splitlines()[-8:])
        raise apt.UnavailableError(f"{command[0]} fails:\n{said}") from error


def make_disk(path: Path, tree: Path, size_mib: int) -> None:
    """An ext4 with fs-verity that holds a copy of `tree`."""
    options = ("-q", "-t", "ext4", "-b", "4096", "-O", "verity", "-E", "lazy_itable_init=1")
    run("mke2fs", *options, "-d", str(tree), str(path), f"{size_mib}M")


def compile_code(folder: Path, *, seen_as: str) -> None:
    """Compile Python files with the Python that the machine has; itself it would take a minute for them."""
    tree = root.ensure().tree
    (python,) = (tree / "usr/bin").glob("python3.[0-9][0-9]")
    loader, libraries = tree / "usr/lib64/ld-linux-x86-64.so.2", tree / "usr/lib/x86_64-linux-gnu"
    options = ("-q", "--invalidation-mode=unchecked-hash", "-s", str(folder), "-p", seen_as)
    command = (str(loader.resolve()), "--library-path", str(libraries), str(python), "-m", "compileall", *options)
    run(*command, str(folder), PYTHONHOME=str(tree / "usr"))


def _mmdebstrap(output: Path) -> None:
    options = [f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--variant=minbase", "--format=tar"]
    options += [f"--include={','.join(_PACKAGES)}"]
    options += [f"--aptopt={option}" for option in ('APT::Install-Recommends "false"', *apt.proxy_options())]
    options += [f"--dpkgopt=path-exclude={path}" for path in _UNWANTED]
    run("mmdebstrap", *options, root.SUITE, str(output), apt.find_mirror().source(root.SUITE))


def _kernel(debian: root.Root) -> tuple[Path, Path]:
    """The kernel of the Debian root, and the directory of its modules."""
    (kernel,) = (debian.tree / "boot").glob("vmlinuz-*")
    return kernel, debian.tree / "usr/lib/modules" / kernel.name.removeprefix("vmlinuz-")


def _fill(tree: Path, modules: Path) -> None:
    """Add what makes the root ours: the kernel's modules, and ways to the code, which lies on the other disk."""
    shutil.copytree(modules, tree / "usr/lib/modules" / modules.name, symlinks=True)
    (tree / "data").mkdir()
    (tree / _PYTHON_PATH).write_text("/data/code\n")
    for name, module in _PROGRAMS.items():
        program = tree / "usr/bin" / name
        program.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        program.chmod(0o755)


def _module(modules: Path, name: str) -> bytes:
    (found,) = modules.rglob(f"{name}.ko*")
    return lzma.decompress(found.read_bytes()) if found.suffix == ".xz" else found.read_bytes()


def _archive(files: Sequence[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """A cpio of the format "newc", as linux/Documentation/driver-api/early-userspace/buffer-format.rst has it."""
    for number, (name, mode, data) in enumerate((*files, ("TRAILER!!!", 0, b"")), 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        yield head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def _initrd(busybox: bytes, module: bytes) -> bytes:
    folders = [(name, 0o40755, b"") for name in ("bin", "dev", "root")]
    files = [("bin/busybox", 0o100755, busybox), (f"{_FIRST_MODULE}.ko", 0o100644, module)]
    return b"".join(_archive((*folders, *files, ("init", 0o100755, _INIT.encode()))))


def _build(work: Path) -> None:
    debian = root.ensure()
    kernel, modules = _kernel(debian)
    shutil.copy(kernel, work / "kernel")
    initrd = _initrd((debian.tree / _BUSYBOX).read_bytes(), _module(modules, _FIRST_MODULE))
    (work / "initrd").write_bytes(initrd)
    with TemporaryDirectory(dir=work) as name:
        tree, tar = Path(name) / "tree", Path(name) / "root.tar"
        tree.mkdir()
        _mmdebstrap(tar)
        run("tar", "-C", str(tree), "--no-same-owner", "--no-same-permissions", "--exclude=./dev/*", "-xf", str(tar))
        _fill(tree, modules)
        make_disk(work / "disk", tree, _DISK_MIB)


def ensure() -> System:
    """What the machine boots, built if the cache has none.  Raises UnavailableError where that is not possible."""
    made_from = cache.key(Path(__file__), Path(root.__file__), apt.architecture())
    path = cache.ensure("vm", made_from, _build, saying="Building the system of the virtual machine, once: a minute")
    return System(path / "kernel", path / "initrd", path / "disk")
