"""The SELinux policy of an image, as far as labels go: `file_contexts` and its companions.

The rules are those of composefs-rs 0.9.4, since the digest of a boot image depends on them.  They differ from
libselinux: the last line that matches wins, over `file_contexts`, `file_contexts.local` and `file_contexts.homedirs`
in this order, and a plain path is no better than a pattern.  A line is a pattern, perhaps `-` and a letter for the
only type it is for, and a context; `<<none>>` stands for no label.  The files `file_contexts.subs` and `.subs_dist`
replace paths: a path that equals a key, and with it all below that path.

Policies come from images and may be hostile.  Sizes are bounded, and matching takes time in proportion to the paths
(see `automaton`), but for rules that only PCRE2 can read: a path that makes it backtrack costs a second at most, but
it may be one of many, so that a policy is to be used in a process with a time limit.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Final, Self, TypeVar

from composefsd.boot import pcre
from composefsd.boot.automaton import LETTERS, NO_RULE, Automaton, Rule
from composefsd.boot.files import WHITE_SPACE, ObjectReader, find_directory, find_file, get_directory, read_file
from composefsd.boot.pattern import Pattern, read_rule
from composefsd.boot.syntax_tree import NEVER
from composefsd.errors import FormatError, LimitExceededError, NotBootableError, UnsupportedError
from composefsd.tree.table import Kind, Tree

T = TypeVar("T")

XATTR: Final = b"security.selinux"

CONFIG: Final = b"config"
_DIRECTORY: Final = b"etc/selinux"
_RULE_FILES: Final = ("file_contexts", "file_contexts.local", "file_contexts.homedirs")
_ALIAS_FILES: Final = ("file_contexts.subs", "file_contexts.subs_dist")

_FILE_LIMIT: Final = 16 * 1024 * 1024  # Fedora's largest has 400 KiB
_RULE_LIMIT: Final = 250_000
_WORD_LIMIT: Final = 4096  # PATH_MAX, and the page that the kernel allows for a context
_PATTERN_LIMIT: Final = 256 * 1024
_NO_LABEL: Final = "<<none>>"

_WORDS: Final = re.compile(f"[^{WHITE_SPACE}]+")

_LETTER_OF_KIND: Final = {
    Kind.DIRECTORY: "d", Kind.INLINE: "-", Kind.EXTERNAL: "-", Kind.UNVERIFIED: "-", Kind.SPARSE: "-",
    Kind.SYMLINK: "l", Kind.CHAR: "c", Kind.BLOCK: "b", Kind.FIFO: "p", Kind.SOCKET: "s",
}  # fmt: skip

LETTER_AT: Final = tuple(LETTERS.index(_LETTER_OF_KIND[kind].encode()) for kind in Kind)
"""For each Kind, the place in `State.rules` of the letter of its type."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A rule as written; letter is a byte, context None for no label."""

    pattern: str
    letter: int | None
    context: bytes | None


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules that give labels to paths.

    contexts has a label, or None, for each rule.  Rules that the automaton cannot hold are in `exceptions`, by
    number, the highest first; their patterns match a path with the letter of its type behind.  aliases has, for the
    path of a directory with a slash at its end, the names in it that are replaced, and by which path; `alias_keys`
    are all paths that are replaced, in order.
    """

    automaton: Automaton
    contexts: tuple[bytes | None, ...]
    exceptions: tuple[tuple[int, pcre.Pattern], ...]
    aliases: dict[bytes, dict[bytes, bytes]]
    alias_keys: tuple[bytes, ...]

    @classmethod
    def load(cls, tree: Tree, read: ObjectReader) -> Self | None:
        """The policy that the image's `/etc/selinux/config` names; None if the image has no policy.

        Raises NotBootableError if a part of a policy is missing or no plain file or directory, FormatError if one is
        malformed, LimitExceededError if one is too large, and UnsupportedError for rules in Unicode
        mode, or that need a newer PCRE2.
        """
        directory = find_directory(tree, _DIRECTORY)
        if directory is None:
            return None
        config = _read(tree, directory, CONFIG, read)
        name = None if config is None else parse_config(config)
        if name is None:
            return None
        files = get_directory(tree, b"contexts/files", get_directory(tree, name.encode(), directory))
        return cls.parse(lambda file: _read(tree, files, file.encode(), read))

    @classmethod
    def parse(cls, content: Callable[[str], bytes | None]) -> Self:
        """The policy of some files; `content` gives each by its name, None for one that does not exist.

        Raises like `load`.
        """
        lines = (line for file in _RULE_FILES for line in _rules(file, _content(file, content)))
        aliases = (pair for file in _ALIAS_FILES for pair in _aliases(file, _content(file, content)))
        return cls._built(_bounded(lines, "rules"), dict(_bounded(aliases, "substitutions")))

    @classmethod
    def _built(cls, lines: list[_Line], aliases: dict[bytes, bytes]) -> Self:
        rules, exceptions = [], []
        for number, line in enumerate(lines):
            rule, exception = _compiled(line)
            rules.append(rule)
            if exception is not None:
                exceptions.append((number, exception))
        return cls(
            Automaton(rules),
            tuple(line.context for line in lines),
            tuple(reversed(exceptions)),
            _by_directory(aliases),
            tuple(sorted(aliases)),
        )

    def replaces_below(self, directory: bytes) -> bool:
        """Whether some path is replaced that starts with this one, which ends with a slash."""
        at = bisect_left(self.alias_keys, directory)
        return at < len(self.alias_keys) and self.alias_keys[at].startswith(directory)

    def label(self, path: bytes, kind: Kind) -> bytes | None:
        """The label of one path, without substitutions; None for no label."""
        subject = path + LETTERS[LETTER_AT[kind] :][:1]
        rule = self.overridden(subject, self.automaton.match(subject))
        return None if rule == NO_RULE else self.contexts[rule]

    def overridden(self, subject: bytes, rule: int) -> int:
        """The rule of an exception that matches, if it comes after `rule`."""
        for number, pattern in self.exceptions:
            if number < rule:
                break
            if pattern.matches(subject):
                return number
        return rule


def parse_config(data: bytes) -> str | None:
    """The name of the policy: the value of the first line with `=` whose key is SELINUXTYPE in any case.

    Raises FormatError if a line up to that one is not UTF-8.
    """
    for _, line in _lines("config", data):
        key, equals, value = line.partition("=")
        key = key.strip(WHITE_SPACE)
        if equals and key.isascii() and key.upper() == "SELINUXTYPE":
            return value.strip(WHITE_SPACE)
    return None


def _read(tree: Tree, directory: int, name: bytes, read: ObjectReader) -> bytes | None:
    """A file of the policy.  One without content, all zeros, is as good as none: upstream reads it so."""
    inode = find_file(tree, directory, name)
    if inode is None or tree.kind[inode] == Kind.SPARSE:
        return None
    return read_file(tree, inode, read, _FILE_LIMIT)


def _content(file: str, content: Callable[[str], bytes | None]) -> bytes:
    data = content(file)
    if data is None and file == _RULE_FILES[0]:
        raise NotBootableError("the SELinux policy of the image has no file_contexts")
    return data or b""


def _bounded(items: Iterable[T], what: str) -> list[T]:
    found = list(islice(items, _RULE_LIMIT + 1))
    if len(found) > _RULE_LIMIT:
        raise LimitExceededError(f"a policy of more than {_RULE_LIMIT} {what}", limit=_RULE_LIMIT)
    return found


def _lines(file: str, data: bytes) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; what ends a line is white space at its end."""
    for number, line in enumerate(BytesIO(data), 1):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{file}, line {number}: not UTF-8", subject=file, line=number) from error


