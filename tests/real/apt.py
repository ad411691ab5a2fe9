"""Where this machine gets its Debian packages from, as apt itself understands its configuration."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITES: Final = {"stable", "oldstable", "testing", "unstable", "sid"}


class UnavailableError(Exception):
    """Something that cannot be had on this machine; the message names it in words for a person."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A Debian archive: its address as it stands in the machine's sources."""

    uri: str

    def source(self, suite: str, kind: str = "deb") -> str:
        """The one-line apt source of a suite of this archive; kind `deb-src` is for sources."""
        return f"{kind} [signed-by={KEYRING}] {self.uri} {suite} main"


def _output(*command: str, folder: Path | None = None) -> str:
    """Standard output of a command.  Raises UnavailableError if there is no such tool, or if it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"{command[0]} fails: {error.stderr.strip() or error.returncode}") from error


def architecture() -> str:
    """Debian's name of this machine's architecture."""
    return _output("dpkg", "--print-architecture").strip()


def find_mirror() -> Mirror:
    """The Debian archive that this machine installs from, of either format of apt's sources.

    Raises UnavailableError if there is none, as on another distribution.
    """
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listed = _output(
        "apt-get",
        "indextargets",
        "--no-release-info",
        "--format=$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    )
    found = []
    for line in dict.fromkeys(listed.splitlines()):
        uri, release, component = (*line.split(" "), "", "")[:3]
        if component == "main" and release in {codename, *_SUITES}:
            found.append(uri.rstrip("/"))
    if not found:
        raise UnavailableError("apt's sources name no Debian archive (a suite with the component main)")
    # other publishers use Debian's code names too, but hardly ever call their archive `debian`
    return Mirror(min(found, key=lambda uri: not uri.endswith("/debian")))


def proxy_options() -> list[str]:
    """apt's proxy settings as options in apt.conf's syntax, for an apt that does not read this machine's files."""
    listed = _output("apt-config", "dump", "--format", "%F=%v%n", "Acquire::http::Proxy", "Acquire::https::Proxy")
    settings = (line.partition("=") for line in listed.splitlines())
    return [f'{name} "{value}"' for name, _, value in settings if value]


def download(suite: str, packages: Sequence[str], folder: Path, *, sources: bool = False) -> list[Path]:
    """Download packages of a suite, or the archives of source packages, into `folder`; the files, sorted.

    The apt that does it knows of that suite alone, and leaves the machine's own state be.  Raises UnavailableError.
    """
    with TemporaryDirectory() as name:
        options = _private_state(Path(name), find_mirror().source(suite, "deb-src" if sources else "deb"))
        _output("apt-get", *options, "update")
        action = ["source", "--download-only"] if sources else ["download"]
        before = set(folder.iterdir())
        _output("apt-get", *options, *action, *packages, folder=folder)
    return sorted(set(folder.iterdir()) - before)


def download_index(suite: str, name: str, target: Path) -> None:
    """Download an index of a suite, by its path below `dists/SUITE`, as it is.  Raises UnavailableError."""
    _output("/usr/lib/apt/apt-helper", "download-file", f"{find_mirror().uri}/dists/{suite}/{name}", str(target))


def _private_state(folder: Path, source: str) -> list[str]:
    """Options for an apt that keeps all that it knows in `folder`."""
    (folder / "sources.list").write_text(f"{source}\n")
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (folder / directory).mkdir(parents=True)
    (folder / "state/status").touch()
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",  # a mirror may be a snapshot; the signature is checked all the same
        "APT::Sandbox::User": "root",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def unpack(package: Path, folder: Path) -> None:
    """Unpack what a package installs into `folder`.  Raises UnavailableError."""
    _output("dpkg-deb", "--extract", str(package), str(folder))


def version(package: Path) -> str:
    """The version of a package.  Raises UnavailableError."""
    return _output("dpkg-deb", "--field", str(package), "Version").strip()
