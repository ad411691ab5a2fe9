"""Configuration: `composefsd.conf` and its drop-ins, in systemd's manner (systemd.syntax(7)).

`Key=value` under `[Daemon]`; lines that start with `#` or `;` are comments; a backslash at the end joins the next
line; a key given again overrides, given empty it has its default again.  Drop-ins are `*.conf` in the directory with
`.d` after the file's name, read after it in the order of their names; those of /etc hide those of the same name of
/run and /usr/lib.  Unknown keys are warned about with file and line, a bad value keeps the daemon from starting.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, InvalidArgumentsError
from composefsd.operations.host import Settings

log = logging.getLogger(__name__)

DEFAULT_FILE: Final = Path("/etc/composefsd/composefsd.conf")
DEFAULT_SYSROOT: Final = Path("/sysroot")
DEFAULT_STATE: Final = Path("/var/lib/composefsd")
DEFAULT_EFIVARS: Final = Path("/sys/firmware/efi/efivars")

_SECTION: Final = "Daemon"
_VENDOR: Final = (Path("/usr/lib/composefsd"), Path("/run/composefsd"), Path("/etc/composefsd"))
_FILE_BYTES: Final = 1 << 20
_TRUE: Final = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE: Final = frozenset({"0", "no", "n", "false", "f", "off"})

V = TypeVar("V")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Setting:
    """A line of a file; source is `FILE:LINE`."""

    section: str
    key: str
    value: str
    source: str


def parse(text: str, file: str) -> Iterator[Setting]:
    """The settings of a file.  Raises InvalidArgumentsError for a line that is none."""
    section, joined, first = "", "", 0
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped.startswith(("#", ";")) or (not stripped and not joined):
            continue
        first = first if joined else number
        if stripped.endswith("\\"):
            joined += stripped[:-1] + " "
            continue
        whole, joined = (joined + stripped).strip(), ""
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
            continue
        key, equals, value = whole.partition("=")
        if not equals:
            raise InvalidArgumentsError(f"{file}:{first}: {whole[:80]!r} is neither a section nor Key=value")
        yield Setting(section, key.strip(), value.strip(), f"{file}:{first}")


def _path(value: str) -> Path:
    if not value.startswith("/") or "\0" in value:
        raise InvalidArgumentsError("not an absolute path")
    return Path(os.path.normpath(value))


def _boolean(value: str) -> bool:
    if value.lower() not in _TRUE | _FALSE:
        raise InvalidArgumentsError("not a boolean")
    return value.lower() in _TRUE


def _algorithm(value: str) -> Algorithm:
    if value not in [known.value for known in Algorithm]:
        raise InvalidArgumentsError(f"none of {', '.join(known.value for known in Algorithm)}")
    return Algorithm(value)


def _formats(value: str) -> tuple[FormatVersion, ...]:
    formats = tuple(dict.fromkeys(map(FormatVersion.from_label, value.split())))
    if FormatVersion.V0 in formats:
        raise InvalidArgumentsError("images of OCI images have the formats v1 and v2 only")
    return formats


_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "Repository": _path,
    "Sysroot": _path,
    "ESP": _path,
    "XBOOTLDR": _path,
    "State": _path,
    "Algorithm": _algorithm,
    "Formats": _formats,
    "Insecure": _boolean,
    "EFIVariables": _path,
}

Values = dict[str, Any]
"""What was configured by key, parsed."""


def _collect(settings: Iterator[Setting], values: Values) -> None:
    for setting in settings:
        if setting.section != _SECTION or setting.key not in _KEYS:
            log.warning("%s: unknown key %s in section [%s], ignored", setting.source, setting.key, setting.section)
        elif not setting.value:
            values.pop(setting.key, None)
        else:
            values[setting.key] = _parse_value(setting)


def _parse_value(setting: Setting) -> Any:
    try:
        return _KEYS[setting.key](setting.value)
    except ComposefsdError as error:
        where = f"{setting.source}: {setting.key}={setting.value[:200]}"
        raise InvalidArgumentsError(f"{where}: {error.message}", subject=setting.key) from error


def load(file: Path | None) -> Values:
    """Read a configuration file and its drop-ins; None stands for the default one, which need not exist.

    Raises InvalidArgumentsError with file and line.
    """
    values: Values = {}
    for path in _files(file):
        try:
            with path.open("rb") as opened:
                text = opened.read(_FILE_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentsError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        _collect(parse(text, str(path)), values)
    return values


def _files(file: Path | None) -> list[Path]:
    """The file, then its drop-ins."""
    if file is not None:
        return [file, *_drop_ins([file.with_name(f"{file.name}.d")])]
    main = [path for path in (folder / DEFAULT_FILE.name for folder in reversed(_VENDOR)) if path.exists()]
    return [*main[:1], *_drop_ins([folder / f"{DEFAULT_FILE.name}.d" for folder in _VENDOR])]


def _drop_ins(folders: list[Path]) -> list[Path]:
    """By name; the last folder that has a name decides what it is."""
    found = {path.name: path for folder in folders for path in folder.glob("*.conf")}
    return [found[name] for name in sorted(found)]


def settings_of(values: Values, overrides: Mapping[str, Path | None]) -> Settings:
    """The host's settings: what was configured, over it what the command line says, by key."""
    given = values | {key: path for key, path in overrides.items() if path is not None}
    sysroot = given.get("Sysroot", DEFAULT_SYSROOT)
    return Settings(
        repository=given.get("Repository", sysroot / "composefs"),
        sysroot=sysroot,
        esp=given.get("ESP"),
        xbootldr=given.get("XBOOTLDR"),
        state=given.get("State") or _default_state(sysroot),
        algorithm=given.get("Algorithm", Algorithm.SHA512),
        formats=given.get("Formats", (FormatVersion.V1,)),
        insecure=given.get("Insecure", False),
        efivars=given.get("EFIVariables") or (DEFAULT_EFIVARS if _is_running(sysroot) else None),
    )


def _default_state(sysroot: Path) -> Path:
    """systemd's StateDirectory=; what is remembered about another machine's sysroot belongs there."""
    if folder := os.environ.get("STATE_DIRECTORY"):
        return Path(folder.split(":", maxsplit=1)[0])
    return DEFAULT_STATE if _is_running(sysroot) else sysroot / "state/composefsd/daemon"


def _is_running(sysroot: Path) -> bool:
    """Whether a sysroot is that of the running machine."""
    return sysroot in (DEFAULT_SYSROOT, Path("/"))
