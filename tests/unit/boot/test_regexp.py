"""Rust's regular expressions, as far as one matches: through the automaton, with the verdicts of `regex-automata`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import regexp
from composefsd.boot.automaton import NO_RULE, Automaton, Rule
from composefsd.boot.pattern import Pattern, read_rule
from composefsd.boot.syntax_tree import Literal, size
from composefsd.errors import FormatError, UnsupportedError


def _matches(pattern: str, path: bytes, kind: bytes = b"-") -> bool:
    return Automaton([Rule(read_rule(pattern, "."), None)]).match(path + kind) != NO_RULE


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/usr", [b"/usr"], [b"/usr/", b"/us", b"x/usr"]),
        (r"/a\.b", [b"/a.b"], [b"/axb"]),
        ("/a.b", [b"/axb", b"/a\nb", b"/a\xffb"], [b"/a\0b", b"/ab"]),
        ("(?s)/a.b", [b"/a\0b", b"/a\nb"], []),
        ("(?R)/a.b", [b"/a\0b"], [b"/a\nb", b"/a\rb"]),
        ("/a[^/]b", [b"/a\0b", b"/a\nb"], [b"/a/b"]),
        ("/dev/[shmx]d[^/]*", [b"/dev/sd", b"/dev/xdab1"], [b"/dev/ad", b"/dev/sd/x"]),
        ("/usr(/.*)?", [b"/usr", b"/usr/", b"/usr/a/b"], [b"/usrx"]),
        ("/a|/b", [b"/a", b"/b"], [b"/a|/b"]),
        ("/(|a)", [b"/", b"/a"], [b"/b"]),
        ("/a{2,3}", [b"/aa", b"/aaa"], [b"/a", b"/aaaa"]),
        ("/a{2}", [b"/aa"], [b"/a"]),
        ("/a{2,}", [b"/aa", b"/aaaaa"], [b"/a"]),
        ("/(ab){0}c", [b"/c"], [b"/abc"]),
        ("/a{0}*c", [b"/c"], [b"/ac", b"/aac"]),
        ("/(a{0}*|b){0,9}c", [b"/c", b"/bbc"], [b"/ac", b"/bac"]),
        ("/a*?b+?c??", [b"/b", b"/aabbc"], [b"/a"]),
        ("/a**", [b"/", b"/aa"], [b"/b"]),
        ("/(a*)*b", [b"/aab", b"/b"], [b"/c"]),
        ("/é*", [b"/", b"/\xc3\xa9\xc3\xa9"], [b"/\xc3"]),
        (r"/\xe9", [b"/\xe9"], [b"/\xc3\xa9"]),
        (r"/\x{e9}\u00e9", [b"/\xc3\xa9\xc3\xa9"], [b"/\xe9\xe9"]),
        (r"/\x41\u0042\U00000043\t", [b"/ABC\t"], []),
        (r"/[\x80-\xff]", [b"/\xff"], [b"/a"]),
        (r"/\d\w\s", [b"/1_\x0b"], [b"/1-\x0b", b"/1_\x1c"]),
        (r"/\D\W\S", [b"/a-\xff"], [b"/1-a"]),
        ("/[[:alpha:]]", [b"/a", b"/Z"], [b"/1", b"/:"]),
        ("/[[:^alpha:]]", [b"/1", b"/\xff"], [b"/a"]),
        ("/[[:word:][:blank:]]+", [b"/a_ \t"], [b"/-"]),
        ("/[[:nothing:]]", [b"/:", b"/h"], [b"/a"]),
        ("/[:alpha:]", [b"/:", b"/l"], [b"/x"]),
        ("/[]a]", [b"/]", b"/a"], [b"/b"]),
        ("/[^]a]", [b"/b"], [b"/]", b"/a"]),
        ("/[-a]", [b"/-", b"/a"], [b"/b"]),
        ("/[a-]", [b"/-", b"/a"], [b"/b"]),
        ("/[a[b-d]]", [b"/a", b"/c"], [b"/e", b"/["]),
        ("/[a-d&&[^b]]", [b"/a", b"/d"], [b"/b"]),
        ("/[a-d--b]", [b"/a", b"/c"], [b"/b"]),
        ("/[a-d~~c-f]", [b"/a", b"/f"], [b"/c"]),
        ("/[a-c&&b--]", [b"/b"], [b"/a", b"/-"]),
        ("/[a&&b]", [], [b"/a", b"/b"]),
        ("/(?i)ab(?-i)c", [b"/ABc", b"/abc"], [b"/abC"]),
        ("/((?i)a|b)c", [b"/Ac", b"/Bc"], [b"/aC"]),
        ("/(?i:a)b", [b"/Ab"], [b"/AB"]),
        ("/(?i)[^a]", [b"/b"], [b"/a", b"/A"]),
        ("/(?i)[[:lower:]&&a-c]", [b"/B"], [b"/d"]),
        ("/(?x)ab", [b"/ab"], []),
        ("/(?U)a*b", [b"/aab"], []),
        ("/(?P<n>a)(?<m.1>b)", [b"/ab"], []),
        ("/a$", [], [b"/a"]),
        (r"/a\z", [], [b"/a"]),
        ("/(a$|b)", [b"/b"], [b"/a"]),
        ("^/a", [b"/a"], []),
        (r"\A/a", [b"/a"], []),
        ("/^a", [], [b"/a"]),
        ("/a(?m)$\nb", [b"/a\nb"], []),
        ("/a\n(?m)^b", [b"/a\nb"], []),
        ("/a(?mR)$\r\nb", [b"/a\r\nb"], []),
        ("/a\r(?mR)^\nb", [], [b"/a\r\nb"]),
        (r"/\ba\B.", [b"/ab"], [b"/a."]),
        (r"/a\<b", [], [b"/ab"]),
        (r"/\<a\>\.", [b"/a."], []),
        (r"/\b{start}a\b{end}-", [b"/a-"], []),
        (r"/\b{start-half}a\b{end-half}-", [b"/a-"], [b"/ab"]),
        (r"/a\b{1}-", [b"/a-"], []),
        (r"/\_\%\/\-\#\&\~", [b"/_%/-#&~"], []),
        ("/a#b]}", [b"/a#b]}"], []),
    ],
)
def test_verdicts(pattern: str, yes: list[bytes], no: list[bytes]) -> None:
    for path in yes:
        assert _matches(pattern, path), path
    for path in no:
        assert not _matches(pattern, path), path


def test_a_word_boundary_at_the_end_sees_the_letter_of_the_type() -> None:
    assert _matches(r"/a\b", b"/a", b"-")
    assert not _matches(r"/a\b", b"/a", b"d")


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "a)(b", "(?", "(?P<", "(?P<1>a)", "(?P<a>b)(?P<a>c)", "(?)", "(?i-)", "(?ii)", "(?i-i)", "(?-)",
        "(?z)", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", "(?>a)", "*a", "a|*", "(*a)", "(?i)*", "a{", "a{}", "a{,2}",
        "a{x}", "a{2", "a{3,2}", "a{4294967296}", "[", "[]", "[^]", "[a", "[b-a]", "[a-\\d]", "[\\b]", "[\\z]",
        "[é]", "[\\x{e9}]", "\\", "\\1", "\\0", "\\8", "\\y", "\\é", "\\pL", "\\P{Greek}", "\\x", "\\xg", "\\x{}",
        "\\x{110000}", "\\x{d800}", "\\b{", "\\b{nothing}", "(?x)a#b", "(?x)[#]",
    ],
)  # fmt: skip
def test_what_rust_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(FormatError):
        regexp.parse(pattern)


def test_unicode_mode_is_not_there() -> None:
    with pytest.raises(UnsupportedError):
        regexp.parse("(?u)a")
    assert _matches("/(?-u)a", b"/a")


@pytest.mark.parametrize(
    ("front", "back", "most"),
    [
        ("(", ")", 248), ("(a", ")", 124), ("(a|", ")", 124), ("(?:", ")*", 124), ("[", "]", 248), ("[a", "]", 124),
        ("[a&&", "]", 124), ("", "*", 247), ("", "??", 247),
    ],
)  # fmt: skip
def test_patterns_are_nested_as_deep_as_regex_syntax_has_them(front: str, back: str, most: int) -> None:
    regexp.parse(front * most + "a" + back * most)
    with pytest.raises(FormatError):
        regexp.parse(front * (most + 2) + "a" + back * (most + 2))


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("/a)|(/b", b"/ax-", True), ("/a)|(/b", b"/b-", True), ("/a)|(/b", b"/bx-", False), ("/a)(", b"/ad", True),
        ("/d)$|(/b", b"/d", True), ("/d)$|(/b", b"/d-", False), ("/d)\\z|(/b", b"/d", True),
        ("/d)\\b|(/b", b"/d-", True), ("x)|(?i)(/A", b"/a-", True), ("/a)*(x", b"/a/ax-", True),
        ("/a)(?m)$|(b", b"/a\n-", True), ("/a)(?m)$|(b", b"/a-", False),
    ],
)  # fmt: skip
def test_a_pattern_may_close_the_group_around_it(pattern: str, subject: bytes, *, matches: bool) -> None:
    rule = Rule(read_rule(pattern, "."), None)
    assert rule.pattern.is_whole
    assert (Automaton([rule]).match(subject) == 0) is matches


@pytest.mark.parametrize(
    ("pattern", "same"),
    [
        ("(a?){3,9}", "a{0,9}"), ("(a{2}){3}", "a{6}"), ("(a+)+", "a+"), ("(a+)?", "a*"), ("(a*)+", "a*"),
        ("(a?){9}{9}", "a{0,81}"), ("a{3000000000}", "[^\\x00-\\xff]"), ("a{2,3000000000}", "a{2,}"),
    ],
)  # fmt: skip
def test_repetitions_are_as_small_as_they_can_be(pattern: str, same: str) -> None:
    assert regexp.parse(pattern) == regexp.parse(same)


def test_patterns_of_the_common_form_are_read_when_they_are_needed() -> None:
    for text in ("/usr(/.*)?", r"/etc/a\.conf", "/a+b?", "/x/[^/]*(a|b(c)*)+", "(/a|/b)", "/", "", "/a(/.*)?b*"):
        lazy, whole = read_rule(text, "."), Pattern.of(regexp.parse(text))
        assert isinstance(lazy.rest, str)
        assert not isinstance(whole.rest, str)
        assert whole.prefix.startswith(lazy.prefix)
        assert lazy.size >= whole.size
        for path in (b"/usr", b"/usr/x", b"/etc/a.conf", b"/aab", b"/x/yac", b"/b", b"/", b"", b"/a/xbb"):
            verdicts = {Automaton([Rule(pattern, None)]).match(path + b"-") for pattern in (lazy, whole)}
            assert len(verdicts) == 1, (text, path)


@pytest.mark.parametrize(
    "text", ["/a|/b", "/a**", "/a{2}", "(?i)/a", "(?=a)", "/a)", "(a", "/é", "/(a(b(c)))", "/[[a]]"]
)
def test_patterns_of_other_forms_are_read_at_once(text: str) -> None:
    try:
        assert not isinstance(read_rule(text, ".").rest, str)
    except FormatError:
        assert "(" in text or ")" in text


def test_neighbouring_characters_become_one_literal() -> None:
    assert regexp.parse(r"/etc/foo\.conf#") == Literal(b"/etc/foo.conf#")


@given(st.text(r"ab/.*+?()|[]{}^$\-&~#:,0123xuUimsRpdwbz<>=!P", max_size=14))
def test_any_text_is_parsed_or_refused(pattern: str) -> None:
    try:
        node = regexp.parse(pattern)
    except (FormatError, UnsupportedError):
        return
    assert size(node) >= 0
