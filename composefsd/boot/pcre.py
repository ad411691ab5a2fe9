"""Rules of a policy that only PCRE2 can read: look-around, back references, possessive repetition.

composefs-rs gives a pattern that Rust's regex syntax refuses to PCRE2 10.46, without options: bytes, no Unicode, `.`
is any byte but a newline, `{` may stand for itself.  Here it is translated to Python's `re`, which knows nearly all
of that.  Classes become explicit sets, and flags get the scope that PCRE2 gives them.  What `re` has no words for
(recursion, conditions, verbs, Unicode properties) raises UnsupportedError.
"""

import re
from typing import Final

from composefsd.boot import byteset
from composefsd.errors import FormatError, LimitExceededError, UnsupportedError

_NEST_LIMIT: Final = 60
_COUNT_LIMIT: Final = 65535

_QUANTIFIER: Final = re.compile(rb"([*+?]|\{([0-9]+)\}|\{([0-9]*),([0-9]*)\})([+?]?)")
_GROUP: Final = re.compile(rb"\?(?:[:=!>]|<[=!]|P?<([A-Za-z_][0-9A-Za-z_]*)>|'([A-Za-z_][0-9A-Za-z_]*)')")
_FLAGS: Final = re.compile(rb"\?([imsxU]*)(?:-([imsxU]+))?([:)])")
_OWN_FLAGS: Final = b"xU"  # handled here
_NAME_REFERENCE: Final = re.compile(
    rb"(?:\\k<(\w+)>|\\k'(\w+)'|\\[kg]\{([A-Za-z_]\w*)\}|\(\?P=(\w+)\))|\\g(?:\{([0-9]+)\}|([0-9]+))"
)
_CHARACTER: Final = re.compile(
    rb"x\{([0-9A-Fa-f]+)\}|x([0-9A-Fa-f]{0,2})|o\{([0-7]+)\}|(0[0-7]{0,2})|c([\x20-\x7e])|([aefnrt])"
)
_POSIX: Final = re.compile(rb"\[:(\^?)([a-z]+):\]")

_SIMPLE: Final = {b"a": 0x07, b"e": 0x1B, b"f": 0x0C, b"n": 0x0A, b"r": 0x0D, b"t": 0x09}
_HORIZONTAL: Final = byteset.of("\t \xa0")
_VERTICAL: Final = byteset.of("\n\x0b\x0c\r\x85")
_SETS: Final = {
    **{letter.encode(): mask for letter, mask in byteset.PERL.items()},
    **{letter.upper().encode(): byteset.ALL & ~mask for letter, mask in byteset.PERL.items()},
    b"h": _HORIZONTAL,
    b"H": byteset.ALL & ~_HORIZONTAL,
    b"v": _VERTICAL,
    b"V": byteset.ALL & ~_VERTICAL,
    b"N": byteset.ALL & ~byteset.of("\n"),
}
_ANCHORS: Final = {
    b"A": rb"\A",
    b"G": rb"\A",
    b"z": rb"\Z",
    b"Z": rb"(?=\n?\Z)",
    b"b": rb"\b",
    b"B": rb"\B",
}
_NEVER: Final = b"(?!)"


def _set_text(mask: int) -> bytes:
    """A set in the syntax of `re`."""
    members = [byte for byte in range(256) if mask >> byte & 1]
    if not members:
        return _NEVER
    return b"[" + b"".join(b"\\x%02x" % byte for byte in members) + b"]"


