"""A virtual machine that runs the checks of `guest_*.py` on a kernel with fs-verity, and what they came to.

It is emulated (`-accel tcg`): that works on any machine, also where /dev/kvm is there but of no use.  It has no
network.  It reports on its second serial line, one JSON object a line; the first has its console.
"""

import ast
import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from real import apt, handmade, peers
from real.oci_layout import Layout
from vm import system

from composefsd.digests import Algorithm
from composefsd.oci.reference import Reference
from composefsd.operations.host import Host, Settings
from composefsd.operations.model import PullRequest
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.repository import Metadata, Repository

HERE: Final = Path(__file__).parent
SOURCE: Final = HERE.parents[1]
_DATA_MIB: Final = 512
_SPARE_MIB: Final = 160
"""A disk without a filesystem; the least that btrfs takes is 109 MiB."""

_MEMORY_MIB: Final = 1024
_MORE_OBJECTS: Final = 200
_SECONDS: Final = 1200.0
"""Ten times what it takes on an idle machine."""

_KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check audit=0 security=none "
    "rcupdate.rcu_expedited=1"
)
_CONSOLE_CHARACTERS: Final = 3000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check of the guest ended: `passed`, `failed` or `skipped`, and what there is to say about it."""

    result: str
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes by the name of the check; `console` is the end of what the machine wrote to it."""

    outcomes: dict[str, Outcome]
    console: str
    seconds: float


def checks() -> list[str]:
    """The names of all checks, as the guest reports them: `file::function`."""
    return [f"{path.stem}::{name}" for path in sorted(HERE.glob("guest_*.py")) for name in _functions(path)]


def _functions(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def run(folder: Path) -> Report:
    """Start the machine, and wait until it has done all checks.

    Raises UnavailableError where there can be no such machine.
    """
    if shutil.which(_qemu()) is None:
        raise apt.UnavailableError(f"{_qemu()} is not installed (package qemu-system-x86)")
    booted = system.ensure()
    _make_data(folder)
    started = time.monotonic()
    console, results = folder / "console", folder / "results"
    with _running(_command(booted, folder), folder / "qemu.log") as qemu:
        try:
            qemu.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            qemu.kill()
    said = _end_of(console) + _end_of(folder / "qemu.log")
    return Report(_outcomes(results), said, time.monotonic() - started)


def _qemu() -> str:
    names = {"amd64": "qemu-system-x86_64"}
    architecture = apt.architecture()
    if architecture not in names:
        raise apt.UnavailableError(f"the virtual machine is not made for {architecture}")
    return names[architecture]


def _command(booted: system.System, folder: Path) -> list[str]:
    command = [_qemu(), "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(_MEMORY_MIB)]
    command += [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-monitor",
        "none",
        "-net",
        "none",
        "-no-reboot",
    ]
    command += ["-kernel", str(booted.kernel), "-initrd", str(booted.initrd), "-append", _KERNEL_ARGUMENTS]
    command += ["-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'results'}"]
    # snapshot=on: what is written goes to a file of QEMU's that has no name, so each machine starts from the same
    disks = {"root": booted.disk, "data": folder / "data", "spare": folder / "spare"}
    for name, path in disks.items():
        command += ["-drive", f"if=none,id={name},format=raw,cache=unsafe,snapshot=on,file={path}"]
        command += ["-device", f"virtio-blk-pci,drive={name}"]
    return command


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _make_data(folder: Path) -> None:
    """The second disk, with the code as it is now, an image to pull and the peer, if it can be had; and the third."""
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("composefsd", "tests", "dbus"):
        shutil.copytree(SOURCE / name, tree / "code" / name, symlinks=True, ignore=ignored)
    shutil.copy(SOURCE / "pyproject.toml", tree / "code")
    system.compile_code(tree / "code", seen_as="/data/code")
    shutil.copytree(SOURCE / "dbus", tree / "rootfs/usr/share/dbus")
    Layout(tree / "oci").add_image("os", list(handmade.layers()))
    _make_template(tree)
    _add_peer(tree)
    system.make_disk(folder / "data", tree, _DATA_MIB)
    with (folder / "spare").open("wb") as spare:
        spare.truncate(_SPARE_MIB << 20)


def _make_template(tree: Path) -> None:
    """An insecure repository that has the image, for checks to copy, and more objects to fill it up with.

    No file on the disk has fs-verity, whatever they had where they were made.
    """
    folder = tree / "template"
    for name in ("sysroot", "esp"):
        (folder / name).mkdir(parents=True)
    settings = Settings(
        folder / "repository", folder / "sysroot", folder / "esp", None, folder / "state", insecure=True
    )
    request = PullRequest(Reference.parse(f"oci:{tree / 'oci'}:os"))
    done = asyncio.run(pull(Host.open(settings), request, Silent()))
    (tree / "images.json").write_text(json.dumps({one.kind: one.digest.hex for one in done.images}))
    with Repository.create(tree / "more", Metadata.new(Algorithm.SHA512), insecure=True) as repository:
        for number in range(_MORE_OBJECTS):
            repository.objects.store(b"%d" % number * 100)


def _add_peer(tree: Path) -> None:
    try:
        shutil.copy(peers.cfsctl(), tree / "cfsctl")
    except apt.UnavailableError as error:
        (tree / "no-cfsctl").write_text(str(error))


def _outcomes(path: Path) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for line in path.read_text(errors="replace").splitlines():
        report = _parsed(line)
        if report is None:
            continue
        name, new = report["check"], Outcome(report["outcome"], report["text"], report["seconds"])
        if name not in found or found[name].result == "passed":  # of a check with parameters the first failure counts
            found[name] = new
    return found


def _parsed(line: str) -> dict[str, Any] | None:
    """A report; None for a line that the end of the machine has cut."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def _end_of(path: Path) -> str:
    return path.read_text(errors="replace")[-_CONSOLE_CHARACTERS:] if path.exists() else ""
