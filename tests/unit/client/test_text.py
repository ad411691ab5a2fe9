"""Text for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.client.text import cut, duration, escape, one_line, size, when, when_usec, width_of


@given(st.text(max_size=40))
def test_escaped_text_controls_no_terminal(text: str) -> None:
    assert escape(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Debian 13", "Debian 13"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("two\nlines", "two\\nlines"),
        ("abc\u202edef", "abc\\u202edef"),
        ("\udcff", "\\udcff"),
        ("größe", "größe"),
    ],
)
def test_only_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_lines_of_a_message_are_joined_and_an_introduction_keeps_its_colon() -> None:
    assert one_line("cannot boot:\n  no kernel\n\nno initrd\n") == "cannot boot: no kernel; no initrd"
    assert "\n" not in one_line("a\u2028b\x85c\r\nd")


def test_sizes_have_three_digits_and_a_unit() -> None:
    sizes = [0, 999, 1000, 12_345, 999_499, 1_000_000, 312_400_000, 5_000_000_000, 2 * 10**12]
    shown = ["0 B", "999 B", "1 kB", "12.3 kB", "999 kB", "1 MB", "312 MB", "5 GB", "2.0 TB"]
    assert [size(count) for count in sizes] == shown
    assert size(None) == "-"


def test_durations_have_hours_where_there_are_any() -> None:
    assert [duration(seconds) for seconds in (0, 65, 3600 + 61)] == ["0:00", "1:05", "1:01:01"]


def test_a_time_that_no_calendar_has_is_shown_as_the_number_it_is() -> None:
    assert when(2**63) == str(2**63)
    assert when(None) == when_usec(0) == "-"


@given(st.text(max_size=30).map(escape), st.integers(1, 40))
def test_cut_text_fits(text: str, width: int) -> None:
    assert width_of(cut(text, width)) <= width


def test_wide_characters_take_two_columns() -> None:
    assert width_of("漢字") == 4
    assert width_of("e\u0301") == 1
    assert cut("漢字漢字", 5) == "漢字…"
