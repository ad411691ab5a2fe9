"""The walk that finds the label of every path below a directory; `labels.c` is its twin in C.

It goes through a table of states, byte by byte, and hands back whatever is not in its columns yet.
"""

from array import array
from enum import IntEnum
from typing import Final, TypeAlias

Column: TypeAlias = "array[int]"

FRAME: Final = 5
"""How many numbers of the stack are for one directory."""

_BYTES: Final = 256
_LETTERS: Final = 7
_DIRECTORY: Final = 0
_SLASH: Final = 0x2F


class Stop(IntEnum):
    """Why a walk stopped."""

    DONE = 0
    UNKNOWN = 1  # the table has no move from a state on a byte
    CONFLICT = 2  # an entry has another label than its inode
    DEEPER = 3  # the stack is full


def descend(
    depth: int,
    stack: Column,
    first: Column,
    order: Column,
    names: bytes | bytearray,
    name_end: Column,
    child: Column,
    kind: Column,
    listing: Column,
    moves: Column,
    rules: Column,
    labels: Column,
    letter_at: bytes,
    given: Column,
) -> tuple[int, int, int, int]:
    """Write the label of each inode of a tree to `given`, depth first, until something is missing.

    stack has `depth` directories, each by five numbers: its next place in `order`, the place where it ends, the state
    in front of its names, how many bytes of the next name are read, and the state behind these.  first to listing are
    the tree, as in `tree.table`.  moves has 256 numbers for each state, the next state for each byte, less than 0 if
    that is unknown; rules has seven, one for each letter of a type, as indexes of labels; letter_at has the place of
    its letter for each kind.  given is -1 for an inode that has no label yet.

    Answers with a Stop, and the depth.  UNKNOWN comes with state and byte, CONFLICT with entry and label.  Called
    again, the walk goes on behind the entry of a CONFLICT, and at the very byte of an UNKNOWN: so it comes to an end
    even with a table that never has more than the last move.  Raises ValueError if a number in a column leads out of
    another column, or if a directory has two names: nothing is read that is not there.
    """
    if depth < 0 or depth > len(stack) // FRAME:
        raise ValueError("the stack is shorter than its depth")
    while depth > 0:
        frame = FRAME * (depth - 1)
        place, end, before, read, state = stack[frame : frame + FRAME]
        if place >= end:
            depth -= 1
            continue
        entry, name = _entry(place, order, names, name_end, child)
        inode = child[entry]
        if inode >= len(kind) or inode >= len(listing) or inode >= len(given):
            raise ValueError("no such inode")
        if kind[inode] >= len(letter_at) or letter_at[kind[inode]] >= _LETTERS:
            raise ValueError("no such kind")
        if read > len(name):
            raise ValueError("more of a name is read than it has")
        count, state = _after(state, name[read:], moves)
        read += count
        stack[frame + 3], stack[frame + 4] = read, state
        if read < len(name):
            return Stop.UNKNOWN, depth, state, name[read]
        label = _label(state, letter_at[kind[inode]], rules, labels)
        if kind[inode] != _DIRECTORY:
            stack[frame], stack[frame + 3], stack[frame + 4] = place + 1, 0, before
            if given[inode] < 0:
                given[inode] = label
            elif given[inode] != label:
                return Stop.CONFLICT, depth, entry, label
            continue
        below = listing[inode]
        if below + 1 >= len(first):
            raise ValueError("no such directory")
        if given[inode] >= 0:
            raise ValueError("a directory with two names")
        if first[below] < first[below + 1]:
            count, after = _after(state, b"/", moves)
            if count == 0:
                return Stop.UNKNOWN, depth, state, _SLASH
            if depth == len(stack) // FRAME:
                return Stop.DEEPER, depth, 0, 0
            stack[frame + FRAME : frame + 2 * FRAME] = array("I", (first[below], first[below + 1], after, 0, after))
            depth += 1
        stack[frame], stack[frame + 3], stack[frame + 4] = place + 1, 0, before
        given[inode] = label
    return Stop.DONE, 0, 0, 0


def _entry(
    at: int, order: Column, names: bytes | bytearray, name_end: Column, child: Column
) -> tuple[int, bytes | bytearray]:
    """The entry at a place, and its name."""
    if at >= len(order):
        raise ValueError("a directory ends behind all entries")
    entry = order[at]
    if entry >= len(name_end) or entry >= len(child):
        raise ValueError("no such entry")
    start, end = name_end[entry - 1] if entry else 0, name_end[entry]
    if start > end or end > len(names):
        raise ValueError("a name ends where there is none")
    return entry, names[start:end]


def _after(state: int, text: bytes | bytearray, moves: Column) -> tuple[int, int]:
    """How many bytes of a text the table knows a way for, and the state behind these."""
    try:
        for count, byte in enumerate(text):
            after = moves[state * _BYTES + byte]
            if after < 0:
                return count, state
            state = after
    except IndexError:
        raise ValueError("no such state") from None
    return len(text), state


def _label(state: int, letter_at: int, rules: Column, labels: Column) -> int:
    """The label for one type; a rule below 0 counts from the end."""
    at = state * _LETTERS + letter_at
    if at >= len(rules):
        raise ValueError("no such state")
    rule = rules[at]
    if not -len(labels) <= rule < len(labels):
        raise ValueError("no such rule")
    if labels[rule] < 0:
        raise ValueError("no such label")
    return labels[rule]
