"""SELinux policies."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import selabel
from composefsd.boot.selabel import Policy, parse_config
from composefsd.errors import ComposefsdError, FormatError, LimitExceededError, NotBootableError, UnsupportedError
from composefsd.tree.table import Kind

MakeImage = Callable[..., Any]

FILES = "/etc/selinux/default/contexts/files/"
CONFIG = b"SELINUX=enforcing\nSELINUXTYPE=default\n"


def _policy(text: str, **others: str) -> Policy:
    """From file_contexts and, by the ends of their names, others."""
    named = {"file_contexts": text} | {f"file_contexts.{end}": other for end, other in others.items()}
    return Policy.parse(lambda name: named[name].encode() if name in named else None)


def _image(make: MakeImage, contents: Mapping[str, object]) -> Any:
    return make({"/etc/selinux/config": CONFIG, FILES + "file_contexts": b"/.* l\n"} | dict(contents))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (b"SELINUXTYPE=default", "default"),
        (b"SELINUX=disabled\nSELINUXTYPE=default\n", "default"),
        (b"\xc2\xa0 selinuxType\t= mls \x0b\r\n", "mls"),
        (b"#SELINUXTYPE=no\nSELINUXTYPE=yes\nSELINUXTYPE=late", "yes"),
        (b'SELINUXTYPE="quoted" # comment', '"quoted" # comment'),
        (b"SELINUXTYPE=a=b", "a=b"),
        (b"SELINUXTYPE=", ""),
        (b"SELINUXTYPE", None),
        (b"SELINUXTYPE x=y", None),
        (b"", None),
        ("\u017fELINUXTYPE=no".encode(), None),  # upper() makes this letter an S
        (b"SELINUXTYPE=a\n\xff", "a"),
    ],
)
def test_the_config_names_the_policy(config: bytes, name: str | None) -> None:
    assert parse_config(config) == name


def test_a_config_that_is_no_text_before_the_name_is_refused() -> None:
    with pytest.raises(FormatError, match="line 2"):
        parse_config(b"a\n\xff\nSELINUXTYPE=x")


def test_an_image_without_policy_has_none(image: MakeImage) -> None:
    for contents in ({}, {"/etc/selinux/semanage.conf": b""}, {"/etc/selinux/config": b"SELINUX=disabled\n"}):
        made = image(contents)
        assert Policy.load(made.tree, made.read) is None


def test_a_config_of_zeros_is_as_good_as_none(image: MakeImage) -> None:
    made = image({"/etc/selinux/config": 100})
    assert Policy.load(made.tree, made.read) is None


def test_the_policy_is_read_from_the_image(image: MakeImage) -> None:
    made = _image(image, {FILES + "file_contexts": b"/.* system_u:object_r:default_t:s0 \n" * 4})
    policy = Policy.load(made.tree, made.read)
    assert policy is not None
    assert policy.label(b"/a", Kind.EXTERNAL) == b"system_u:object_r:default_t:s0"


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        ({"/etc/selinux/config": b"SELINUXTYPE=other"}, "no directory other"),
        ({"/etc/selinux/config": b"SELINUXTYPE=../selinux/default"}, "component"),
        ({"/etc/selinux/config": "config.real"}, "not a regular file"),
        ({"/etc/selinux/config": None}, "not a regular file"),
        ({FILES + "file_contexts": "link"}, "not a regular file"),
        ({FILES + "file_contexts.subs": None}, "not a regular file"),
        ({FILES + "file_contexts": 100}, "no file_contexts"),
    ],
)
def test_half_a_policy_is_refused(image: MakeImage, contents: dict[str, object], match: str) -> None:
    made = _image(image, contents)
    with pytest.raises(NotBootableError, match=match):
        Policy.load(made.tree, made.read)


@pytest.mark.parametrize("path", ["/etc", "/etc/selinux"])
def test_a_symbolic_link_on_the_way_is_refused(image: MakeImage, path: str) -> None:
    made = image({path: "elsewhere"})
    with pytest.raises(NotBootableError, match="not a directory"):
        Policy.load(made.tree, made.read)


def test_missing_file_contexts_are_refused() -> None:
    with pytest.raises(NotBootableError, match="file_contexts"):
        Policy.parse(lambda _name: None)


def test_the_last_line_wins_over_all_three_files() -> None:
    policy = _policy("/a one\n/a/.* one\n", local="/a local\n/b local\n", homedirs="/b home\n")
    assert policy.label(b"/a", Kind.DIRECTORY) == b"local"
    assert policy.label(b"/b", Kind.DIRECTORY) == b"home"
    assert policy.label(b"/a/x", Kind.DIRECTORY) == b"one"


def test_a_plain_path_is_no_better_than_a_pattern() -> None:
    assert _policy("/a/b exact\n/a(/.*)? pattern\n").label(b"/a/b", Kind.EXTERNAL) == b"pattern"


def test_no_label_is_a_verdict_and_so_is_no_match() -> None:
    policy = _policy("/a(/.*)? l\n/a/b <<none>>\n")
    assert policy.label(b"/a/b", Kind.EXTERNAL) is None
    assert policy.label(b"/c", Kind.EXTERNAL) is None


def test_each_letter_is_for_its_type() -> None:
    policy = _policy("".join(f"/x -{letter} {letter}\n" for letter in "bcdpls-"))
    letters = [policy.label(b"/x", kind) for kind in Kind]
    assert letters == [b"d", b"-", b"-", b"-", b"-", b"l", b"c", b"b", b"p", b"s"]


def test_comments_empty_lines_and_white_space_of_every_kind_are_skipped() -> None:
    policy = _policy("# x\n\n \u2003\n  #y z\n\t/a\u00a0--\u3000l\r\n/\x1cb m\n#")
    assert policy.label(b"/a", Kind.INLINE) == b"l"
    assert policy.label(b"/\x1cb", Kind.INLINE) == b"m"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("/a", "line 1: no context"),
        ("/b l\n/a --", "line 2: no context"),
        ("/a -x l", "invalid type -x"),
        ("/a - l", "invalid type"),
        ("/a -dd l", "invalid type"),
        ("/a l m", "trailing data"),
        ("/a -- l m", "trailing data"),
        ("/( l", "unclosed group"),
        ("/a)b l", "unopened group"),
        ("/(a(?1)?b l", "unknown group"),
    ],
)
def test_malformed_rules_are_refused(text: str, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        _policy(text)


def test_malformed_substitutions_are_refused() -> None:
    with pytest.raises(FormatError, match="no second path"):
        _policy("", subs="/a\n")
    with pytest.raises(FormatError, match="trailing data"):
        _policy("", subs_dist="/a /b /c\n")


def test_rules_that_are_no_text_are_refused() -> None:
    with pytest.raises(FormatError, match=r"file_contexts, line 2"):
        Policy.parse(lambda name: b"/a l\n/\xff l\n" if name == "file_contexts" else None)


def test_rules_for_pcre2_take_their_turn() -> None:
    policy = _policy("/.* default\n/etc/(?!shadow).* public\n/etc/hosts hosts\n/etc/(?=s)x* never\n")
    assert policy.label(b"/etc/passwd", Kind.EXTERNAL) == b"public"
    assert policy.label(b"/etc/shadow", Kind.EXTERNAL) == b"default"
    assert policy.label(b"/etc/hosts", Kind.EXTERNAL) == b"hosts"


def test_a_rule_of_a_type_for_pcre2_holds_for_it_alone() -> None:
    policy = _policy("/.* default\n/(?!x).* -d dirs\n")
    assert policy.label(b"/a", Kind.DIRECTORY) == b"dirs"
    assert policy.label(b"/a", Kind.SYMLINK) == b"default"


@pytest.mark.parametrize(
    ("pattern", "error"),
    [("(?u)/a", UnsupportedError), ("/(?<", FormatError), ("/a)b", FormatError)],
)
def test_an_error_names_the_pattern_it_is_about(pattern: str, error: type[ComposefsdError]) -> None:
    with pytest.raises(error) as caught:
        _policy(f"/.* default\n{pattern} l\n")
    assert repr(pattern) in caught.value.message
    assert caught.value.facts["subject"] == "file_contexts"


def test_a_pattern_may_be_longer_than_a_path_but_a_label_may_not() -> None:
    policy = _policy(f"/({'a|' * 20_000}b) l\n")
    assert policy.label(b"/b", Kind.INLINE) == b"l"
    with pytest.raises(LimitExceededError):
        _policy(f"/a {'l' * 5000}\n")
    with pytest.raises(LimitExceededError):
        _policy("", subs=f"/{'a' * 5000} /b\n")
    with pytest.raises(LimitExceededError):
        _policy(f"/{'a' * 300_000} l\n")


def test_later_substitutions_replace_earlier_ones() -> None:
    policy = _policy("", subs="/a /one\n/b /two\n", subs_dist="# c\n/a /three\n")
    assert policy.aliases == {b"/": {b"a": b"/three", b"b": b"/two"}}
    assert policy.replaces_below(b"/")
    assert not policy.replaces_below(b"/a/")


def test_substitutions_are_known_in_all_directories_above_them() -> None:
    policy = _policy("", subs="/a/b/c /x\n/d /y\n")
    assert [policy.replaces_below(path) for path in (b"/", b"/a/", b"/a/b/", b"/d/", b"/z/", b"/a/b/c/")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_the_number_of_rules_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selabel, "_RULE_LIMIT", 3)
    with pytest.raises(LimitExceededError):
        _policy("/a l\n" * 4)


@given(st.text("/a.*()?[]\\{}=! \n\t-#<>dlb", max_size=30), st.binary(max_size=20))
def test_hostile_files_raise_nothing_but_errors_of_ours(text: str, data: bytes) -> None:
    contents = {"file_contexts": text.encode(), "file_contexts.local": data, "file_contexts.subs": data}
    try:
        policy = Policy.parse(contents.get)
    except ComposefsdError:
        return
    policy.label(b"/a", Kind.EXTERNAL)