def _words(file: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that is not empty and no comment."""
    for number, line in _lines(file, data):
        words = _WORDS.findall(line)
        if words and not words[0].startswith("#"):
            if len(line) > _WORD_LIMIT:
                _check_length(file, number, words)
            yield number, words


def _check_length(file: str, number: int, words: Sequence[str]) -> None:
    """Of patterns, which come first in a file of rules, and of other words."""
    limits = (_PATTERN_LIMIT if file in _RULE_FILES else _WORD_LIMIT, _WORD_LIMIT)
    lengths = len(words[0]), max(map(len, words[1:]), default=0)
    for length, limit in zip(lengths, limits, strict=True):
        if length > limit:
            raise LimitExceededError(f"{file}, line {number}: a word is too long", limit=limit)


def _rules(file: str, data: bytes) -> Iterator[_Line]:
    for number, words in _words(file, data):
        letter = None
        if len(words) > 1 and words[1].startswith("-"):
            letter = words.pop(1)[1:]
            if len(letter) != 1 or letter.encode() not in LETTERS:
                raise FormatError(f"{file}, line {number}: invalid type -{letter[:20]}", subject=file, line=number)
        if len(words) != 2:
            what = "trailing data" if len(words) > 2 else "no context"
            raise FormatError(f"{file}, line {number}: {what}", subject=file, line=number)
        context = None if words[1] == _NO_LABEL else words[1].encode()
        yield _Line(words[0], ord(letter) if letter else None, context)


def _aliases(file: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for number, words in _words(file, data):
        if len(words) != 2:
            what = "trailing data" if len(words) > 2 else "no second path"
            raise FormatError(f"{file}, line {number}: {what}", subject=file, line=number)
        yield words[0].encode(), words[1].encode()


def _compiled(line: _Line) -> tuple[Rule, pcre.Pattern | None]:
    """A rule; if only PCRE2 can read it, one that never matches, and the pattern as an exception."""
    letter = "." if line.letter is None else chr(line.letter)
    try:
        pattern = read_rule(line.pattern, letter)
        return Rule(pattern, None if pattern.is_whole else line.letter), None
    except FormatError as refused:
        return Rule(Pattern.of(NEVER), None), _exception(line.pattern, letter, refused)
    except UnsupportedError as error:
        raise _named(error, line.pattern) from error


def _named(error: UnsupportedError, pattern: str) -> UnsupportedError:
    """The error with the pattern that it is about."""
    facts = {**error.facts, "subject": "file_contexts"}
    return UnsupportedError(f"file_contexts: {pattern[:200]!r}: {error.message}", **facts)


def _exception(pattern: str, letter: str, refused: FormatError) -> pcre.Pattern:
    try:
        return pcre.compile_rule(f"^({pattern}){letter}$")
    except FormatError as error:
        message = f"file_contexts: {pattern[:200]!r}: {refused}; as PCRE2: {error}"
        raise FormatError(message, subject="file_contexts") from error
    except UnsupportedError as error:
        raise _named(error, pattern) from error


def _by_directory(aliases: dict[bytes, bytes]) -> dict[bytes, dict[bytes, bytes]]:
    table: dict[bytes, dict[bytes, bytes]] = {}
    for key, path in aliases.items():
        directory, slash, name = key.rpartition(b"/")
        table.setdefault(directory + slash, {})[name] = path
    return table