class _Translator:
    """One pass over a pattern; what `re` is to read gathers in `out`."""

    def __init__(self, pattern: bytes) -> None:
        self.pattern = pattern
        self.at = 0
        self.out: list[bytes] = []
        # for each open group, the heads of the `(?i:` that stand for a `(?i)` in it, and the flags that are on
        self.scopes: list[list[bytes]] = [[]]
        self.on: list[frozenset[int]] = [frozenset()]
        self.repeatable = False

    def refuse(self, what: str) -> FormatError:
        return FormatError(f"{what} at byte {self.at} of the regular expression", offset=self.at)

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{what} at byte {self.at} of a regular expression of a policy", offset=self.at)

    def translate(self) -> bytes:
        while self.at < len(self.pattern):
            self.token(self.pattern[self.at : self.at + 1])
        if len(self.scopes) > 1:
            raise self.refuse("unclosed group")
        return b"".join(self.out) + b")" * len(self.scopes[0])

    def token(self, char: bytes) -> None:
        repeatable, self.repeatable = self.repeatable, True
        match char:
            case b"\\":
                self.escape()
            case b"[":
                if self.pattern.startswith((b"[:", b"[.", b"[="), self.at):
                    raise self.unsupported("a class that looks like a part of one")
                self.out.append(_set_text(self.bracket()))
            case b"(":
                self.open_group()
            case b")":
                self.close_group()
            case b"|":
                self.alternative()
            case b"*" | b"+" | b"?" | b"{":
                self.quantifier(char, repeatable=repeatable)
            case b"#" if self.is_on(b"x"):
                raise self.refuse("a comment that swallows the end")
            case b"^" | b"$":
                self.anchor(char, 1)
            case _:
                self.at += 1
                self.out.append(char if char == b"." else re.escape(char))

    def anchor(self, text: bytes, length: int) -> None:
        self.out.append(text)
        self.at += length
        self.repeatable = False

    def quantifier(self, char: bytes, *, repeatable: bool) -> None:
        match = _QUANTIFIER.match(self.pattern, self.at)
        if match is None or match[1] == b"{,}":
            self.at += 1
            self.out.append(re.escape(char))
            return
        if not repeatable:
            raise self.refuse("a quantifier with nothing to repeat")
        self.repeatable = False
        counts = [int(count) for count in match.group(2, 3, 4) if count]
        if max(counts, default=0) > _COUNT_LIMIT or counts != sorted(counts):
            raise self.refuse("a repetition count out of range")
        self.at = match.end()
        lazy = b"" if match[5] == b"?" else b"?"
        self.out.append(match[1] + (lazy if self.is_on(b"U") and match[5] != b"+" else match[5]))

    def is_on(self, flag: bytes) -> bool:
        return flag[0] in self.on[-1]

    # Groups

    def open_group(self) -> None:
        if self.pattern.startswith(b"(*", self.at):
            raise self.unsupported("a verb")
        if self.pattern.startswith(b"(?#", self.at):
            return self.comment()
        if reference := _NAME_REFERENCE.match(self.pattern, self.at):
            return self.reference(reference)
        if not self.pattern.startswith(b"(?", self.at):
            return self.push(b"(", 1)
        if head := _GROUP.match(self.pattern, self.at + 1):
            name = head[1] or head[2]
            return self.push(b"(?P<" + name + b">" if name else b"(" + head[0], len(head[0]) + 1)
        return self.flags()

    def comment(self) -> None:
        end = self.pattern.find(b")", self.at)
        if end < 0:
            raise self.refuse("unclosed comment")
        self.at = end + 1

    def push(self, head: bytes, length: int) -> None:
        self.repeatable = False
        if len(self.scopes) > _NEST_LIMIT:
            raise LimitExceededError(f"a regular expression is nested deeper than {_NEST_LIMIT}", limit=_NEST_LIMIT)
        self.out.append(head)
        self.at += length
        self.scopes.append([])
        self.on.append(self.on[-1])

    def close_group(self) -> None:
        if len(self.scopes) == 1:
            raise self.refuse("unopened group")
        self.out.append(b")" * (len(self.scopes.pop()) + 1))
        self.on.pop()
        self.at += 1

    def flags(self) -> None:
        """`(?i:` or `(?i)`; the latter holds up to the end of the group around it."""
        match = _FLAGS.match(self.pattern, self.at + 1)
        if match is None:
            raise self.unsupported("an unknown group")
        on, off, end = match[1], match[2] or b"", match[3]
        if set(on) & set(off):
            raise self.unsupported("a flag both set and cleared")
        ours, theirs = (flags.translate(None, _OWN_FLAGS) for flags in (on, off))
        head = b"(?" + bytes(dict.fromkeys(ours)) + (b"-" + bytes(dict.fromkeys(theirs)) if theirs else b"") + b":"
        if end == b":":
            self.push(head, len(match[0]) + 1)
        else:
            self.out.append(head)
            self.scopes[-1].append(head)
            self.at = match.end()
            self.repeatable = False
        self.on[-1] = (self.on[-1] | set(on)) - set(off)

    def alternative(self) -> None:
        self.repeatable = False
        heads = self.scopes[-1]
        self.out.append(b")" * len(heads) + b"|" + b"".join(heads))
        self.at += 1

    # Escapes

    def escape(self) -> None:
        char = self.pattern[self.at + 1 : self.at + 2]
        if char == b"Q":
            return self.quoted()
        if reference := _NAME_REFERENCE.match(self.pattern, self.at):
            return self.reference(reference)
        if char in _ANCHORS:
            return self.anchor(_ANCHORS[char], 2)
        if char in _SETS:
            self.out.append(_set_text(_SETS[char]))
            self.at += 2
            return None
        if char and char in b"123456789":
            return self.number()
        if char == b"E":
            self.at += 2
            return None
        self.out.append(b"\\x%02x" % self.character())
        return None

    def quoted(self) -> None:
        """`\\Q…\\E`"""
        end = self.pattern.find(rb"\E", self.at)
        end = len(self.pattern) if end < 0 else end
        self.out.append(re.escape(self.pattern[self.at + 2 : end]))
        self.at = end + 2

    def reference(self, match: re.Match[bytes]) -> None:
        name = match[1] or match[2] or match[3] or match[4]
        self.at = match.end()
        if name:
            self.out.append(b"(?P=" + name + b")")
        else:
            self.refer(int(match[5] or match[6]))

    def number(self) -> None:
        if self.pattern[self.at + 2 : self.at + 3].isdigit():
            raise self.unsupported("a back reference over 9")
        number = int(self.pattern[self.at + 1 : self.at + 2])
        self.at += 2
        self.refer(number)

    def refer(self, number: int) -> None:
        # Group 1 is the one around the whole pattern: not closed yet, so a reference to it matches nothing.
        self.out.append(_NEVER if number == 1 else b"(?:\\%d)" % number)

    def character(self) -> int:
        """The byte that an escape stands for."""
        match = _CHARACTER.match(self.pattern, self.at + 1)
        if match is None:
            return self.plain()
        braced, plain, octal, zero, control, simple = match.groups()
        if control is not None:
            value = ord(control.upper()) ^ 0x40
        elif simple is not None:
            value = _SIMPLE[simple]
        else:
            value = int(octal or zero, 8) if octal or zero else int(braced or plain or b"0", 16)
        if value > 0xFF:
            raise self.refuse("a character over 255")
        self.at = match.end()
        return value

    def plain(self) -> int:
        char = self.pattern[self.at + 1 : self.at + 2]
        if char == b"":
            raise self.refuse("a backslash at the end")
        if char.isalnum():
            raise self.unsupported("an unknown escape")
        self.at += 2
        return char[0]

    # Bracketed classes

    def bracket(self) -> int:
        """The bytes of a class, from `[` to its `]`."""
        self.at += 1
        negated = self.pattern[self.at : self.at + 1] == b"^"
        self.at += negated
        mask, first = 0, True
        while first or self.pattern[self.at : self.at + 1] != b"]":
            mask |= self.bracket_item()
            first = False
        self.at += 1
        mask = byteset.fold(mask) if self.is_on(b"i") else mask
        return byteset.ALL & ~mask if negated else mask

    def bracket_item(self) -> int:
        if named := _POSIX.match(self.pattern, self.at):
            return self.not_a_range(self.posix(named))
        member = self.bracket_member()
        if isinstance(member, bytes):
            return self.not_a_range(_SETS[member])
        if not self.range_follows():
            return 1 << member
        self.at += 1
        last = self.bracket_member()
        if isinstance(last, bytes) or last < member:
            raise self.refuse("a range that is none")
        return byteset.of((member, last))

    def range_follows(self) -> bool:
        return self.pattern.startswith(b"-", self.at) and self.pattern[self.at + 1 : self.at + 2] != b"]"

    def not_a_range(self, mask: int) -> int:
        if self.range_follows():
            raise self.refuse("a range that starts with a set")
        return mask

    def posix(self, named: re.Match[bytes]) -> int:
        mask = byteset.ASCII_CLASSES.get(named[2].decode())
        if mask is None:
            raise self.refuse("an unknown class of characters")
        self.at = named.end()
        mask = byteset.fold(mask) if self.is_on(b"i") else mask
        return byteset.ALL & ~mask if named[1] else mask

    def bracket_member(self) -> int | bytes:
        """A byte, or the letter of an escape that stands for a set."""
        char = self.pattern[self.at : self.at + 1]
        if char == b"":
            raise self.refuse("unclosed class")
        if char != b"\\":
            self.at += 1
            return char[0]
        letter = self.pattern[self.at + 1 : self.at + 2]
        if letter in _SETS and letter != b"N":
            self.at += 2
            return letter
        if letter == b"b":
            self.at += 2
            return 0x08
        return self.character()


def compile_rule(pattern: str, letter: int | None) -> re.Pattern[bytes]:
    """A pattern whose `match` tells about a path with the letter of its type behind; None fits every letter.

    Raises FormatError for a malformed pattern, UnsupportedError for one that only PCRE2 could run, and
    LimitExceededError for one that is nested too deeply.
    """
    inner = _Translator(pattern.encode()).translate()
    ending = b"." if letter is None else re.escape(bytes([letter]))
    try:
        return re.compile(b"(" + inner + b")" + ending + rb"\Z")
    except re.error as error:
        if "group" in error.msg:  # a reference to one that is open, or comes later
            raise UnsupportedError(f"a back reference in a regular expression of a policy: {error}") from error
        raise FormatError(f"the regular expression does not parse: {error}") from error
