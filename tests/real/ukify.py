"""The `ukify`, the stubs and the `sbsign` of Debian, fetched once and cached: what a builder of images has.

`ukify` is one Python program of Debian 13, which runs with this machine's `python3`; its `pefile` comes along.
`sbsign` is Debian 12's, whose libraries are there in Debian 12 and 13 alike.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from real import apt, cache

_PACKAGES: Final = {
    "trixie": ("systemd-ukify", "python3-pefile", "systemd-boot-efi"),
    "bookworm": ("sbsigntool",),
}
_EFI_NAMES: Final = {"amd64": "x64", "arm64": "aa64"}
_STUBS: Final = Path("usr/lib/systemd/boot/efi")
_SCRIPT: Final = """\
#!/bin/sh
# Debian's ukify with the pefile that came along; it writes no byte code beside either.
root=$(dirname "$(dirname "$(readlink -f "$0")")")
PYTHONPATH="$root/usr/lib/python3/dist-packages" exec python3 -B "$root/usr/bin/ukify" "$@"
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """Where they lie.

    bin holds `ukify`, `sbsign` and `sbverify`, and can be put first on PATH; ukify finds sbsign there alone.
    """

    bin: Path
    stub: Path
    addon_stub: Path

    @property
    def ukify(self) -> Path:
        return self.bin / "ukify"

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of this process, with `bin` first on PATH."""
        return {**os.environ, "PATH": f"{self.bin}:{os.environ.get('PATH', '/usr/bin:/bin')}"}

    def build(self, output: Path, *options: str | Path) -> None:
        """Run `ukify build` with this architecture's stub.  Raises UnavailableError with what it said if it fails."""
        _run(self, str(self.ukify), "build", f"--stub={self.stub}", f"--output={output}", *map(str, options))

    def build_addon(self, output: Path, *options: str | Path) -> None:
        """As `build`, with the stub of an addon: for addons, and for profiles that `--join-profile` adds to a UKI."""
        _run(self, str(self.ukify), "build", f"--stub={self.addon_stub}", f"--output={output}", *map(str, options))


def _run(tools: Tools, *command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=tools.environment)
    except FileNotFoundError as error:
        raise apt.UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        said = "\n".join(error.stderr.strip().splitlines()[-8:])
        raise apt.UnavailableError(f"{Path(command[0]).name} fails:\n{said}") from error


def _build(work: Path) -> None:
    for suite, packages in _PACKAGES.items():
        with TemporaryDirectory() as name:
            for package in apt.download(suite, packages, Path(name)):
                apt.unpack(package, work)
    (work / "bin").mkdir()
    (work / "bin/ukify").write_text(_SCRIPT)
    (work / "bin/ukify").chmod(0o755)
    for tool in ("sbsign", "sbverify"):
        (work / "bin" / tool).symlink_to(f"../usr/bin/{tool}")


def ensure() -> Tools:
    """The tools, fetched if the cache has none.  Raises UnavailableError where they cannot be had."""
    architecture = apt.architecture()
    if architecture not in _EFI_NAMES:
        raise apt.UnavailableError(f"there is no UKI stub for {architecture}")
    made_from = cache.key(Path(__file__), architecture)
    path = cache.ensure("ukify", made_from, _build, saying="Fetching ukify and sbsign")
    stubs = path / _STUBS
    name = f"{_EFI_NAMES[architecture]}.efi.stub"
    return Tools(path / "bin", stubs / f"linux{name}", stubs / f"addon{name}")


@dataclass(frozen=True, slots=True)
class Key:
    """A key to sign with, and its certificate, in PEM."""

    private: Path
    certificate: Path


def make_key(folder: Path, name: str = "test key") -> Key:
    """A new RSA key in `folder` and a certificate of it whose subject is `CN=name`.

    Raises UnavailableError where there is no openssl.
    """
    stem = name.replace(" ", "-")
    key = Key(folder / f"{stem}.key", folder / f"{stem}.crt")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", f"/CN={name}"]
    try:
        made = [*command, "-keyout", str(key.private), "-out", str(key.certificate)]
        subprocess.run(made, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise apt.UnavailableError("openssl is not installed") from error
    except subprocess.CalledProcessError as error:
        raise apt.UnavailableError(f"openssl fails: {error.stderr.strip()}") from error
    return key
