"""What is to be sealed, and how: checked before anything is read."""

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument, Spelling
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.errors import InvalidArgumentsError
from composefsd.oci.reference import Platform, Reference, Transport
from composefsd.operations.sealing.tools import Signing
from composefsd.operations.sources import Source, SourceKind
from composefsd.tree.normative import XattrMode

_CMDLINE_BYTES: Final = 2047
"""COMMAND_LINE_SIZE of x86 and arm64 without the zero at its end."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}")


@dataclass(frozen=True, slots=True)
class SealRequest:
    """What to seal, where to, and how.

    uki_name is without `.efi`, by default the kernel's version.  platform chooses from an index, and is what a
    directory is taken for; by default this host's.  xattrs are those of the boot image.  spelling is that of the
    argument which names the image: a value of `Spelling`.
    """

    source: str
    output: str
    signing: Signing = field(default_factory=Signing)
    cmdline: str = ""
    version: FormatVersion = FormatVersion.V1
    algorithm: Algorithm = Algorithm.SHA512
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
    kernel: str | None = None
    uki_name: str | None = None
    ukify: Path | None = None
    stub: Path | None = None
    platform: str | None = None
    spelling: str = Spelling.AUTO
    dumpfile: bool = False
    annotate: bool = False
    remove_kernel: bool = False

    @property
    def target(self) -> Reference:
        """The output, with an absolute path.  Raises InvalidReferenceError."""
        parsed = Reference.parse(self.output)
        return Reference(parsed.transport, parsed.path.absolute(), parsed.tag)

    @property
    def wanted_platform(self) -> Platform:
        """Raises InvalidReferenceError."""
        return Platform.host() if self.platform is None else Platform.parse(self.platform)

    def check(self) -> None:
        """Raises InvalidArgumentsError, or InvalidReferenceError, before anything is read."""
        self._check_places()
        if self.target.transport is not Transport.OCI:
            raise InvalidArgumentsError("a sealed image goes into an OCI layout: oci:PATH[:TAG]")
        if (self.signing.key is None) != (self.signing.certificate is None):
            raise InvalidArgumentsError("a key needs its certificate, and a certificate its key")
        for file in (self.signing.key, self.signing.certificate):
            if file is not None and not file.is_file():
                raise InvalidArgumentsError(f"{file} is no file")
        if self.uki_name is not None and not is_name(self.uki_name):
            raise InvalidArgumentsError(f"{self.uki_name[:200]!r} is no name for a UKI")
        if not self.cmdline.isprintable():
            raise InvalidArgumentsError("the command line has control characters")
        if self.cmdline.count('"') % 2:
            raise InvalidArgumentsError("the command line has an open quote")
        if cmdline.without_arguments(self.cmdline) != " ".join(cmdline.split(self.cmdline)):
            raise InvalidArgumentsError("the command line names a composefs image: that is what sealing adds")

    def _check_places(self) -> None:
        """A directory must not have in it what is written while it is read."""
        if Source.parse(self.source).kind is not SourceKind.DIRECTORY:
            return
        places = {"the output": str(self.target.path), "$TMPDIR": tempfile.gettempdir()}
        for name, path in places.items():
            if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.source)):
                raise InvalidArgumentsError(f"{name}, {path}, is inside the directory that is to be sealed")

    def command_line(self, digest: ObjectId) -> str:
        """The argument that names the image first: what follows `--` is not for the kernel.

        Raises InvalidArgumentsError if a kernel would cut it.
        """
        line = f"{self.argument(digest)} {self.cmdline}".rstrip()
        if len(line.encode()) > _CMDLINE_BYTES:
            raise InvalidArgumentsError(f"the command line has more than {_CMDLINE_BYTES} bytes")
        return line

    def argument(self, digest: ObjectId) -> ComposefsArgument:
        """The argument that names the image."""
        return ComposefsArgument.of(digest, int(self.version), Spelling(self.spelling), insecure=False)


def is_name(name: str) -> bool:
    """Whether a UKI can have this name, without `.efi`."""
    return _NAME.fullmatch(name) is not None and not name.endswith((".efi", ".addon"))
