"""Rules that only PCRE2 reads."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import pcre
from composefsd.errors import FormatError, UnsupportedError


def _compile(pattern: str, letter: str = ".") -> pcre.Pattern:
    return pcre.compile_rule(f"^({pattern}){letter}$")


def _matches(pattern: str, path: bytes, letter: str | None = None) -> bool:
    return _compile(pattern, letter or ".").matches(path + (letter or "-").encode())


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
        ("/(a(?2)?b)", [b"/ab", b"/aabb"], [b"/aab"]),
        ("/(a)?(?(2)b|c)", [b"/ab", b"/c"], [b"/ac"]),
        ("/a(*FAIL)|/b", [b"/b"], [b"/a"]),
        ("/\\pL", [b"/a"], [b"/1"]),
        ("/a)|(b(?=-)", [b"/a", b"xb"], [b"/c"]),
        ("/{a}{,x}", [b"/{a}{,x}"], []),
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
    assert not _compile("/(?!x)a", "d").matches(b"/a-")


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a", "a)", "[a", "[", "[]", "\\", "*", "(*a)", "(?:*a)", "a|*", "\\Z*", "a{2,1}", "a{70000}", "(?=a)[b-a]",
        "[[:none:]]", "\\x{100}", "(?#", "(?x)a#b", "(" * 300 + ")" * 300, "(a\\3)", "(?<", "((a{9999}){999}){99}",
    ],
)  # fmt: skip
def test_what_pcre2_refuses_is_refused(pattern: str) -> None:
    with pytest.raises((FormatError, UnsupportedError)):
        _compile(pattern)


def test_a_search_that_is_given_up_finds_nothing() -> None:
    start = time.monotonic()
    assert not _matches("/(?=(a+)+b).*", b"/" + b"a" * 40)
    assert not _matches("/(?!(a+)+b).*", b"/" + b"a" * 40)  # by itself it would match
    assert _matches("/(?!(a+)+b).*", b"/" + b"a" * 10)
    assert time.monotonic() - start < 30


def test_an_older_library_refuses_what_a_newer_one_reads_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pcre._pcre2
    assert library is not None
    monkeypatch.setattr(library, "version", (10, 42))
    with pytest.raises(UnsupportedError, match=r"10\.43"):
        _compile("/(?!x)a{,3}")
    with pytest.raises(UnsupportedError, match=r"10\.42"):
        _compile("/(?unknown)")


def test_a_missing_library_is_told_to_those_who_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcre, "_pcre2", None)
    with pytest.raises(UnsupportedError, match="libpcre2"):
        _compile("/(?!x)")


def test_memory_that_runs_out_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = _compile("/(?!x)a")
    library = pcre._pcre2
    assert library is not None
    monkeypatch.setattr(library._library, "pcre2_match_8", lambda *_arguments: -48)
    with pytest.raises(MemoryError):
        pattern.matches(b"/a-")


@given(st.text(r"ab/.*+?()|[]{}^$\-#:,0123xgkQEhdbzPims<>=!'", max_size=14))
def test_any_text_compiles_or_is_refused(pattern: str) -> None:
    with suppress(FormatError, UnsupportedError):
        assert _compile(pattern).matches(b"/a-") in (True, False)
