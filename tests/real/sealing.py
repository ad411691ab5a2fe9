"""A small root directory that can be sealed, and `composefsctl seal` with the real `ukify` on PATH."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from real.stage import BIN
from real.ukify import Tools

VERSION: Final = "6.12.0-test"
MODULES: Final = f"usr/lib/modules/{VERSION}"
UKI: Final = f"boot/EFI/Linux/{VERSION}.efi"
OS_RELEASE: Final = b'ID=sealed\nNAME="Sealed"\nPRETTY_NAME="Sealed, for tests"\nVERSION_ID=1\n' + b"# padding\n" * 8
_CONTEXTS: Final = b"/.*\tsystem_u:object_r:default_t:s0\n/usr(/.*)?\tsystem_u:object_r:usr_t:s0\n"
_SECOND: Final = 1_000_000_000


def make_root(
    path: Path, tools: Tools, *, kernels: tuple[str, ...] = (VERSION,), without: tuple[str, ...] = ()
) -> Path:
    """A root directory whose kernel is a real PE file (a stub); `without` are directories that it has not."""
    for name in ("boot", "sysroot", "run/lock", "etc/selinux/demo/contexts/files", "usr/bin", "var"):
        if name not in without:
            (path / name).mkdir(parents=True)
    files = {
        "etc/selinux/config": b"SELINUXTYPE=demo\n",
        "etc/selinux/demo/contexts/files/file_contexts": _CONTEXTS,
        "usr/lib/os-release": OS_RELEASE,
        "usr/bin/tool": b"not a program\n" * 100,
        **{f"usr/lib/modules/{one}/vmlinuz": tools.stub.read_bytes() for one in kernels},
        **{f"usr/lib/modules/{one}/initramfs.img": b"not an initrd\n" * 1000 for one in kernels},
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "usr/bin/same-tool").hardlink_to(path / "usr/bin/tool")
    (path / "usr/bin/link").symlink_to("tool")
    for number, (folder, _, _) in enumerate(sorted(os.walk(path, topdown=False))):
        os.utime(folder, ns=(0, (1_700_000_000 + number) * _SECOND + number * 1001))
    return path


def run(tools: Tools, *arguments: str | Path, environment: Mapping[str, str] | None = None, before: str = "") -> Any:
    """How `composefsctl` ends: a CompletedProcess of texts.  `before` is shell text such as `ulimit -f 1;`."""
    command = [str(BIN / "composefsctl"), *map(str, arguments)]
    if before:
        command = ["bash", "-c", f'{before} exec "$@"', "bash", *command]
    variables = dict(tools.environment if environment is None else environment)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def seal(tools: Tools, source: str | Path, output: str, *options: str | Path) -> dict[str, Any]:
    """What a seal that has to succeed answers."""
    done = run(tools, "--json", "seal", source, "-o", output, f"--stub={tools.stub}", *options)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def verify(tools: Tools, source: str, *options: str | Path) -> dict[str, Any]:
    """What `verify-seal` answers; its exit status has to fit."""
    done = run(tools, "--json", "verify-seal", source, *options)
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == report["right"]
    return report


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def script(path: Path, text: str) -> Path:
    """A program of one line of shell."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def assert_leaves_nothing(path: Path) -> None:
    """Neither an output, nor what was to become one."""
    assert not path.exists()
    assert not [one for one in path.parent.iterdir() if one.name.startswith(".composefsctl")]
