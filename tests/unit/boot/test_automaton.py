"""Many rules at once."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd.boot import automaton
from composefsd.boot.automaton import LETTERS, NO_RULE, UNKNOWN, Automaton, Rule, State
from composefsd.boot.pattern import read_rule
from composefsd.errors import LimitExceededError

# Pieces that Rust and Python read alike, if the dot is written as Python must have it.
PIECES = [
    "/", "/a", "/b", "a", "b", "ab", ".", ".*", "[^/]*", "[ab]", "(/.*)?", "(a|b)", "(a|ab)*", "a?", "b+", "a{1,2}",
    "|", r"\b",
]  # fmt: skip
PATTERNS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
RULES = st.lists(st.tuples(PATTERNS, st.sampled_from([None, "-", "d"])), max_size=8)
PATHS = st.lists(st.sampled_from(["/", "/a", "/b", "a", "b", "c"]), max_size=6).map("".join)


def _build(rules: list[tuple[str, str | None]]) -> Automaton:
    return Automaton(
        [Rule(read_rule(pattern, letter or "."), ord(letter) if letter else None) for pattern, letter in rules]
    )


def _naive(rules: list[tuple[str, str | None]], subject: bytes) -> int:
    """The last rule that matches, each tried by itself."""
    best = NO_RULE
    for number, (pattern, letter) in enumerate(rules):
        text = "(" + pattern.replace(".", "[^\\0]") + ")" + (letter or ".")
        if re.fullmatch(text.encode(), subject, re.DOTALL):
            best = number
    return best


@settings(max_examples=300)
@given(RULES, st.lists(PATHS, max_size=6))
def test_the_last_rule_that_matches_wins(rules: list[tuple[str, str | None]], paths: list[str]) -> None:
    built = _build(rules)
    for path in paths:
        for letter in "-dl":
            subject = (path + letter).encode()
            assert built.match(subject) == _naive(rules, subject), subject


def test_rules_hold_for_their_type_alone() -> None:
    built = _build([("/a(/.*)?", None), ("/a(/.*)?", "d"), ("/a/b", "-")])
    assert [built.match(b"/a/b" + bytes([letter])) for letter in LETTERS] == [2, 1, 0, 0, 0, 0, 0]


def test_no_rules_match_nothing() -> None:
    assert _build([]).match(b"/a-") == NO_RULE


def test_where_names_do_not_matter_any_more_a_state_leads_to_itself() -> None:
    patterns = ["/.*", "/usr(/.*)?", "/usr/(.*/)?bin", "/usr/share(/.*)?", "/dead"]
    built = _build([(pattern, None) for pattern in patterns])
    share = built.after(built.start, b"/usr/share/")
    assert share.rules == (3,) * len(LETTERS)
    assert built.after(share, b"doc/x") is share
    assert built.after(built.start, b"/usr/shared/") is not share


def test_where_nothing_can_match_any_more_a_state_leads_to_itself() -> None:
    built = _build([("/a", None)])
    state = built.after(built.start, b"/b/")
    assert built.after(state, b"c") is state
    assert set(state.rules) == {NO_RULE}


def _expected_moves(built: Automaton, state: State) -> list[int]:
    """A row of the table where it is known, each move made anew."""
    row = built.moves[256 * state.number : 256 * state.number + 256]
    known = [byte for byte, after in enumerate(row) if after != UNKNOWN]
    return [after if byte not in known else built.step(state, byte).number for byte, after in enumerate(row)]


@settings(max_examples=100)
@given(RULES, st.lists(PATHS, max_size=6))
def test_a_move_that_was_learned_with_others_is_the_right_one(
    rules: list[tuple[str, str | None]], paths: list[str]
) -> None:
    built = _build(rules)
    for path in paths:
        built.match(path.encode() + b"-")
    for state in built.states[:30]:
        row = built.moves[256 * state.number : 256 * state.number + 256].tolist()
        assert row == _expected_moves(built, state)


def test_bytes_are_told_apart_where_a_condition_asks_for_the_last_one() -> None:
    built = _build([(r"/.\b[a-z]", None)])
    assert [built.match(subject) for subject in (b"/ab-", b"/@b-", b"/bb-", b"/_b-", b"/:b-")] == [-1, 0, -1, -1, 0]


def test_patterns_that_ruin_backtracking_take_no_time() -> None:
    built = _build([("(/(a*)*)*b", None), ("/(a|aa)+$", None), (r"(/?a\b?)*c", None), ("/(.*)*x(.*)*y", None)])
    start = time.process_time()
    assert built.match(b"/" + b"a" * 2000 + b"-") == NO_RULE
    assert built.match(b"/" + b"a" * 2000 + b"b-") == 0
    assert time.process_time() - start < 5


def test_repetition_of_what_may_be_empty_takes_no_more_room_than_it_is_long() -> None:
    start = time.process_time()
    assert _build([(r"/(a?){20000}", None), (r"/(\ba?){9000}", None)]).match(b"/aaaaab-") == NO_RULE
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "pattern", ["a{100001}", "((a{100}){100}){100}", "(((a?){1,50}){1,50}){1,50}", "a{4294967295}"]
)
def test_counts_that_no_path_reaches_take_no_room(pattern: str) -> None:
    assert _build([(pattern, None)]).match(b"a" * 200 + b"-") in (NO_RULE, 0)


@pytest.mark.parametrize("pattern", ["(a{1,3000}b{1,3000}){1,3000}", "((ab?){1,2000}c?){1,2000}"])
def test_repetition_is_bounded(pattern: str) -> None:
    with pytest.raises(LimitExceededError):
        _build([(pattern, None)])


def test_forgetting_states_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [("/(a|b)*abb[ab]{0,4}", None), (r"/.*\bab", "-"), ("/ab(/.*)?", None)]
    paths = [f"/{number:08b}".replace("0", "a").replace("1", "b").encode() + b"-" for number in range(256)]
    expected = [_build(rules).match(path) for path in paths]
    monkeypatch.setattr(automaton, "_WEIGHT_LIMIT", 200)
    built = _build(rules)
    assert [built.match(path) for path in paths] == expected
    assert len(built.states) < 20
    assert len(built.moves) == 256 * len(built.states)
    assert built.rules.tolist() == [rule for state in built.states for rule in state.rules]


def test_a_forgotten_state_is_still_good(monkeypatch: pytest.MonkeyPatch) -> None:
    built = _build([("/(a|b)*abb[ab]{0,4}", None), (r"/.*\bab", "-")])
    state = built.after(built.start, b"/ab")
    expected = built.after(state, b"ba").rules
    monkeypatch.setattr(automaton, "_WEIGHT_LIMIT", 0)
    built.match(b"/x-")
    assert state.number < 0
    assert built.after(state, b"ba").rules == expected
