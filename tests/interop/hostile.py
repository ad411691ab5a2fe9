"""Making hostile input, and counting what came of it."""

import random
from collections import Counter
from typing import Final

_BOUNDARIES: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes that know nothing of the format."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + chance.randrange(1, 20)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randrange(1, 20))
            case 4:
                changed[at:at] = changed[at : at + chance.randrange(1, 200)]
            case _:
                value = chance.choice(_BOUNDARIES)
                width = chance.choice((1, 2, 4, 8))
                changed[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return bytes(changed)


def told(counts: Counter[str]) -> str:
    """Counts of what came out, for the table."""
    return "; ".join(f"{number:,} {what}" for what, number in sorted(counts.items()))
