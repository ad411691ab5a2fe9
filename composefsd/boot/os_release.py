"""os-release files: `NAME=value` lines with quoting after the manner of shells.

Read as composefs-rs does (`composefs-boot/src/os_release.rs`): keys stand at the very start of a line, the last line
of a key counts, a value that does not end its quotes is as good as none.
"""

from dataclasses import dataclass
from typing import Final, Self

from composefsd.boot.files import WHITE_SPACE
from composefsd.errors import FormatError, LimitExceededError

LIMIT_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class OsRelease:
    """What an os-release file says, by key; quotes and escapes are undone."""

    values: dict[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises FormatError if the data are not UTF-8, and LimitExceededError beyond 64 KiB."""
        if len(data) > LIMIT_BYTES:
            raise LimitExceededError("an os-release file of more than 64 KiB", limit=LIMIT_BYTES)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise FormatError("os-release is not UTF-8", offset=error.start) from error
        written = dict(_assignments(text))
        return cls({key: value for key, raw in written.items() if (value := _unquoted(raw)) is not None})

    def first(self, *keys: str) -> str | None:
        """The value of the first key that has one."""
        return next((self.values[key] for key in keys if key in self.values), None)

    @property
    def title(self) -> str | None:
        """The name for people."""
        return self.first("PRETTY_NAME", "NAME", "ID")

    @property
    def version(self) -> str | None:
        return self.first("VERSION_ID", "VERSION")

    @property
    def id(self) -> str | None:
        return self.first("ID")

    @property
    def label(self) -> str | None:
        """Title and version, as the Boot Loader Specification wants a UKI to be shown."""
        if self.title is None or self.version is None:
            return self.title
        return f"{self.title} {self.version}"


def _assignments(text: str) -> list[tuple[str, str]]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    pairs = (line.partition("=") for line in lines if not line.lstrip(WHITE_SPACE).startswith("#"))
    return [(key, value) for key, equals, value in pairs if equals]


def _unquoted(value: str) -> str | None:
    """A value without its quotes; None if one of them stays open."""
    out: list[str] = []
    chars = iter(value.strip(WHITE_SPACE))
    for char in chars:
        if char not in "\"'":
            out.append(char)
            continue
        for inner in chars:
            if inner == char:
                break
            if inner == "\\" and char == '"':
                inner = next(chars, "")
                if not inner:
                    return None
            out.append(inner)
        else:
            return None
    return "".join(out)
