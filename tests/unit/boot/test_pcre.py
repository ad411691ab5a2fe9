"""Rules that only PCRE2 reads."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import pcre
from composefsd.errors import FormatError, LimitExceededError, UnsupportedError


def _matches(pattern: str, path: bytes, letter: str | None = None) -> bool:
    compiled = pcre.compile_rule(pattern, None if letter is None else ord(letter))
    return compiled.match(path + (letter or "-").encode()) is not None


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/(?!shadow).*", [b"/passwd", b"/"], [b"/shadow", b"/shadow-", b"/a\nb"]),
        ("/(?=a).*", [b"/ab"], [b"/b"]),
        ("/a(?<!b)c(?<=ac)", [b"/ac"], [b"/bc"]),
        ("/(a)(b)\\2\\3", [b"/abab"], [b"/abba"]),
        ("/\\1a", [], [b"/a"]),
        ("/(?<n>a)\\k<n>(?P=n)\\g{n}\\k{n}\\k'n'", [b"/aaaaaa"], [b"/aaaaa"]),
        ("/(a)\\g2\\g{2}", [b"/aaa"], [b"/a"]),
        ("/(?'n'a)b", [b"/ab"], []),
        ("/(?>a|ab)c", [b"/ac"], [b"/abc"]),
        ("/a++a", [], [b"/aaa"]),
        ("/{a}{,x}", [b"/{a}{,x}"], []),
        ("/a{,2}{b", [b"/aa{b", b"/{b"], [b"/aaa{b"]),
        ("/(?s:(?!x).)", [b"/\n"], [b"/x"]),
        ("/(?!x).", [b"/\0", b"/\xff"], [b"/\n"]),
        ("/(a(?i)b|c)(?!x)d", [b"/aBd", b"/Cd"], [b"/Abd", b"/cD"]),
        ("/(?i)(?-i:a)(?!x)b", [b"/aB"], [b"/AB"]),
        ("/(?i)(?!x)[^a]", [b"/b"], [b"/a", b"/A"]),
        ("/(?!x)[é]{2}", [b"/\xc3\xa9"], []),
        ("/(?!x)[]a]", [b"/]"], [b"/b"]),
        ("/(?!x)[[:upper:]_-]", [b"/A", b"/-"], [b"/a"]),
        ("/(?!x)[^[:^digit:]]", [b"/1"], [b"/a"]),
        ("/(?!x)[a[]", [b"/[", b"/a"], []),
        ("/(?!x)[\\d\\-\\]\\b]", [b"/1", b"/-", b"/]", b"/\x08"], [b"/b"]),
        ("/(?!x)\\<a", [b"/<a"], [b"/a"]),
        ("/(?!x)\\Qa.b\\Ec\\E", [b"/a.bc"], [b"/axbc"]),
        ("/(?!x)\\e\\x41\\x{42}\\o{103}\\07\\cA\\x", [b"/\x1bABC\x07\x01\0"], []),
        ("/(?!x)\\h\\H\\v\\V\\N", [b"/\xa0a\x85bc"], [b"/a a\x85bc"]),
        ("/a(?!b)$", [], [b"/a"]),
        ("/a(?=.$).?", [b"/a"], []),
        ("/a(?=.\\Z).?", [b"/a"], []),
        ("/(?!x)a(?#comment)b", [b"/ab"], []),
        ("/(?U)(?>a*)a", [b"/a"], [b"/aa"]),
        ("\\A\\G/(?!x)\\ba\\B.", [b"/ab"], [b"/a."]),
    ],
)
def test_verdicts(pattern: str, yes: list[bytes], no: list[bytes]) -> None:
    for path in yes:
        assert _matches(pattern, path), path
    for path in no:
        assert not _matches(pattern, path), path


def test_a_letter_restricts_the_type() -> None:
    assert _matches("/(?!x)a", b"/a", "d")
    compiled = pcre.compile_rule("/(?!x)a", ord("d"))
    assert compiled.match(b"/a-") is None


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a", "a)", "[a", "[", "[]", "\\", "*", "(*a)", "(?:*a)", "a|*", "^*", "\\b+", "\\Z*",
        "a{2,1}", "a{70000}", "(?=a)[b-a]", "[\\d-a]", "[[:alpha:]-a]", "[[:none:]]", "\\x{100}", "(?#",
        "(?x)a#b", "a**",
    ],
)  # fmt: skip
def test_what_pcre2_refuses_is_refused(pattern: str) -> None:
    with pytest.raises((FormatError, UnsupportedError)):
        pcre.compile_rule(pattern, None)


@pytest.mark.parametrize(
    "pattern",
    [
        "(*ACCEPT)",
        "(?R)",
        "(?1)",
        "(?|a)",
        "(?(1)a)",
        "(?C)",
        "\\pL",
        "\\X",
        "\\K",
        "\\R",
        "\\12",
        "(?^)",
        "(?n)",
        "(a\\2)",
        "[:a:]",
    ],
)
def test_what_only_pcre2_could_run_is_told_so(pattern: str) -> None:
    with pytest.raises(UnsupportedError):
        pcre.compile_rule(pattern, None)


def test_nesting_is_bounded() -> None:
    with pytest.raises(LimitExceededError):
        pcre.compile_rule("(" * 200 + ")" * 200, None)


@given(st.text(r"ab/.*+?()|[]{}^$\-#:,0123xgkQEhdbzPims<>=!'", max_size=14))
def test_any_text_compiles_or_is_refused(pattern: str) -> None:
    with suppress(FormatError, LimitExceededError, UnsupportedError):
        assert isinstance(pcre.compile_rule(pattern, None), re.Pattern)
