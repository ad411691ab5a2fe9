"""In the virtual machine: the plugin that reports to the host, and what the checks have in common."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from composefsd.digests import Algorithm
from composefsd.operations.host import Host, Settings
from composefsd.repository import Repository
from composefsd.repository import secure as sealing
from composefsd.repository.fsck import Severity, check

DATA: Final = Path("/data")
IMAGE: Final = f"oci:{DATA}/oci:os"
_LINE: Final = Path("/dev/ttyS1")
MEASURE_VERITY: Final = 0xC0046686
"""FS_IOC_MEASURE_VERITY of linux/fsverity.h on most architectures."""

SPARE: Final = Path("/dev/vdc")
_TEXT_CHARACTERS: Final = 6000

MakeHost = Callable[..., Host]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line for each check: that of its call, or that of the step before or after which it failed or was skipped."""
    if report.when != "call" and report.passed:
        return
    file, _, name = report.nodeid.partition("::")
    line = {
        "check": f"{Path(file).stem}::{name.partition('[')[0]}",
        "outcome": report.outcome,
        "text": _text(report)[-_TEXT_CHARACTERS:],
        "seconds": round(report.duration, 2),
    }
    fd = os.open(_LINE, os.O_WRONLY | os.O_NOCTTY)
    try:
        tty.setraw(fd)
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _text(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext + "".join(f"\n{title}\n{text}" for title, text in report.sections)


@dataclass(frozen=True, slots=True)
class Made:
    """A host, and its repository with the image."""

    host: Host

    @property
    def root(self) -> Path:
        return self.host.settings.repository

    @property
    def objects(self) -> list[Path]:
        return sorted(path for path in (self.root / "objects").rglob("*") if path.is_file())

    @property
    def is_secure(self) -> bool:
        """Whether the repository demands fs-verity, and every object has it."""
        return has_verity(self.root / "meta.json") and all(map(has_verity, self.objects))

    @property
    def sealed(self) -> int:
        """How many objects have fs-verity."""
        return sum(map(has_verity, self.objects))


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """Makes hosts in a folder on an ext4 with fs-verity; `folder` is another place."""

    def make(folder: Path = tmp_path, *, insecure: bool = False, algorithm: Algorithm = Algorithm.SHA512) -> Host:
        for name in ("sysroot", "esp"):
            (folder / name).mkdir(exist_ok=True)
        settings = Settings(
            folder / "repository", folder / "sysroot", folder / "esp", None, folder / "state",
            insecure=insecure, algorithm=algorithm,
        )  # fmt: skip
        return Host.open(settings)

    return make


@pytest.fixture
def insecure(make_host: MakeHost, tmp_path: Path) -> Made:
    """An insecure repository with the image, none of whose files has fs-verity; the host demands it."""
    copy_template(tmp_path)
    return Made(make_host())


@pytest.fixture
def secure(make_host: MakeHost, tmp_path: Path) -> Made:
    """A secure repository with the image."""
    copy_template(tmp_path)
    with Repository.open(tmp_path / "repository") as repository, repository.exclusive_lock(0):
        sealing.enable(repository, lambda _done, _total: None)
        repository.sync()
        repository.make_secure()
    return Made(make_host())


def copy_template(folder: Path) -> None:
    """Put the insecure repository with the image into a folder."""
    shutil.copytree(DATA / "template/repository", folder / "repository", symlinks=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A small ext4 in a file, and where it is mounted."""
    image, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    tool("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "verity,^has_journal", str(image), "16M")
    tool("mount", "-o", "loop", str(image), str(folder))
    yield image, folder
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


@pytest.fixture
def btrfs() -> Iterator[Path]:
    """An empty btrfs."""
    folder = DATA / "btrfs"
    folder.mkdir(exist_ok=True)
    tool("mkfs.btrfs", "-q", "-f", str(SPARE))
    tool("mount", "-t", "btrfs", str(SPARE), str(folder))
    yield folder
    tool("umount", str(folder))


def image_digest(kind: str) -> str:
    """The digest of the image's composefs image of a kind."""
    return str(json.loads((DATA / "images.json").read_text())[kind])


def tool(*command: str) -> str:
    """What a tool says; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def has_verity(path: Path) -> bool:
    """Whether the kernel has a digest for a file, asked without code of ours."""
    with path.open("rb") as file:
        try:
            fcntl.ioctl(file, MEASURE_VERITY, bytearray(b"\0\0\x40\0" + bytes(64)))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP):
                raise
            return False
    return True


def unseal(path: Path, content: bytes | None = None) -> None:
    """Put a copy without fs-verity in the place of a file; its content, or another."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes() if content is None else content)
    copy.rename(path)


def flipped(path: Path) -> bytes:
    """The content of a file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def findings(root: Path) -> set[tuple[str, str]]:
    """The errors that a check in full finds: codes and subjects."""
    with Repository.open(root, writable=False) as repository, repository.shared_lock(0):
        found = check(repository, objects=True)
        return {(one.code.value, one.subject) for one in found if one.severity is Severity.ERROR}
