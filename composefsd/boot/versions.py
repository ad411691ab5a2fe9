"""The order of version strings, after the UAPI Group's Version Format Specification (UAPI.10).

Where its steps contradict its words, this follows systemd, which orders the menu: `1~rc1` is older than `1`, and
`1^post` is newer than `1`, but older than `1.1`.
"""

import re
from typing import Final

_SKIPPED: Final = re.compile(r"[^a-zA-Z0-9\-.~^]*")
_DIGITS: Final = re.compile(r"[0-9]*")
_LETTERS: Final = re.compile(r"[a-zA-Z]*")


def compare(left: str, right: str) -> int:
    """Negative if `left` is the older version, positive if `right` is, 0 if they are equal."""
    while True:
        left, right = left[_end(_SKIPPED, left) :], right[_end(_SKIPPED, right) :]
        if "~" in (left[:1], right[:1]):
            if left[:1] != right[:1]:
                return -1 if left.startswith("~") else 1
            left, right = left[1:], right[1:]
        if not left or not right:
            return bool(left) - bool(right)
        order, left, right = _marks(left, right)
        if not order:
            order, left, right = _component(left, right)
        if order:
            return order


def _marks(left: str, right: str) -> tuple[int, str, str]:
    """The order by `-`, `^` and `.`, and what is left if both have the same."""
    for mark in "-^.":
        ours, theirs = left.startswith(mark), right.startswith(mark)
        if ours != theirs:
            return theirs - ours, left, right
        if ours:
            left, right = left[1:], right[1:]
    return 0, left, right


def _component(left: str, right: str) -> tuple[int, str, str]:
    """The order by a number or by letters, and what comes after them."""
    digits = left[:1].isdigit() or right[:1].isdigit()
    pattern = _DIGITS if digits else _LETTERS
    cut, other_cut = _end(pattern, left), _end(pattern, right)
    ours, theirs = left[:cut].lstrip("0"), right[:other_cut].lstrip("0")
    order = digits * (len(ours) - len(theirs)) or (ours > theirs) - (ours < theirs)
    return order, left[cut:], right[other_cut:]


def _end(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0
