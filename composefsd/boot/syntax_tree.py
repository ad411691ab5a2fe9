"""Regular expressions as trees, and the smallest tree for a repetition."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_SUBJECT_LIMIT: Final = 1 << 15  # bytes; a path has 4096, and four times as many in front where it is replaced


class Look(Enum):
    """A condition on the bytes around a position."""

    START = auto()
    END = auto()
    LINE_START = auto()
    LINE_END = auto()
    CRLF_START = auto()
    CRLF_END = auto()
    WORD = auto()
    NOT_WORD = auto()
    WORD_START = auto()
    WORD_END = auto()
    WORD_START_HALF = auto()
    WORD_END_HALF = auto()


@dataclass(frozen=True, slots=True)
class Literal:
    """These bytes, one at least."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Set:
    """One byte out of a set, as `byteset` has them."""

    mask: int


@dataclass(frozen=True, slots=True)
class Assertion:
    """No byte, if the condition holds."""

    look: Look


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts in their order; without any, the empty string."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Alternation:
    """One of the branches."""

    branches: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """`body` between `least` and `most` times; most is None for no end."""

    body: "Node"
    least: int
    most: int | None


Node = Literal | Set | Assertion | Concat | Alternation | Repeat

NEVER: Final = Set(0)
_EMPTY: Final = Concat(())


def append(parts: list[Node], node: Node) -> None:
    """Add to a concatenation, and join neighbouring literals."""
    if parts and isinstance(node, Literal) and isinstance(last := parts[-1], Literal):
        parts[-1] = Literal(last.text + node.text)
    else:
        parts.append(node)


def _matches_empty(node: Node) -> bool:
    """Whether the empty string always matches."""
    match node:
        case Concat(parts):
            return all(map(_matches_empty, parts))
        case Alternation(branches):
            return any(map(_matches_empty, branches))
        case Repeat(body, least, _):
            return least == 0 or _matches_empty(body)
    return False


def _shortest(node: Node) -> int:
    """No match has fewer bytes."""
    match node:
        case Literal(text):
            return len(text)
        case Set(_):
            return 1
        case Concat(parts):
            return sum(map(_shortest, parts))
        case Alternation(branches):
            return min(map(_shortest, branches))
        case Repeat(body, least, _):
            return least * _shortest(body)
    return 0


def _only_empty(node: Node) -> Node:
    """What matches the empty string where `node` does, and nothing else."""
    match node:
        case Literal() | Set():
            return NEVER
        case Concat(parts):
            return Concat(tuple(map(_only_empty, parts)))
        case Alternation(branches):
            return Alternation(tuple(map(_only_empty, branches)))
        case Repeat(body, least, _):
            return _only_empty(body) if least else _EMPTY
    return node


def repeat(body: Node, least: int, most: int | None) -> Node:
    """A repetition, as small as one can be that matches the same subjects.

    A hostile policy has counts like `(a?){1000}{1000}`.  They matter up to the length of a subject; and what may be
    left out need not be counted.
    """
    if most == 0 or body == _EMPTY:
        return _EMPTY
    if _matches_empty(body):
        least = 0
    if isinstance(body, Repeat):
        if body.least == least == 0:
            most = None if most is None or body.most is None else most * body.most
            body = body.body
        elif body.least == body.most and least == most:
            least = most = body.least * least
            body = body.body
        elif body.least == 1 and body.most is None and least <= 1 and most != 0:
            body, most = body.body, None
    bytes_each = _shortest(body)
    if least * bytes_each > _SUBJECT_LIMIT:
        return NEVER
    if most is not None and most * max(bytes_each, 1) > _SUBJECT_LIMIT:
        most = None
    if least > _SUBJECT_LIMIT:  # one of them is empty at least, and if one is, so may be any number
        return Concat((Repeat(body, 0, None), _only_empty(body), Repeat(body, 0, None)))
    return Repeat(body, least, most)


def size(node: Node) -> int:
    """How many states an automaton for the tree has at most; grows with counted repetitions."""
    match node:
        case Literal(text):
            return len(text)
        case Concat(parts) | Alternation(parts):
            return 1 + sum(map(size, parts))
        case Repeat(body, least, most):
            return (size(body) + 1) * max(least + (most is None), most or 0, 1)
    return 1
