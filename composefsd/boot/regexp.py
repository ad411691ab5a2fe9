"""The regular expressions of a `file_contexts` file, as a tree.

The syntax is that of Rust's crate `regex-syntax` 0.8 with Unicode off and NUL for the line terminator, since that is
how composefs-rs reads a policy: everything matches bytes, `.` is any byte but NUL, classes are ASCII.  What that
crate refuses (look-around, back references, an unescaped `{`) raises FormatError here; see `pcre` for what happens
then.  Laziness and captures change no verdict on a whole path, so the tree does not have them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from composefsd.boot import byteset
from composefsd.errors import FormatError, LimitExceededError, UnsupportedError

_NEST_LIMIT: Final = 60
_QUANTIFIER_LIMIT: Final = 4  # in a row
_COUNT_LIMIT: Final = (1 << 32) - 1

_LITERALS: Final = re.compile(r"[^\\.+*?()|\[{^$#]+")
_COUNTS: Final = re.compile(r"\{([0-9]{1,999})(?:(,)([0-9]{0,999}))?\}")
_CAPTURE: Final = re.compile(r"\?P?<([^\W\d][\w.\[\]]*)>")
_FLAGS: Final = re.compile(r"\?([imsURux]*)(?:-([imsURux]+))?([:)])")
_ASCII_CLASS: Final = re.compile(r"\[:(\^?)([a-z]+):\]")
_SPECIAL_BOUNDARY: Final = re.compile(r"\{([-A-Za-z]+)\}")
_HEX: Final = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[xuU]\{([0-9A-Fa-f]+)\}")
_SIMPLE_ESCAPES: Final = {"a": "\x07", "f": "\x0c", "t": "\t", "n": "\n", "r": "\r", "v": "\x0b"}


class Look(Enum):
    """A condition on the bytes around a position; there is always a byte after it, the letter of the type."""

    START = auto()
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


_ESCAPED_LOOKS: Final = {
    "A": Look.START,
    "b": Look.WORD,
    "B": Look.NOT_WORD,
    "<": Look.WORD_START,
    ">": Look.WORD_END,
}
_SPECIAL_LOOKS: Final = {
    "start": Look.WORD_START,
    "end": Look.WORD_END,
    "start-half": Look.WORD_START_HALF,
    "end-half": Look.WORD_END_HALF,
}
_SET_OPERATIONS: Final[dict[str, Callable[[int, int], int]]] = {
    "&&": lambda left, right: left & right,
    "--": lambda left, right: left & ~right,
    "~~": lambda left, right: left ^ right,
}


@dataclass(frozen=True, slots=True)
class _Flags:
    """The inline flags that are on: `(?i)` and its like."""

    ignore_case: bool = False
    multi_line: bool = False
    dot_all: bool = False
    crlf: bool = False
    comments: bool = False

    def changed(self, on: str, off: str) -> "_Flags":
        """These flags with those of `on` set and those of `off` cleared; U, for laziness, says nothing."""
        names = {"i": "ignore_case", "m": "multi_line", "s": "dot_all", "R": "crlf", "x": "comments"}
        wanted = {names[flag]: flag in on for flag in on + off if flag in names}
        return replace(self, **wanted)

    @property
    def dot(self) -> int:
        if self.dot_all:
            return byteset.ALL
        return byteset.ALL & ~byteset.of("\r\n") if self.crlf else byteset.NOT_NUL

    @property
    def caret(self) -> Look:
        if not self.multi_line:
            return Look.START
        return Look.CRLF_START if self.crlf else Look.LINE_START


def _refusal(what: str, at: int) -> FormatError:
    return FormatError(f"{what} at character {at} of the regular expression", offset=at)


class _Parser:
    """One pass over a pattern; `at` counts characters."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.flags = _Flags()
        self.depth = 0
        self.names: set[str] = set()

    def peek(self, count: int = 1) -> str:
        return self.pattern[self.at : self.at + count]

    def refuse(self, what: str) -> FormatError:
        return _refusal(what, self.at)

    def parse(self) -> Node:
        node = self.alternation()
        if self.at < len(self.pattern):
            raise self.refuse("unopened group")
        return node

    def descend(self) -> None:
        self.depth += 1
        if self.depth > _NEST_LIMIT:
            raise LimitExceededError(f"a regular expression is nested deeper than {_NEST_LIMIT}", limit=_NEST_LIMIT)

    # Structure

    def alternation(self) -> Node:
        branches = [self.concat()]
        while self.peek() == "|":
            self.at += 1
            branches.append(self.concat())
        return branches[0] if len(branches) == 1 else Alternation(tuple(branches))

    def concat(self) -> Node:
        parts: list[Node] = []
        while (char := self.peek()) not in ("", "|", ")"):
            if char in "?*+{":
                raise self.refuse("a quantifier with nothing to repeat")
            if literal := _LITERALS.match(self.pattern, self.at):
                self.literals(literal.group(), parts)
            elif (atom := self.atom(char)) is not None:
                _append(parts, self.quantified(atom))
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def literals(self, text: str, parts: list[Node]) -> None:
        """A run of plain characters, the last of which may be repeated."""
        self.at += len(text)
        if not self.quantifier_follows():
            return _append(parts, self.literal(text))
        if len(text) > 1:
            _append(parts, self.literal(text[:-1]))
        return parts.append(self.quantified(self.literal(text[-1])))

    def literal(self, text: str) -> Node:
        encoded = text.encode()
        if not self.flags.ignore_case or encoded.upper() == encoded.lower():
            return Literal(encoded)
        sets = tuple(Set(byteset.fold(1 << byte)) for byte in encoded)
        return sets[0] if len(sets) == 1 else Concat(sets)

    def quantifier_follows(self) -> bool:
        return self.peek() in ("?", "*", "+", "{")

    def quantified(self, node: Node) -> Node:
        """The node with the quantifiers that follow it."""
        for _ in range(_QUANTIFIER_LIMIT):
            bounds = self.quantifier()
            if bounds is None:
                return node
            node = Repeat(node, *bounds)
        raise LimitExceededError("more than three quantifiers in a row in a regular expression")

    def quantifier(self) -> tuple[int, int | None] | None:
        char = self.peek()
        bounds: tuple[int, int | None]
        if char == "{":
            bounds = self.counts()
        elif char and char in "?*+":
            self.at += 1
            bounds = (1 if char == "+" else 0, 1 if char == "?" else None)
        else:
            return None
        if self.peek() == "?":  # lazy: the same language
            self.at += 1
        return bounds

    def counts(self) -> tuple[int, int | None]:
        match = _COUNTS.match(self.pattern, self.at)
        if match is None:
            raise self.refuse("a repetition count that is none")
        least = int(match[1])
        most = least if match[2] is None else int(match[3]) if match[3] else None
        if max(least, most or 0) > _COUNT_LIMIT or (most is not None and most < least):
            raise self.refuse("a repetition count out of range")
        self.at = match.end()
        return least, most

    def atom(self, char: str) -> Node | None:
        """The next thing that can be repeated; None for a change of flags."""
        if char == "(":
            return self.group()
        if char == "[":
            return Set(self.bracket())
        if char == "\\":
            return self.escape()
        if char == "#" and self.flags.comments:
            raise self.refuse("a comment that swallows the end")
        self.at += 1
        match char:
            case ".":
                return Set(self.flags.dot)
            case "^":
                return Assertion(self.flags.caret)
            case "$":
                return self.dollar()
        return self.literal(char)

    def dollar(self) -> Node:
        """The end of the path, which never comes as the letter of the type follows, or that of a line in it."""
        if not self.flags.multi_line:
            return NEVER
        return Assertion(Look.CRLF_END if self.flags.crlf else Look.LINE_END)

    def group(self) -> Node | None:
        self.at += 1
        outer = self.flags
        if self.peek() == "?" and self.group_head():
            if self.quantifier_follows():
                raise self.refuse("a quantifier with nothing to repeat")
            return None
        self.descend()
        node = self.alternation()
        if self.peek() != ")":
            raise self.refuse("unclosed group")
        self.at += 1
        self.depth -= 1
        self.flags = outer
        return node

    def group_head(self) -> bool:
        """Read what stands between `(` and the content; whether that was all: `(?i)`."""
        if name := _CAPTURE.match(self.pattern, self.at):
            if name[1] in self.names:
                raise self.refuse("a second group of the same name")
            self.names.add(name[1])
            self.at = name.end()
            return False
        flags = _FLAGS.match(self.pattern, self.at)
        if flags is None:
            raise self.refuse("look-around, or another unknown group,")
        on, off, end = flags[1], flags[2] or "", flags[3]
        if len(set(on + off)) < len(on + off) or (end == ")" and not on + off):
            raise self.refuse("wrong flags")
        if "u" in on:
            raise UnsupportedError(f"Unicode mode, at character {self.at} of a regular expression of a policy")
        self.flags = self.flags.changed(on, off)
        self.at = flags.end()
        return end == ")"

    # Escapes

    def escape(self) -> Node:
        node = self.escaped()
        return self.literal(node) if isinstance(node, str) else node

    def escaped(self) -> Node | str:
        """What a backslash starts: a character, or a node that stands for itself."""
        char = self.pattern[self.at + 1 : self.at + 2]
        if char in ("x", "u", "U"):
            return self.hexadecimal()
        self.at += 2
        if char in ("d", "s", "w", "D", "S", "W"):
            mask = byteset.PERL[char.lower()]
            return Set(mask if char.islower() else byteset.ALL & ~mask)
        if char == "z":
            return NEVER
        if char in _ESCAPED_LOOKS:
            return Assertion(self.boundary() if char == "b" else _ESCAPED_LOOKS[char])
        if char in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[char]
        if not char or char.isalnum() or not char.isascii():
            raise self.refuse("an unknown escape")
        return char

    def boundary(self) -> Look:
        """`\\b`, or one of `\\b{start}` and its like."""
        after = self.peek(2)
        if not after.startswith("{") or not (after[1:].isalpha() or after[1:] == "-"):
            return Look.WORD
        match = _SPECIAL_BOUNDARY.match(self.pattern, self.at)
        if match is None or match[1] not in _SPECIAL_LOOKS:
            raise self.refuse("an unknown word boundary")
        self.at = match.end()
        return _SPECIAL_LOOKS[match[1]]

    def hexadecimal(self) -> Node | str:
        """A character by its number; only two plain digits name a byte, if it is not ASCII."""
        match = _HEX.match(self.pattern, self.at + 1)
        if match is None:
            raise self.refuse("a hexadecimal escape that is none")
        value = int(match[match.lastindex or 0], 16)
        if value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            raise self.refuse("a hexadecimal escape of no character")
        self.at = match.end()
        return Literal(bytes([value])) if match[1] and value > 0x7F else chr(value)

    # Bracketed classes

    def bracket(self) -> int:
        """A class from `[` to its `]`, with nested ones and set operations, which all bind alike."""
        self.descend()
        negated, mask = self.bracket_head()
        operation: Callable[[int, int], int] | None = None
        left = 0
        while (char := self.peek()) != "]":
            if char == "":
                raise self.refuse("unclosed class")
            if self.peek(2) in _SET_OPERATIONS:
                left, mask = self.combined(operation, left, mask), 0
                operation = _SET_OPERATIONS[self.peek(2)]
                self.at += 2
            else:
                mask |= self.bracket_item(char)
        self.at += 1
        self.depth -= 1
        mask = self.folded(self.combined(operation, left, mask))
        return byteset.ALL & ~mask if negated else mask

    def folded(self, mask: int) -> int:
        return byteset.fold(mask) if self.flags.ignore_case else mask

    def combined(self, operation: Callable[[int, int], int] | None, left: int, right: int) -> int:
        return right if operation is None else operation(self.folded(left), self.folded(right))

    def bracket_head(self) -> tuple[bool, int]:
        """Whether the class is negated, and the `-` and `]` that stand for themselves as they come first."""
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        mask = 0
        while self.peek() == "-":
            self.at += 1
            mask |= byteset.of("-")
        if not mask and self.peek() == "]":
            self.at += 1
            mask = byteset.of("]")
        return negated, mask

    def bracket_item(self, char: str) -> int:
        if char == "[":
            named = _ASCII_CLASS.match(self.pattern, self.at)
            if named is None or named[2] not in byteset.ASCII_CLASSES:
                return self.bracket()
            self.at = named.end()
            mask = self.folded(byteset.ASCII_CLASSES[named[2]])
            return byteset.ALL & ~mask if named[1] else mask
        first = self.bracket_member()
        if self.peek() != "-" or self.peek(2) in ("-]", "--"):
            return first.mask if isinstance(first, Set) else 1 << first
        self.at += 1
        last = self.bracket_member()
        if isinstance(first, Set) or isinstance(last, Set) or first > last:
            raise self.refuse("a range that is none")
        return byteset.of((first, last))

    def bracket_member(self) -> int | Set:
        """A byte, or the set that an escape stands for."""
        char = self.peek()
        if char == "#" and self.flags.comments:
            raise self.refuse("a comment that swallows the end")
        node: Node | str = char
        if char == "\\":
            node = self.escaped()
        else:
            self.at += 1
        if isinstance(node, Set) and node is not NEVER:
            return node
        if isinstance(node, Literal):
            return node.text[0]
        if isinstance(node, str) and len(node) == 1 and node.isascii():
            return ord(node)
        raise self.refuse("an assertion, the end, or a character outside ASCII in a class")


def _append(parts: list[Node], node: Node) -> None:
    """Add to a concatenation, and join neighbouring literals."""
    if parts and isinstance(node, Literal) and isinstance(last := parts[-1], Literal):
        parts[-1] = Literal(last.text + node.text)
    else:
        parts.append(node)


def parse(pattern: str) -> Node:
    """The tree of a pattern.

    Raises FormatError if `regex-syntax` refuses the pattern, LimitExceededError if it is nested too deeply, and
    UnsupportedError for Unicode mode.
    """
    return _Parser(pattern).parse()


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
