"""Random systems: SELinux policies over a tree of odd names, and files that boot or do not."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Final

from real import handmade
from real.corpus.case import BASE, Piece, tar
from real.layers import char_device, directory, fifo, hard_link, regular, symlink

from composefsd.boot.selabel import Policy
from composefsd.errors import ComposefsdError

_FOLDERS: Final = (
    "a", "a/b", "etc/selinux", "etc/selinux/p", "etc/selinux/p/contexts", "etc/selinux/p/contexts/files", "opt",
    "opt/A.B", "opt/A.B/c-d", "usr/lib/a", "usr/lib/a/b", "usr/share", "usr/share/a", "var", "var/home", "var/home/x",
    "var/lib", "var/lib/x",
)  # fmt: skip
_NAMES: Final = (
    "ab", "ba", "aab", "A", "B", "a.b", "a-b", "a_b", "d", "-", "l", "\n", "a\nb", "x\r", "é", "a{b}", "0", "10",
    "[a]", "a\\b", "\\", "a$", "^a", "a+b", "(a)", " ", "a b", "\x1c", "a\xa0b",
)  # fmt: skip
_PLACES: Final = ("usr/lib/a", "etc", "var/home/x", "a/b", "opt/A.B")
_POLICY: Final = "etc/selinux/p/contexts/files/file_contexts"
_LINKS: Final = (
    ("var/lib/x/h1", "etc/ab"), ("usr/share/a/h2", "etc/ab"), ("opt/h3", "usr/lib/a/ab"), ("h4", "etc/a.b"),
    ("usr/h5", "etc/a.b"), ("boot/h6", "etc/aab"),
)  # fmt: skip

_BLANK: Final = re.compile(r"\s")
_META: Final = "\\.+*?()|[]{}^$#&-~"
_ATOMS: Final = (
    "a", "b", "/", ".", "[^/]", "[ab]", "[a-z]", "[^a]", r"\.", "a", "x", r"\d", r"\w", r"\W", r"\s", r"\S", r"\D",
    "[[:alpha:]]", "[[:^digit:]a]", "[a-c&&b]", r"[\w--a]", "[a~~ab]", "[]a]", "[^]a]", "[-a]", "[a-]", r"\x41",
    r"\x{62}", "é", r"\xff", r"[\x80-\xff]", r"\-", r"\/", "-", "[a[b]]", "(?:a|b)", "(?P<n>a)", "(?<m>b)", r"\b",
    r"\B", "^", "$", r"\A", r"\z", "(?=a)", "(?!a)", "(?<=/)", "(?<!b)", "(?>a|ab)", "(?i)", "(?s)", "(?s:.)",
    "(?i:A)", "(?-i)", "(?m)", "{", "}", "]", "()", "(?:)", "|", r"\Qa.b\E", r"\h",
)  # fmt: skip
_COMMON: Final = 12
_QUANTIFIERS: Final = ("*", "+", "?", "{1,2}", "*?", "+?", "??", "{2}", "{2,}", "{0,1}", "*+", "++")
_BELOW: Final = ("(/.*)?", "/.*", "/[^/]*", "/.+", "(/.*)?/?", "/?.*")
_KEPT_THOUGH_REFUSED: Final = 0.02
_REPLACEMENTS: Final = ("/", "//", "/a//", "/a/.", "rel", "./x", ".", "/a/./", "..", "/x/b/", "/usr/lib", "/etc")


def _leaf(number: int, path: str) -> Piece:
    makers = (regular(path, b"x" * 70), regular(path, b"x"), symlink(path, "t"), fifo(path), char_device(path, 1, 3))
    return makers[number % len(makers)] if number % 3 else regular(path, b"x" * (number % 80))


def base_layer() -> bytes:
    """The tree that all policies are tried on."""
    paths = [f"{place}/{name}" for place in _PLACES for name in _NAMES]
    leaves = [_leaf(number, path) for number, path in enumerate(paths)]
    files = [regular(target, b"linked" * 20) for target in ("etc/ab", "usr/lib/a/ab", "etc/a.b", "etc/aab")]
    links = [hard_link(path, target) for path, target in _LINKS]
    odd = regular(b"var/lib/x/\xff\xfea")
    return tar((*BASE, *map(directory, _FOLDERS), *leaves, *files, *links, odd))


_PATHS: Final = tuple(
    "/" + path
    for path in (
        *(f"{place}/{name}" for place in _PLACES for name in _NAMES), *_FOLDERS, "usr", "boot",
        *(link for link, _ in _LINKS),
    )
)  # fmt: skip


def _is_rule(line: str) -> bool:
    """Whether a policy can have this line: one that cannot be read refuses all of it."""
    with suppress(ComposefsdError):
        Policy.parse(lambda file: line.encode() if file == "file_contexts" else b"")
        return True
    return False


class RandomSystems:
    """A maker of layers that go on top of `base_layer`."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def layer(self) -> bytes:
        """A policy, and sometimes things that boot."""
        rng = self._rng
        config = rng.choice((b"SELINUXTYPE=p\n",) * 12 + (b"SELINUX=x\n", b"SELINUXTYPE=q\n", b" SELINUXTYPE = p \n"))
        pieces: list[Piece] = [regular("etc/selinux/config", config), regular(_POLICY, self._rules())]
        pieces += [regular(f"{_POLICY}.{end}", self._rules()) for end in ("local", "homedirs") if rng.random() < 0.2]
        pieces += [
            regular(f"{_POLICY}.{end}", self._aliases()) for end in ("subs", "subs_dist") if rng.random() < 0.5
        ]
        return tar((*pieces, *(self._booting() if rng.random() < 0.4 else ())))

    # Policies

    def _literal(self, text: str) -> str:
        rng = self._rng
        return "".join(
            rng.choice((".", "[^/]")) if _BLANK.match(byte) else "\\" * (byte in _META and rng.random() < 0.8) + byte
            for byte in text
        )

    def _regex(self, depth: int = 0) -> str:
        rng, found = self._rng, ""
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            if kind < 0.15 and depth < 3:
                start = rng.choice(("", "", "", "?:", "?i:", "?s:", "?=", "?!"))
                found += f"({start}{self._regex(depth + 1)}{rng.choice(('', '|' + self._regex(depth + 1)))})"
            else:
                found += rng.choice(_ATOMS[:_COMMON] if kind < 0.7 else _ATOMS)
            if rng.random() < 0.25:
                found += rng.choice(_QUANTIFIERS if rng.random() < 0.1 else _QUANTIFIERS[:4])
        return found

    def _pattern(self) -> str:
        rng, path = self._rng, self._rng.choice(_PATHS)
        start = self._literal(path[: rng.randint(1, len(path))])
        return rng.choice(
            (
                self._literal(path),
                self._literal(path.rpartition("/")[0] or "/usr") + rng.choice(_BELOW),
                start + self._regex(),
                "/.*" + self._regex() + rng.choice(("", ".*")),
                self._regex() + "|" + self._literal(path),
                "/" + self._regex(),
                start + self._regex() + rng.choice((".*", "(/.*)?", "")),
            )
        )

    def _rules(self) -> bytes:
        rng, lines = self._rng, []
        for number in range(rng.choice((1, 3, 8, 20))):
            letter = rng.choice(("",) * 5 + ("-d ", "-- ", "-l ", "-p ", "-c ", "-b ", "-s "))
            context = rng.choice((f"l{number}", f"l{number}", "<<none>>", "same"))
            line = f"{self._pattern()}\t{letter}{context}\n"
            if len(line.split()) == 2 + bool(letter) and (_is_rule(line) or rng.random() < _KEPT_THOUGH_REFUSED):
                lines.append(line)
        return "".join(lines).encode()

    def _aliases(self) -> bytes:
        rng = self._rng
        pairs = (
            (rng.choice(_PATHS), rng.choice((*_REPLACEMENTS, rng.choice(_PATHS)))) for _ in range(rng.randint(0, 6))
        )
        return "".join(f"{a} {b}\n" for a, b in pairs if not _BLANK.search(a + b)).encode()

    # What boots

    def _booting(self) -> Iterator[Piece]:
        rng, modules = self._rng, "usr/lib/modules"
        yield directory(modules)
        for version in rng.sample(("6.1", "6.2", "x"), rng.randint(0, 2)):
            yield directory(f"{modules}/{version}")
            yield from self._some(f"{modules}/{version}", ("vmlinuz", "initramfs.img", "a.efi", "b.addon.efi"))
        for folder in ("boot/EFI", "boot/EFI/Linux", "boot/loader", "boot/loader/entries"):
            yield directory(folder)
        yield from self._some("boot/EFI/Linux", ("a.efi", "b.addon.efi", "c.txt"))
        if rng.random() < 0.5:
            yield regular("boot/loader/entries/e.conf", self._entry())
        if rng.random() < 0.2:
            yield from self._some("boot", ("aboot-1.img", "vbmeta-1.img", "aboot.img"))

    def _some(self, folder: str, names: Sequence[str]) -> Iterator[Piece]:
        for name in names:
            path = f"{folder}/{name}"
            choices = (
                regular(path, b"k" * 100),
                regular(path, handmade.uki("quiet")),
                symlink(path, "x"),
                directory(path),
            )
            if self._rng.random() < 0.5:
                yield self._rng.choices(choices, weights=(8, 8, 1, 1))[0]

    def _entry(self) -> bytes:
        rng = self._rng
        paths = (
            "/usr/lib/modules/6.1/vmlinuz",
            "usr/lib/modules/6.2//vmlinuz",
            "/etc/ab",
            "/none",
            "/etc/../etc/ab",
            "/usr",
        )
        keys = ("linux", "initrd", "efi", "title", "linuxx", " linux")
        lines = (
            f"{rng.choice(keys)}{rng.choice((' ', chr(9), '  '))}{rng.choice(paths)}"
            for _ in range(rng.randint(0, 3))
        )
        return "\n".join(lines).encode()
