"""Kernel command lines, and the arguments in them that name a composefs image.

A line is split as the kernel does it: at white space outside double quotes, without escapes; quotes stay.  The image
is named by `composefs=HEX`, of old, or by `composefs.digest=vN-HASH-12:HEX`, which also tells the format version, the
hash and log2 of the verity block size.  A `?` right after `=` says that the image may be mounted without fs-verity.
Both come from composefs-rs (`composefs-boot/src/cmdline.rs`).  The version informs only: who mounts looks for an
image of that digest.  Digits are lower case here, since the digest becomes a file name; upstream's parser takes both.

composefs-setup-root of composefs-rs goes by either; the initrd of bootc starts for `composefs=` alone, since the
condition of its service (`crates/initramfs/bootc-root-setup.service`) knows no other word.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from composefsd.digests import BLOCK_BITS, Algorithm, ObjectId
from composefsd.errors import FormatError, NotBootableError

LEGACY: Final = "composefs"
DESCRIBED: Final = "composefs.digest"

NO_IMAGE: Final = "the command line names no composefs image"
"""The reason against a command line without any such argument."""

_LEGACY_FORMAT: Final = 2
_VERSIONS: Final = {0: 1, 1: 1, 2: 2}
"""The version that an argument tells for an EROFS format: 0 and 1 are laid out alike."""

_TOKEN: Final = re.compile(r'(?:[^ \t\n\f\r"]|"[^"]*(?:"|\Z))+')
_DESCRIBED: Final = re.compile(rf"v([12])-(sha256|sha512)-{BLOCK_BITS}:(.*)", re.DOTALL)


class Spelling(StrEnum):
    """How an image is named: as composefs-rs spells it for its format, or always in one of the two ways."""

    AUTO = "auto"
    LEGACY = "legacy"
    DESCRIBED = "described"


@dataclass(frozen=True, slots=True)
class ComposefsArgument:
    """An argument that names an image; version is the format's (1 or 2), None for the legacy spelling."""

    digest: ObjectId
    version: int | None = None
    insecure: bool = False

    @classmethod
    def of(cls, digest: ObjectId, erofs_format: int, spelling: Spelling, *, insecure: bool) -> Self:
        """The argument for an image in the EROFS format 0, 1 or 2.

        composefs-rs writes `composefs.digest=` for 0 and 1 and `composefs=` for 2; any reader takes the legacy
        spelling for any format.
        """
        legacy = spelling is Spelling.LEGACY or (spelling is Spelling.AUTO and erofs_format == _LEGACY_FORMAT)
        return cls(digest, None if legacy else _VERSIONS[erofs_format], insecure)

    @classmethod
    def parse(cls, token: str) -> Self | None:
        """From a token of a command line; None if it is no such argument.  Raises FormatError if it is malformed."""
        key, equals, value = token.partition("=")
        if not equals or key not in (LEGACY, DESCRIBED):
            return None
        insecure = value.startswith("?")
        value = value.removeprefix("?")
        if key == LEGACY:
            return cls(ObjectId.parse(value), None, insecure)
        match = _described(token, value)
        return cls(ObjectId.parse(match[3], Algorithm(match[2])), int(match[1]), insecure)

    def __str__(self) -> str:
        mark = "?" if self.insecure else ""
        if self.version is None:
            return f"{LEGACY}={mark}{self.digest.hex}"
        return f"{DESCRIBED}={mark}v{self.version}-{self.digest.algorithm.value}-{BLOCK_BITS}:{self.digest.hex}"


def _described(token: str, value: str) -> re.Match[str]:
    """Version, algorithm and digits of a `composefs.digest=` argument without its mark."""
    match = _DESCRIBED.fullmatch(value)
    if match is None:
        raise FormatError(f"malformed {DESCRIBED}= argument: {value[:180]!r}", subject=token[:200])
    return match


def _algorithm(token: str) -> Algorithm:
    """Of a `composefs.digest=` argument, whose digits nobody looks at if it is another one than the reader's."""
    return Algorithm(_described(token, token.partition("=")[2].removeprefix("?"))[2])


def split(cmdline: str) -> list[str]:
    """The tokens of a command line, quotes included; an open quote ends with the line."""
    return _TOKEN.findall(cmdline)


def find_all(cmdline: str) -> tuple[ComposefsArgument, ...]:
    """Every argument that names an image, from left to right, which is how composefs-setup-root tries them.

    Raises FormatError if one is malformed.
    """
    found = (ComposefsArgument.parse(token) for token in split(cmdline))
    return tuple(argument for argument in found if argument is not None)


def find(cmdline: str, algorithm: Algorithm) -> ComposefsArgument | None:
    """The argument that cfsctl and bootc take: the first `composefs.digest=` of the algorithm, else `composefs=`.

    Raises FormatError if one that is looked at is malformed, or a legacy one is of the other algorithm.
    """
    tokens = split(cmdline)
    for token in tokens:
        if token.startswith(f"{DESCRIBED}=") and _algorithm(token) is algorithm:
            return ComposefsArgument.parse(token)
    for token in tokens:
        if token.startswith(f"{LEGACY}="):
            argument = ComposefsArgument.parse(token)
            if argument is not None and argument.digest.algorithm is not algorithm:
                raise FormatError(f"not a digest of {algorithm.value}: {token[:200]!r}", subject=token[:200])
            return argument
    return None


def check(cmdline: str, acceptable: Collection[ObjectId], algorithm: Algorithm) -> tuple[ComposefsArgument, ...]:
    """The arguments of a command line that boots one of the acceptable images and nothing else.

    What the tools compare and what an initrd mounts may be different tokens.  So each of them has to be well-formed
    and to name an acceptable image, and the first has to be of `algorithm`, that of the repository: an initrd that
    meets a foreign one gives up.  Raises NotBootableError with every reason, one a line.
    """
    arguments, reasons = [], []
    for token in split(cmdline):
        try:
            argument = _strict(token)
        except FormatError as error:
            reasons.append(str(error))
            continue
        if argument is not None:
            arguments.append(argument)
            if argument.digest not in acceptable:
                reasons.append(f"the command line names another image: {argument.digest}")
    if not arguments and not reasons:
        reasons.append(NO_IMAGE)
    if arguments and arguments[0].digest.algorithm is not algorithm:
        reasons.append(f"the command line names an image by {arguments[0].digest.algorithm.value} first")
    if reasons:
        raise NotBootableError("\n".join(dict.fromkeys(reasons)))
    return tuple(arguments)


def _strict(token: str) -> ComposefsArgument | None:
    """As `ComposefsArgument.parse`, but what would only be an argument without its quotes is malformed."""
    bare = token.replace('"', "")
    if bare != token and bare.partition("=")[0] in (LEGACY, DESCRIBED):
        raise FormatError(f"quoted composefs argument: {token[:200]!r}", subject=token[:200])
    return ComposefsArgument.parse(token)


def without_arguments(options: str) -> str:
    """A line without any token of either spelling, malformed ones and quoted ones included.

    Raises FormatError if a quote stays open: what is appended would become a part of the quoted text.
    """
    if options.count('"') % 2:
        raise FormatError("kernel arguments with an open quote", subject=options[:200])
    kept = [token for token in split(options) if token.replace('"', "").partition("=")[0] not in (LEGACY, DESCRIBED)]
    return " ".join(kept)


def with_argument(options: str, argument: ComposefsArgument) -> str:
    """A line with this argument at its end, instead of all that named an image before.  Raises like the above."""
    return f"{without_arguments(options)} {argument}".lstrip()
