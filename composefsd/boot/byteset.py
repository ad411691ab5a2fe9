"""Sets of bytes as integers of 256 bits: bit n stands for byte n."""

from typing import Final

ALL: Final = (1 << 256) - 1
NOT_NUL: Final = ALL & ~1
"""What a dot matches in a policy."""


def of(*ranges: tuple[int, int] | str) -> int:
    """The set of all bytes in ranges (both ends in) and of the characters of strings."""
    mask = 0
    for item in ranges:
        for byte in item.encode("latin-1") if isinstance(item, str) else range(item[0], item[1] + 1):
            mask |= 1 << byte
    return mask


_UPPER: Final = of((0x41, 0x5A))
_LOWER: Final = of((0x61, 0x7A))
_DIGIT: Final = of((0x30, 0x39))
WORD: Final = _UPPER | _LOWER | _DIGIT | of("_")
_SPACE: Final = of("\t\n\x0b\x0c\r ")
PERL: Final = {"d": _DIGIT, "s": _SPACE, "w": WORD}

ASCII_CLASSES: Final = {
    "alnum": _UPPER | _LOWER | _DIGIT,
    "alpha": _UPPER | _LOWER,
    "ascii": of((0, 0x7F)),
    "blank": of("\t "),
    "cntrl": of((0, 0x1F), "\x7f"),
    "digit": _DIGIT,
    "graph": of((0x21, 0x7E)),
    "lower": _LOWER,
    "print": of((0x20, 0x7E)),
    "punct": of((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": _SPACE,
    "upper": _UPPER,
    "word": WORD,
    "xdigit": _DIGIT | of((0x41, 0x46), (0x61, 0x66)),
}


def fold(mask: int) -> int:
    """The set with the other case of each of its ASCII letters."""
    return mask | (mask & _UPPER) << 32 | (mask & _LOWER) >> 32
