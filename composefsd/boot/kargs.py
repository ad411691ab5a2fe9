"""Kernel arguments that an image asks for in drop-ins, and how arguments of several sources become one line.

`/usr/lib/bootc/kargs.d/*.toml` are bootc's (`crates/lib/src/bootc_kargs.rs`): TOML with the key `kargs`, an array of
strings that hold one argument or several, and maybe `match-architectures`, an array of the names that Rust gives to
architectures.  Other keys are errors, and so is one file that cannot be read.  They are taken in the order of their
names' bytes.  docs/kernel-arguments.md has the rules of merging.
"""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from composefsd.boot import cmdline
from composefsd.boot.files import ObjectReader, find_directory, read_file, text
from composefsd.errors import FormatError, LimitExceededError, NotBootableError
from composefsd.tree.table import REGULAR, Tree

DIRECTORY: Final = b"/usr/lib/bootc/kargs.d"

_SUFFIX: Final = b".toml"
_ARGUMENTS: Final = "kargs"
_ARCHITECTURES: Final = "match-architectures"
_FILES: Final = 100
_ITEMS: Final = 256
_TOTAL_BYTES: Final = 64 * 1024
"""Of all drop-ins together; Linux takes 2047 bytes of arguments."""

_RUST_NAMES: Final = {
    "386": "x86",
    "amd64": "x86_64",
    "arm64": "aarch64",
    "loong64": "loongarch64",
    "mips64le": "mips64",
    "mipsle": "mips",
    "ppc64": "powerpc64",
    "ppc64le": "powerpc64",
}
"""What Rust (`std::env::consts::ARCH`) calls the architectures of OCI, where the names differ."""


@dataclass(frozen=True, slots=True)
class DropIn:
    """A file of kernel arguments; architectures are Rust's names, none if it counts on all of them.

    arguments are single ones.  problem tells why the file cannot be used; then there are no arguments.
    """

    path: str
    arguments: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    problem: str = ""

    @classmethod
    def parse(cls, path: str, data: bytes) -> Self:
        """Raises FormatError for what bootc would not read, and for an open quote: what follows would belong to it.

        A list of architectures that is there and empty matches none, hence no arguments then.
        """
        try:
            table = tomllib.loads(data.decode())
        except RecursionError as error:
            raise FormatError("nested too deeply for TOML of kernel arguments") from error
        except ValueError as error:  # of the text's encoding as well
            raise FormatError(f"not valid TOML: {error}") from error
        unknown = sorted(table.keys() - {_ARGUMENTS, _ARCHITECTURES})
        if unknown:
            raise FormatError(f"unknown key {unknown[0][:80]!r}")
        if _ARGUMENTS not in table:
            raise FormatError(f"no key {_ARGUMENTS!r}")
        arguments = _strings(table, _ARGUMENTS)
        line = " ".join(arguments)
        if line.count('"') % 2:
            raise FormatError("kernel arguments with an open quote")
        single = tuple(cmdline.split(line))
        if len(single) > _ITEMS:
            raise FormatError(f"{len(single)} kernel arguments, where {_ITEMS} are allowed")
        if _ARCHITECTURES not in table:
            return cls(path, single)
        architectures = _strings(table, _ARCHITECTURES)
        return cls(path, single if architectures else (), architectures)


def _strings(table: dict[str, object], key: str) -> tuple[str, ...]:
    value = table[key]
    if not isinstance(value, list):
        raise FormatError(f"{key!r} is not an array of strings")
    found = tuple(item for item in value if isinstance(item, str))
    if len(found) != len(value):
        raise FormatError(f"{key!r} is not an array of strings")
    if len(found) > _ITEMS:
        raise FormatError(f"{key!r} has {len(found)} items, where {_ITEMS} are allowed")
    return found


def collect(tree: Tree, read: ObjectReader) -> tuple[DropIn, ...]:
    """The drop-ins of an image's tree in their order, those that cannot be used with their `problem`.

    Links are not followed.  Raises what `read` raises for objects that are lost.
    """
    try:
        directory = find_directory(tree, DIRECTORY)
    except NotBootableError as error:
        return (DropIn(text(DIRECTORY), problem=error.message),)
    if directory is None:
        return ()
    found = sorted(_listed(tree, directory))
    total = sum(tree.size[inode] for _, inode in found)
    if len(found) > _FILES or total > _TOTAL_BYTES:
        limits = f"where {_FILES} and {_TOTAL_BYTES} are allowed"
        return (DropIn(text(DIRECTORY), problem=f"{len(found)} drop-ins of {total} bytes, {limits}"),)
    return tuple(_drop_in(tree, read, name, inode) for name, inode in found)


def _listed(tree: Tree, directory: int) -> Iterator[tuple[bytes, int]]:
    for entry in tree.entries(directory):
        name = tree.name(entry)
        if name.endswith(_SUFFIX) and name != _SUFFIX:  # a name that begins with its only dot has no suffix in Rust
            yield name, tree.child[entry]


def _drop_in(tree: Tree, read: ObjectReader, name: bytes, inode: int) -> DropIn:
    path = text(DIRECTORY + b"/" + name)
    if tree.kind[inode] not in REGULAR:
        return DropIn(path, problem="not a regular file")
    try:
        return DropIn.parse(path, read_file(tree, inode, read, _TOTAL_BYTES))
    except (FormatError, LimitExceededError) as error:
        return DropIn(path, problem=error.message)


def of_architecture(drop_ins: Iterable[DropIn], architecture: str) -> tuple[str, ...]:
    """The arguments of drop-ins for an architecture, by its name in OCI; one that is there already comes no more.

    That is bootc's rule among drop-ins, whose authors may not know of each other.
    """
    name = _RUST_NAMES.get(architecture, architecture)
    found = (one.arguments for one in drop_ins if not one.architectures or name in one.architectures)
    return tuple(dict.fromkeys(argument for arguments in found for argument in arguments))


def without(arguments: Iterable[str], unwanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments that stay, and those of `unwanted` that none matches.

    An unwanted `KEY=VALUE` matches that very argument, `KEY` every argument of the key, with a value or without.
    """
    arguments = tuple(arguments)
    matched = {one: [argument for argument in arguments if _matches(one, argument)] for one in unwanted}
    gone = {argument for found in matched.values() for argument in found}
    return tuple(one for one in arguments if one not in gone), tuple(one for one in matched if not matched[one])


def _matches(unwanted: str, argument: str) -> bool:
    return argument == unwanted or ("=" not in unwanted and argument.partition("=")[0] == unwanted)


def merge(*sources: Sequence[str]) -> tuple[str, ...]:
    """All arguments, source by source; one that a later source has as well stands only where that has it.

    So the last word is the later source's, as the kernel and systemd take the last of most arguments.  What one
    source repeats stays repeated.
    """
    merged: list[str] = []
    for number, source in enumerate(sources):
        later = {argument for others in sources[number + 1 :] for argument in others}
        merged += (argument for argument in source if argument not in later)
    return tuple(merged)
