"""The order of versions."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot.versions import compare

# from the oldest to the newest, after the UAPI Group's examples and systemd's own order
ASCENDING = [
    "~1", "", "ab", "abb", "abc", "0001", "002", "12", "122", "122.9", "123~rc1", "123", "123-a", "123-a.1",
    "123-a1", "123-a1.1", "123-3", "123-3.1", "123^patch1", "123^1", "123.a-1", "123.1-1", "123a-1", "124",
]  # fmt: skip

TEXTS = st.text("01aZ.-~^_+", max_size=8)


@pytest.mark.parametrize(("older", "newer"), list(pairwise(ASCENDING)))
def test_versions_ascend(older: str, newer: str) -> None:
    assert compare(older, newer) < 0
    assert compare(newer, older) > 0


@pytest.mark.parametrize(
    ("left", "right"), [("11", "11"), ("1_", "1"), ("+1", "1"), ("11ä", "11ö"), ("01", "1"), ("1" * 9999, "1" * 9999)]
)
def test_equal_versions(left: str, right: str) -> None:
    assert compare(left, right) == 0


@pytest.mark.parametrize(
    ("older", "newer"), [("A", "a"), ("0", "0."), ("1_", "1.2"), ("1.3.3", "1_2_3"), ("9", "10")]
)
def test_examples_of_the_specification(older: str, newer: str) -> None:
    assert compare(older, newer) < 0


@given(TEXTS, TEXTS)
def test_the_order_is_the_same_from_both_sides(left: str, right: str) -> None:
    assert (compare(left, right) > 0) == (compare(right, left) < 0)
    assert compare(left, left) == 0
