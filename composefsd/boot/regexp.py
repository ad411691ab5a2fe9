"""The regular expressions of a `file_contexts` file, as a tree.

The syntax is that of Rust's crate `regex-syntax` 0.8 with Unicode off and NUL for the line terminator, since that is
how composefs-rs reads a policy: everything matches bytes, `.` is any byte but NUL, classes are ASCII.  What that
crate refuses (look-around, back references, an unescaped `{`) raises FormatError here; see `pcre` for what happens
then.  Laziness and captures change no verdict on a whole path, so the tree does not have them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from composefsd.boot import byteset
from composefsd.boot.syntax_tree import (
    NEVER,
    Alternation,
    Assertion,
    Concat,
    Literal,
    Look,
    Node,
    Set,
    append,
    repeat,
)
from composefsd.errors import FormatError, UnsupportedError

_NEST_LIMIT: Final = 250
_DEPTH_OF_PATTERN: Final = 2  # the group around it, and that in a sequence
_COUNT_LIMIT: Final = (1 << 32) - 1

_LITERALS: Final = re.compile(r"[^\\.+*?()|\[{^$#]+")
_COUNTS: Final = re.compile(r"\{([0-9]{1,999})(?:(,)([0-9]{0,999}))?\}")
_CAPTURE: Final = re.compile(r"\?P?<([^\W\d][\w.\[\]]*)>")
_FLAGS: Final = re.compile(r"\?([imsURux]*)(?:-([imsURux]+))?([:)])")
_ASCII_CLASS: Final = re.compile(r"\[:(\^?)([a-z]+):\]")
_SPECIAL_BOUNDARY: Final = re.compile(r"\{([-A-Za-z]+)\}")
_HEX: Final = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[xuU]\{([0-9A-Fa-f]+)\}")

_SIMPLE_ESCAPES: Final = {"a": "\x07", "f": "\x0c", "t": "\t", "n": "\n", "r": "\r", "v": "\x0b"}
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


class _Open:
    """A group that is being read: its branches, and the parts of the last one.

    regex-syntax bounds how deep a tree is, so depths are counted here, of its trees: a sequence of one part is none,
    each plain character is a part.
    """

    def __init__(self, outer: _Flags) -> None:
        self.outer = outer  # the flags after the group
        self._branches: list[Node] = []
        self._below = 0  # the depth of the deepest branch
        self._parts: list[Node] = []
        self._count = self._deepest = 0

    def add(self, node: Node, depth: int, count: int = 1) -> None:
        """Add what stands for `count` parts."""
        append(self._parts, node)
        self._count += count
        self._deepest = max(self._deepest, depth)

    def add_flags(self) -> None:
        self._count += 1

    def end_branch(self) -> None:
        parts = self._parts
        self._branches.append(parts[0] if len(parts) == 1 else Concat(tuple(parts)))
        self._below = max(self._below, self._deepest + (self._count > 1))
        self._parts = []
        self._count = self._deepest = 0

    def finish(self) -> tuple[Node, int]:
        """The tree of the group's content, and its depth."""
        self.end_branch()
        if len(self._branches) == 1:
            return self._branches[0], self._below
        return Alternation(tuple(self._branches)), self._below + 1


class _UnopenedError(FormatError):
    """A group is closed that was not opened in the pattern itself."""


def _refusal(what: str, at: int) -> FormatError:
    return FormatError(f"{what} at character {at} of the regular expression", offset=at)


