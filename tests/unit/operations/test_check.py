"""The codes of findings, and how many findings an answer holds."""

import re
from pathlib import Path

from composefsd.oci.fsck import Code as ImageCode
from composefsd.operations.check import Code as UseCode
from composefsd.operations.check import cut
from composefsd.operations.model import Finding
from composefsd.repository.fsck import Code

DOCUMENT = Path(__file__).parents[3] / "docs" / "fsck.md"


def finding(number: int, characters: int = 10) -> Finding:
    return Finding("error", "code", str(number), "x" * characters)


def test_every_code_is_explained_and_nothing_else() -> None:
    explained = re.findall(r"^\| `([a-z-]+)`", DOCUMENT.read_text().partition("## Codes")[2], re.MULTILINE)
    assert sorted(explained) == sorted(code.value for codes in (Code, ImageCode, UseCode) for code in codes)


def test_an_answer_holds_as_many_findings_as_were_asked_for() -> None:
    assert [one.subject for one in cut(map(finding, range(10)), 3)] == ["0", "1", "2"]
    assert cut([finding(0)], 0) == ()


def test_an_answer_holds_no_more_than_goes_over_the_bus() -> None:
    assert len(cut((finding(number, 1000) for number in range(1000)), 1000)) < 400
