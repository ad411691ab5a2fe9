"""The patterns of rules: the plain bytes that one starts with, and the rest, read when it is needed.

Most rules of a policy are of a common form that needs no parser to be known for a pattern, and most of them are never
reached by a path.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from composefsd.boot.regexp import parse, parse_rule
from composefsd.boot.syntax_tree import Concat, Literal, Node, size

# Patterns of a form that is known to parse, which nearly all rules of a policy have: plain characters, dots, small
# classes, and groups two deep, each repeated once at most, and no flags or alternatives outside a group.
_CHARACTER: Final = r"""(?:[A-Za-z0-9_/~%@=:,;!"'-]|\\[.+*?()|\[\]{}^$\\-])"""
_CLASS: Final = r"\[\^?(?:A-Z|a-z|0-9|[A-Za-z0-9_./:@+])+\]"
_ITEM: Final = rf"(?:{_CHARACTER}|\.|{_CLASS})[?*+]?+"
_INNER: Final = rf"\((?:{_ITEM}|\|)*+\)[?*+]?+"
_COMMON: Final = re.compile(rf"(?:{_ITEM}|\((?:{_ITEM}|{_INNER}|\|)*+\)[?*+]?+)*+")
_PREFIX: Final = re.compile(rf"(?:{_CHARACTER}(?![?*+]))*+")
_BACKSLASH: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """The pattern of a rule: plain bytes that it starts with, and what follows them.

    That is a tree, or the text of a pattern of its own, which is read when somebody needs it.  See `parse_rule` for
    `is_whole`.
    """

    prefix: bytes
    rest: Node | str
    is_whole: bool = False

    @classmethod
    def of(cls, tree: Node, *, is_whole: bool = False) -> "Pattern":
        """From the tree of all of it."""
        parts = tree.parts if isinstance(tree, Concat) else (tree,)
        if parts and isinstance(first := parts[0], Literal):
            return cls(first.text, Concat(parts[1:]), is_whole)
        return cls(b"", tree, is_whole)

    def tree(self) -> Node:
        """What follows the prefix."""
        return _parse_again(self.rest) if isinstance(self.rest, str) else self.rest

    @property
    def size(self) -> int:
        """How many states an automaton for it has at most."""
        return len(self.prefix) + (2 * len(self.rest) + 1 if isinstance(self.rest, str) else size(self.rest))


@lru_cache(maxsize=1024)
def _parse_again(text: str) -> Node:
    """Few texts stand at the end of most rules: `(/.*)?`."""
    return parse(text)


def read_rule(text: str, letter: str) -> Pattern:
    """The pattern of a rule, of which no more is read than tells that it can be.  Raises like `parse`."""
    if _COMMON.fullmatch(text):
        prefix = _PREFIX.match(text)
        plain = prefix[0] if prefix else ""
        rest = text[len(plain) :]
        return Pattern((_BACKSLASH.sub(r"\1", plain) if "\\" in plain else plain).encode(), rest)
    tree, is_whole = parse_rule(text, letter)
    return Pattern.of(tree, is_whole=is_whole)