class _Parser:
    """One pass over a pattern; `at` counts characters."""

    def __init__(self, pattern: str, *, is_whole: bool) -> None:
        self.pattern = pattern
        self.is_whole = is_whole
        self.at = 0
        self.flags = _Flags()
        self.open = [_Open(self.flags)]  # the groups that are not closed yet, in the pattern itself
        self.names: set[str] = set()

    def peek(self, count: int = 1) -> str:
        return self.pattern[self.at : self.at + count]

    def refuse(self, what: str) -> FormatError:
        return _refusal(what, self.at)

    def parse(self, depth: int) -> Node:
        """The tree; `depth` is how deep it will be nested in another one."""
        while self.at < len(self.pattern):
            self.item(self.peek())
        if len(self.open) > 1:
            raise self.refuse("unclosed group")
        node, deepest = self.open[0].finish()
        if depth + deepest > _NEST_LIMIT:
            raise self.refuse("nesting that is too deep")
        return node

    # Structure

    def item(self, char: str) -> None:
        """Read on, up to and including the next thing that can be repeated."""
        if char in "?*+{":
            raise self.refuse("a quantifier with nothing to repeat")
        if char == "|":
            self.at += 1
            self.open[-1].end_branch()
        elif char == "(":
            self.open_group()
        elif char == ")":
            self.close_group()
        elif literal := _LITERALS.match(self.pattern, self.at):
            self.literals(literal.group())
        else:
            self.add_quantified(*self.atom(char))

    def literals(self, text: str) -> None:
        """A run of plain characters, the last of which may be repeated."""
        self.at += len(text)
        if not self.quantifier_follows():
            return self.open[-1].add(self.literal(text), 0, len(text))
        if len(text) > 1:
            self.open[-1].add(self.literal(text[:-1]), 0, len(text) - 1)
        return self.add_quantified(self.literal(text[-1]), 0)

    def literal(self, text: str) -> Node:
        encoded = text.encode()
        if not self.flags.ignore_case or encoded.upper() == encoded.lower():
            return Literal(encoded)
        sets = tuple(Set(byteset.fold(1 << byte)) for byte in encoded)
        return sets[0] if len(sets) == 1 else Concat(sets)

    def quantifier_follows(self) -> bool:
        return self.peek() in ("?", "*", "+", "{")

    def add_quantified(self, node: Node, depth: int) -> None:
        """Add a node, with the quantifiers that follow it."""
        while (bounds := self.quantifier()) is not None:
            node, depth = repeat(node, *bounds), depth + 1
            if depth > _NEST_LIMIT:
                raise self.refuse("nesting that is too deep")
        self.open[-1].add(node, depth)

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

    def atom(self, char: str) -> tuple[Node, int]:
        """The next thing that can be repeated, and how deep it is."""
        if char == "[":
            mask, depth = self.bracket()
            return Set(mask), depth
        if char == "\\":
            return self.escape(), 0
        if char == "#" and self.flags.comments:
            raise self.refuse("a comment that swallows the end")
        self.at += 1
        match char:
            case ".":
                return Set(self.flags.dot), 0
            case "^":
                return Assertion(self.flags.caret), 0
            case "$":
                return self.dollar(), 0
        return self.literal(char), 0

    def end(self) -> Node:
        """The end of the subject, which never comes if a letter is sure to follow."""
        return Assertion(Look.END) if self.is_whole else NEVER

    def dollar(self) -> Node:
        if not self.flags.multi_line:
            return self.end()
        return Assertion(Look.CRLF_END if self.flags.crlf else Look.LINE_END)

    def open_group(self) -> None:
        self.at += 1
        outer = self.flags
        if self.peek() == "?" and self.group_head():
            if self.quantifier_follows():
                raise self.refuse("a quantifier with nothing to repeat")
            return self.open[-1].add_flags()
        if len(self.open) > _NEST_LIMIT:
            raise self.refuse("nesting that is too deep")
        return self.open.append(_Open(outer))

    def close_group(self) -> None:
        if len(self.open) == 1:
            raise _UnopenedError("unopened group", offset=self.at)
        self.at += 1
        group = self.open.pop()
        self.flags = group.outer
        node, depth = group.finish()
        self.add_quantified(node, depth + 1)

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
            return self.end()
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

    def bracket(self, level: int = 1) -> tuple[int, int]:
        """A class from `[` to its `]`, with nested ones and set operations, which all bind alike; how deep it is."""
        if level > _NEST_LIMIT:
            raise self.refuse("nesting that is too deep")
        negated, mask = self.bracket_head()
        operation: Callable[[int, int], int] | None = None
        left, left_depth, items, deepest = 0, 0, mask.bit_count(), 0
        while (char := self.peek()) != "]":
            if char == "":
                raise self.refuse("unclosed class")
            if self.peek(2) in _SET_OPERATIONS:
                left, mask = self.combined(operation, left, mask), 0
                left_depth = self.combined_depth(operation, left_depth, deepest + (items > 1))
                operation, items, deepest = _SET_OPERATIONS[self.peek(2)], 0, 0
                self.at += 2
            else:
                found, depth = self.bracket_item(char, level)
                mask, items, deepest = mask | found, items + 1, max(deepest, depth)
        self.at += 1
        mask = self.folded(self.combined(operation, left, mask))
        depth = self.combined_depth(operation, left_depth, deepest + (items > 1))
        return byteset.ALL & ~mask if negated else mask, depth + 1

    def combined_depth(self, operation: Callable[[int, int], int] | None, left: int, right: int) -> int:
        return right if operation is None else 1 + max(left, right)

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

    def bracket_item(self, char: str, level: int) -> tuple[int, int]:
        if char != "[":
            return self.bracket_range(), 0
        named = _ASCII_CLASS.match(self.pattern, self.at)
        if named is None or named[2] not in byteset.ASCII_CLASSES:
            return self.bracket(level + 1)
        self.at = named.end()
        mask = self.folded(byteset.ASCII_CLASSES[named[2]])
        return byteset.ALL & ~mask if named[1] else mask, 0

    def bracket_range(self) -> int:
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


def parse(pattern: str) -> Node:
    """The tree of a pattern that is to stand in `^(…).$`.

    Raises FormatError if `regex-syntax` refuses the pattern, and UnsupportedError for Unicode mode.
    """
    return _Parser(pattern, is_whole=False).parse(_DEPTH_OF_PATTERN)


def parse_rule(pattern: str, letter: str) -> tuple[Node, bool]:
    """The tree of a rule, and whether it is for the whole of a subject, with its letter.

    composefs-rs puts a pattern into `^(…).$` as text, so it may close the group: `/a)|(/b`.  Such a rule need not
    match up to the end, or with a letter; usually, the tree is that of the pattern.  Raises like `parse`.
    """
    try:
        return parse(pattern), False
    except _UnopenedError:
        return _Parser(f"^({pattern}){letter}$", is_whole=True).parse(0), True
