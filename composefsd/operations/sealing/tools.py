"""The programs that make and sign a UKI: systemd's `ukify`, and whatever the caller signs with.

No shell reads any of it.  A program is told files by their paths, keys too: what is in a key never passes through
here.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from composefsd.boot.uki import Uki
from composefsd.errors import ComposefsdError, FormatError, UnsupportedError
from composefsd.linux.oserrors import translated

_SECONDS: Final = 600.0
_SAID_BYTES: Final = 2000
_PIECE_BYTES: Final = 1 << 20
_SIGNATURES_BYTES: Final = 1 << 20
_ARCHITECTURES: Final = {
    "amd64": "x64",
    "arm64": "aa64",
    "riscv64": "riscv64",
    "loong64": "loongarch64",
    "386": "ia32",
    "arm": "arm",
}
_UKIFY: Final = "/usr/lib/systemd/ukify"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a UKI is made of; the files are the kernel's and the initrd's.  architecture is in OCI's words."""

    linux: Path
    initrd: Path
    cmdline: str
    os_release: bytes
    uname: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Signing:
    """How a UKI is signed: with a key and its certificate, or by a command; not at all without either."""

    key: Path | None = None
    certificate: Path | None = None
    command: tuple[str, ...] = ()

    @property
    def wanted(self) -> bool:
        return self.key is not None or bool(self.command)

    def identity(self) -> bytes:
        """What a seal that another key has made would not have.  Raises FormatError for an unreadable certificate."""
        if self.certificate is not None:
            with translated(f"reading {self.certificate}"):
                return self.certificate.read_bytes()
        return "\0".join(self.command).encode()


@dataclass(frozen=True, slots=True)
class Ukify:
    """`ukify` as it was found, and the stub to use; None for ukify's own choice."""

    program: str
    stub: Path | None

    @classmethod
    def find(cls, program: Path | None, stub: Path | None) -> "Ukify":
        """Raises UnsupportedError if there is no such program, or no such stub."""
        found = shutil.which(program or "ukify") or (None if program else shutil.which(_UKIFY))
        if found is None:
            raise UnsupportedError(
                f"{program or 'ukify'} is no program that can be run; the package systemd-ukify has ukify"
            )
        if stub is not None and not stub.is_file():
            raise UnsupportedError(f"{stub} is no file: systemd's package of boot loaders has the stubs")
        return cls(found, stub)

    def build(self, parts: Parts, output: Path, signing: Signing) -> None:
        """Make a UKI, signed if there is a key.

        The kernel inside is not signed anew, so that an unsigned UKI has the same sections.  No configuration file of
        this host takes part.  Raises ComposefsdError with what ukify said, UnsupportedError for an architecture of
        which no stub is known.
        """
        with tempfile.TemporaryDirectory(prefix="composefsctl-uki-") as folder:
            texts = {"cmdline": parts.cmdline.encode(), "os-release": parts.os_release}
            for name, content in texts.items():
                with translated(f"writing to {folder}"):
                    (Path(folder) / name).write_bytes(content)
            options = [f"--{name}=@{folder}/{name}" for name in texts]
            options += [f"--linux={parts.linux}", f"--initrd={parts.initrd}", f"--uname={parts.uname}"]
            if self.stub is not None:
                options.append(f"--stub={self.stub}")
            elif parts.architecture not in _ARCHITECTURES:
                raise UnsupportedError(f"which stub is for {parts.architecture!r} is not known: name it with --stub")
            if parts.architecture in _ARCHITECTURES:
                options.append(f"--efi-arch={_ARCHITECTURES[parts.architecture]}")
            if signing.key is not None:
                options += [f"--secureboot-private-key={signing.key}", "--no-sign-kernel"]
                options.append(f"--secureboot-certificate={signing.certificate}")
            _run([self.program, "build", "--config=/dev/null", *options, f"--output={output}"], subprocess.DEVNULL)
        if not output.is_file():
            raise FormatError("ukify ended well, but wrote no UKI")


def sign_with_command(signing: Signing, unsigned: Path, output: Path) -> None:
    """Have a command sign a UKI: it is given both paths behind its own arguments.  It may ask on the terminal.

    Raises ComposefsdError with what it said if it fails, FormatError if it wrote nothing.
    """
    _run([*signing.command, str(unsigned), str(output)], None)
    if not output.is_file():
        raise FormatError(f"{signing.command[0]} ended well, but wrote no signed UKI to {output.name}")


def check_signed(unsigned: Path, signed: Path) -> None:
    """Raises FormatError unless a file is signed, and has the sections of the unsigned one."""
    with _opened(unsigned) as before, _opened(signed) as after:
        more_bytes = signed.stat().st_size - unsigned.stat().st_size
        if more_bytes > _SIGNATURES_BYTES:
            raise FormatError(f"signing made the UKI {more_bytes} bytes larger; {_SIGNATURES_BYTES} are allowed")
        old, new = _read(before), _read(after)
        if not new.signed:
            raise FormatError("the UKI has no signature after it was signed")
        shapes = [[(section.name, section.size_bytes) for section in one.sections] for one in (old, new)]
        if shapes[0] != shapes[1]:
            raise FormatError("signing changed the sections of the UKI")
        for mine, theirs in zip(old.sections, new.sections, strict=True):
            for at in range(0, mine.size_bytes, _PIECE_BYTES):
                count = min(_PIECE_BYTES, mine.size_bytes - at)
                if _part(before, mine.offset + at, count) != _part(after, theirs.offset + at, count):
                    raise FormatError(f"signing changed the section {mine.name.decode()} of the UKI")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with translated(f"reading {path}"), path.open("rb") as file:
        yield file


def _read(file: BinaryIO) -> Uki:
    size_bytes = os.fstat(file.fileno()).st_size
    return Uki.read(lambda offset, count: _part(file, offset, count), size_bytes)


def _part(file: BinaryIO, offset: int, count: int) -> bytes:
    return os.pread(file.fileno(), count, offset)


def _run(command: Sequence[str], stdin: int | None) -> None:
    """Run a program whose output nobody needs unless it fails."""
    name = Path(command[0]).name
    with tempfile.TemporaryFile() as said:
        try:
            subprocess.run(command, stdin=stdin, stdout=said, stderr=said, check=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ComposefsdError(f"{name} did not end within {_SECONDS:g} s") from error
        except subprocess.CalledProcessError as error:
            raise ComposefsdError(f"{name} fails with {_how(error.returncode)}: {_end(said)}") from error
        except OSError as error:
            raise UnsupportedError(f"{command[0]} cannot be run: {error.strerror}") from error


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _end(said: BinaryIO) -> str:
    """The end of what a program said."""
    size_bytes = said.seek(0, os.SEEK_END)
    said.seek(max(0, size_bytes - _SAID_BYTES))
    return said.read().decode(errors="backslashreplace").strip() or "it said nothing"
