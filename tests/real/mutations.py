"""Images that somebody has tampered with, made by hypothesis, so that it finds the smallest change that matters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from hypothesis import strategies as st
from real.image_fields import Field, locate

from composefsd.digests import Algorithm
from composefsd.erofs.format import BLOCK_BYTES, HEAD_BYTES, SLOT_BYTES, FormatVersion

_BOUNDARIES: Final = (
    0, 1, 2, 3, 4, 8, 9, 11, 12, 13, 24, 31, 32, 36, 46, 47, 255, 256, 4095, 4096, 4097, 0x4000, 0x8000, 0xFFFF,
    0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 43, 1 << 59, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_VALUES: Final = st.sampled_from(_BOUNDARIES) | st.integers(0, (1 << 64) - 1)


@dataclass(frozen=True)
class Base:
    """A sound image to tamper with."""

    image: bytes = field(repr=False)
    dump: bytes = field(repr=False)
    version: FormatVersion
    algorithm: Algorithm

    @cached_property
    def fields(self) -> list[Field]:
        return locate(self.image)

    @cached_property
    def by_name(self) -> dict[str, list[Field]]:
        """Fields that mean the same."""
        found: dict[str, list[Field]] = {}
        for one in self.fields:
            found.setdefault(one.name, []).append(one)
        return found

    def describe(self, edits: "Sequence[Edit]") -> str:
        """The edits in words: the field each is about, if it is about one."""
        return "\n".join(f"{edit.kind} {_field(self, edit.where)} {edit.value}" for edit in edits)


class Edit(NamedTuple):
    """What is done to the image; where and value mean something else for each kind."""

    kind: str
    where: int
    value: int


def _field(base: Base, number: int) -> Field:
    """Names first, since there are 250 times as many nids as roots."""
    names = list(base.by_name)
    same = base.by_name[names[number % len(names)]]
    return same[number // len(names) % len(same)]


def _set(base: Base, data: bytearray, where: int, value: int) -> None:
    field = _field(base, where)
    limited = value & ((1 << 8 * field.size) - 1)
    data[field.offset : field.offset + field.size] = limited.to_bytes(field.size, "little")


def _step(base: Base, data: bytearray, where: int, value: int) -> None:
    field = _field(base, where)
    now = int.from_bytes(data[field.offset : field.offset + field.size], "little")
    _set(base, data, where, now + (1, -1, 4, -4, 32, -32, BLOCK_BYTES, -BLOCK_BYTES)[value % 8])


def _copy(base: Base, data: bytearray, where: int, value: int) -> None:
    """Make two fields alike: an inode has two names, two names are one, two files lie in one block."""
    field = _field(base, where)
    same = [other for other in base.by_name[field.name] if other.size == field.size]
    other = same[value % len(same)]
    data[field.offset : field.offset + field.size] = base.image[other.offset : other.offset + other.size]


def _flip(base: Base, data: bytearray, where: int, value: int) -> None:
    field = _field(base, where)
    if data:
        data[(field.offset + value // 8 % field.size) % len(data)] ^= 1 << value % 8


def _byte(_base: Base, data: bytearray, where: int, value: int) -> None:
    if data:
        data[where % len(data)] = value & 0xFF


def _truncate(_base: Base, data: bytearray, where: int, value: int) -> None:
    limits = (
        where % (len(data) + 1),
        where % (len(data) // BLOCK_BYTES + 1) * BLOCK_BYTES,
        HEAD_BYTES,
        HEAD_BYTES + 31,
    )
    del data[limits[value % len(limits)] :]


def _extend(_base: Base, data: bytearray, where: int, value: int) -> None:
    data += bytes([value & 0xFF]) * (where % (2 * BLOCK_BYTES))


def _splice(unit: int) -> Callable[[Base, bytearray, int, int], None]:
    def splice(base: Base, data: bytearray, where: int, value: int) -> None:
        units = len(base.image) // unit
        source, target = value % units * unit, where % units * unit
        data[target : target + unit] = base.image[source : source + unit]

    return splice


_EDITS: Final[dict[str, Callable[[Base, bytearray, int, int], None]]] = {
    "set": _set, "step": _step, "copy": _copy, "flip": _flip, "byte": _byte, "truncate": _truncate,
    "extend": _extend, "splice slot": _splice(SLOT_BYTES), "splice block": _splice(BLOCK_BYTES),
}  # fmt: skip
_OFTEN: Final = ("set", "set", "set", "step", "step", "copy", "copy", "flip", "flip")

EDITS: Final = st.lists(
    st.builds(Edit, st.sampled_from([*_OFTEN, *_EDITS]), st.integers(0, (1 << 32) - 1), _VALUES),
    min_size=1,
    max_size=3,
)


def tampered(base: Base, edits: Sequence[Edit]) -> bytes:
    """The image after all edits."""
    data = bytearray(base.image)
    for edit in edits:
        _EDITS[edit.kind](base, data, edit.where, edit.value)
    return bytes(data)
