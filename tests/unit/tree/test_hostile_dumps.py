"""Dumps that are out to hurt: the kept corpus, what hypothesis makes of it, and dumps that are large on purpose."""

import tracemalloc
from contextlib import suppress
from io import BytesIO
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real import hostile_corpus
from real.bounds import seconds
from real.dump_mutations import LINE_EDITS, LineEdits, tampered_dump
from real.hostile_corpus import ALGORITHM, Hostile

from composefsd.erofs import FormatVersion, compute_id
from composefsd.errors import FormatError, LimitExceededError
from composefsd.tree import dumpfile, table

DUMPS: Final = hostile_corpus.dumps()
BASE: Final = (hostile_corpus.FOLDER / "base.dump").read_bytes()
ROOT: Final = b"/ 0 40755 2 0 0 0 1.0 - - -\n"


def compute(dump: bytes) -> None:
    compute_id(dumpfile.parse(BytesIO(dump), ALGORITHM), FormatVersion.V1)


@pytest.mark.parametrize("hostile", DUMPS, ids=lambda hostile: hostile.name)
def test_dumps_of_the_corpus_are_refused_with_what_is_wrong(hostile: Hostile) -> None:
    with pytest.raises((FormatError, LimitExceededError)) as caught:
        compute(hostile.data)
    assert hostile.message in str(caught.value)


@given(LINE_EDITS)
@settings(max_examples=200, deadline=None)
def test_lines_that_were_tampered_with_raise_nothing_but_two_errors(edits: LineEdits) -> None:
    with seconds(10), suppress(FormatError, LimitExceededError):
        compute(tampered_dump(BASE, edits))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_hostile_bytes_raise_nothing_but_two_errors(data: st.DataObject) -> None:
    dump = bytearray(data.draw(st.sampled_from([BASE, *(hostile.data for hostile in DUMPS)])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(dump)))
        dump[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with seconds(10), suppress(FormatError, LimitExceededError):
        dumpfile.parse(BytesIO(bytes(dump)), ALGORITHM)


# Dumps made to take memory or time


@pytest.mark.parametrize(
    "line",
    [
        b"/f 18446744073709551615 100644 1 0 0 0 1.0 - - -",
        b"/f 0 100644 4294967295 0 0 0 1.0 - - -",
        b"/f 0 100644 1 0 0 0 1.0 - - - " + b"a=b " * 20_000,
        b"/f 0 100644 1 0 0 0 1.0 - " + b"\\x41" * 50_000 + b" -",
        b"/f " + b"9" * 100_000 + b" 100644 1 0 0 0 1.0 - - -",
        b"/f 0 " + b"7" * 100_000 + b" 1 0 0 0 1.0 - - -",
        b"/d" * 100_000 + b" 0 40755 1 0 0 0 1.0 - - -",
        b" " * 200_000,
        b"\\" * 100_001 + b" 0 100644 1 0 0 0 1.0 - - -",
    ],
    ids=["size", "links", "names", "content", "decimal", "octal", "path", "blanks", "escapes"],
)
def test_a_line_takes_some_times_its_size(line: bytes) -> None:
    data = ROOT + line + b"\n"
    tracemalloc.start()
    try:
        with seconds(10), suppress(FormatError, LimitExceededError):
            dumpfile.parse(BytesIO(data), ALGORITHM)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(data) + 100_000


def test_directories_deep_in_each_other_take_no_stack() -> None:
    lines = [b"/d" * depth + b" 0 40755 2 0 0 0 1.0 - - -\n" for depth in range(1, 2000)]
    with seconds(10):
        assert len(dumpfile.parse(BytesIO(ROOT + b"".join(lines)), ALGORITHM).kind) == 2000


def test_the_whole_dump_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumpfile, "MAX_BYTES", len(ROOT) + 40)
    dumpfile.parse(BytesIO(ROOT + b"\n" * 40), ALGORITHM)
    with pytest.raises(LimitExceededError, match="line 42: more than"):
        dumpfile.parse(BytesIO(ROOT + b"\n" * 41), ALGORITHM)


def test_attributes_are_bounded_for_all_lines_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_XATTRS", 20)
    lines = [b"/%02d 0 100644 1 0 0 0 1.0 - - - a=%d b=\n" % (number, number % 10) for number in range(30)]
    dumpfile.parse(BytesIO(ROOT + b"".join(lines)), ALGORITHM)
    with pytest.raises(LimitExceededError, match="line 32: the tree has more than 20 extended attributes"):
        dumpfile.parse(BytesIO(ROOT + b"".join(lines) + b"/x 0 100644 1 0 0 0 1.0 - - - c=\n"), ALGORITHM)
