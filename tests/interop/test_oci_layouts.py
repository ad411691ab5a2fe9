"""What we make of an OCI layout is what composefs-rs makes of it, or the corpus says what differs and why."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product
from pathlib import Path
from typing import Any, Final

import pytest
from interop.corpus import CASES, REAL
from interop.oci_ours import Ours
from interop.oci_seen import FORMATS, Seen, difference
from interop.oci_theirs import Theirs
from real.corpus.case import Case, Verdict
from real.ledger import Ledger

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion

_DOCUMENT: Final = Path(__file__).parents[2] / "docs/interop.md"
_AT_LEAST: Final = 45

Way = tuple[Algorithm, FormatVersion]

_WAYS: Final[tuple[Way, ...]] = tuple(product(Algorithm, FORMATS))
"""Ways to pull.  A pull of ours takes most of the time, so each layout is pulled in one way, in turn.

The images of all other ways are made from what that pull has stored; composefs-rs pulls in all ways.
"""


class Sides:
    """The repositories of both sides."""

    def __init__(self, folder: Path, cfsctl: Path) -> None:
        self._folder = folder
        self._count = 0
        (folder / "theirs").mkdir()
        self._theirs = {algorithm: Theirs(cfsctl, folder / "theirs", algorithm) for algorithm in Algorithm}
        self._ours = {way: Ours(folder / f"{way[0].value}-{way[1].label}", *way) for way in _WAYS}

    def look(self, case: Case, way: Way, *, hashes: Iterable[Algorithm] = Algorithm) -> Iterator[tuple[Seen, Seen]]:
        """What we, who pull it in one way, and they make of a layout, with each hash."""
        self._count += 1
        name = f"case{self._count}"
        reference = case.build(self._folder / f"layout{self._count}")
        hangs = case.theirs is Verdict.HANGS
        with ThreadPoolExecutor() as pool:
            looking = [pool.submit(self._theirs[one].look, reference, name, hangs=hangs) for one in hashes]
            ours = self._ours[way].look(reference, name, hashes, is_hopeless=case.ours is Verdict.REFUSED)
        for algorithm, theirs in zip(hashes, looking, strict=True):
            yield ours[algorithm], theirs.result()


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory, cfsctl: Path) -> Sides:
    """Both sides; layers that several layouts have are stored once."""
    return Sides(tmp_path_factory.mktemp("sides"), cfsctl)


def _check(case: Case, ours: Seen, theirs: Seen) -> None:
    their_verdict = theirs.verdict
    if (ours.verdict, their_verdict) == (Verdict.IMAGES, Verdict.IMAGES) and ours.manifest != theirs.manifest:
        their_verdict = Verdict.ANOTHER
    told = f"ours: {ours.message}\ntheirs: {theirs.message[:2000]}"
    assert (ours.verdict, their_verdict) == (case.ours, case.theirs), told
    if case.says:
        assert re.search(case.says, ours.message, re.DOTALL), ours.message
    if case.ours is case.theirs:
        _check_equal(ours, theirs)


def _check_equal(ours: Seen, theirs: Seen) -> None:
    assert not (found := difference(ours.layers, theirs.layers)), found
    assert not (found := difference(ours.dumps, theirs.dumps)), found
    assert (ours.manifest, ours.config) == (theirs.manifest, theirs.config)
    assert ours.computed == theirs.computed
    assert ours.recorded.items() <= theirs.recorded.items()
    assert theirs.recorded.items() <= theirs.computed.items()


def _params(cases: Sequence[Case]) -> list[Any]:
    ways = cycle(_WAYS)
    return [pytest.param(case, next(ways), id=case.name.replace("/", "slash ")) for case in cases]


@pytest.mark.parametrize(("case", "way"), _params(CASES))
def test_a_layout_is_to_us_what_it_is_to_composefs_rs(case: Case, way: Way, sides: Sides) -> None:
    for ours, theirs in sides.look(case, way):
        _check(case, ours, theirs)


@pytest.mark.parametrize("way", [(Algorithm.SHA512, FormatVersion.V1), (Algorithm.SHA256, FormatVersion.V2)])
@pytest.mark.parametrize("case", REAL, ids=lambda case: case.name)
def test_a_real_system_has_the_images_that_composefs_rs_makes_of_it(case: Case, way: Way, sides: Sides) -> None:
    for ours, theirs in sides.look(case, way, hashes=way[:1]):
        _check(case, ours, theirs)


def test_the_differences_are_those_that_the_documentation_lists() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", _DOCUMENT.read_text(), re.MULTILINE)
    differing = {(case.name, case.ours.value, case.theirs.value, case.why) for case in CASES if case.why}
    assert set(rows) == differing


def test_the_corpus_is_large_and_its_names_differ(ledger: Ledger) -> None:
    cases = (*CASES, *REAL)
    assert len({case.name for case in cases}) == len(cases) >= _AT_LEAST
    differing = sum(bool(case.why) for case in cases)
    refused = [case for case in cases if case.ours in (Verdict.REFUSED, Verdict.NORMATIVE) and not case.why]
    same = len(cases) - differing - len(refused)
    result = "same digests (V1 and V2, SHA-256 and SHA-512, normative and boot), dumps and layers"
    ledger.record("OCI layouts", "cfsctl oci pull, compute-id, dump, layer", same, result)
    ledger.record(
        "OCI layouts that are refused, whole or as boot image", "cfsctl oci pull", len(refused), "both refuse"
    )
    ledger.record("OCI layouts in the table of differences", "cfsctl oci pull", differing, "differ as listed")
