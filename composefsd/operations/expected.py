"""What came of the search for a digest that somebody expects: told, and remembered.

The daemon keeps the outcome for the digests that an image's UKIs claim beside the facts of the image, in its own
state: who inspects the image learns why a digest does not fit without the search being made again.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.document import DOCUMENT_BYTES, Document
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, DigestMismatchError, FormatError
from composefsd.oci.storage import ComposefsImage, ImageKind
from composefsd.operations.facts import keep
from composefsd.operations.search import MAX_WANTED
from composefsd.operations.variants import ImageOrder, variants
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

DOCUMENT: Final = "expected-digests"
"""The document of an image that has the outcomes."""

_VERSION: Final = 1
_ALGORITHM: Final = re.compile("|".join(known.value for known in Algorithm))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the search for one digest.

    found is the variant that has it; tried are those that were made, and their digests.  closest is, where a tree
    that has the digest could be had (from source), the variant whose tree is most like it; where the digest was
    found, the one that is made by default.  lines are the first of their differences, from closest to what is wanted.
    notes are what else there is to say.
    """

    wanted: ObjectId
    found: ImageOrder | None
    tried: tuple[ComposefsImage, ...]
    closest: ImageOrder | None
    source: str
    lines: tuple[str, ...]
    differences: int
    notes: tuple[str, ...]

    @classmethod
    def from_wire(cls, value: object) -> Self:
        """From what `to_wire` or the imager gave.  Raises FormatError or LimitExceededError for anything else."""
        document = Document.of(value, "the outcome of a search")
        algorithm = Algorithm(document.text("algorithm", form=_ALGORITHM))
        return cls(
            ObjectId.parse(document.text("wanted"), algorithm),
            _order(document.child("found")) if "found" in document else None,
            tuple(
                _order(one).made(ObjectId.parse(one.text("digest"), algorithm)) for one in document.children("tried")
            ),
            _order(document.child("closest")) if "closest" in document else None,
            document.text("source", ""),
            document.texts("lines"),
            document.integer("differences", 0),
            document.texts("notes"),
        )

    def to_wire(self) -> dict[str, Any]:
        """What `from_wire` reads, and people who ask for the document: with words for each variant."""
        return {
            "wanted": self.wanted.hex,
            "algorithm": self.wanted.algorithm.value,
            "summary": self.summary,
            "found": None if self.found is None else _described(self.found),
            "tried": [_described(ImageOrder.of(one)) | {"digest": one.digest.hex} for one in self.tried],
            "closest": None if self.closest is None else _described(self.closest),
            "source": self.source,
            "lines": list(self.lines),
            "differences": self.differences,
            "notes": list(self.notes),
        }

    @property
    def image(self) -> ComposefsImage | None:
        """The variant that has the digest."""
        return None if self.found is None else self.found.made(self.wanted)

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        if self.found is not None:
            return f"{self.wanted} is the digest of {self.found.words}{self._difference()}"
        text = f"{self.wanted} is the digest of none of {len(self.tried)} variants"
        if self.closest is None:
            return text
        return f"{text}; by {self.source}, {self.closest.words} comes closest{self._difference()}"

    def text(self) -> str:
        """The outcome at length: the summary, a line for each difference or variant, and notes."""
        return "\n".join((self.summary, *self._details(), *self.notes))

    def _difference(self) -> str:
        if not self.differences:
            return ""
        if self.differences == 1 and self.lines:
            return f": {self.lines[0]}"
        return f", with {self.differences} differences"

    def _details(self) -> Iterator[str]:
        if self.closest is None:
            yield from (f"{ImageOrder.of(one).words} has {one.digest}" for one in self.tried if self.found is None)
        elif self.differences > 1:
            yield from self.lines
            if self.differences > len(self.lines):
                yield f"and {self.differences - len(self.lines)} more"


def _described(order: ImageOrder) -> dict[str, Any]:
    return order.values() | {"words": order.words}


def _order(document: Document) -> ImageOrder:
    number = document.integer("format")
    if number not in set(FormatVersion):
        raise FormatError(f"there is no format {number}")
    return ImageOrder(
        document.choice("kind", ImageKind),
        FormatVersion(number),
        document.choice("xattrs", XattrMode),
        document.choice("profile", Profile),
    )


@dataclass(frozen=True, slots=True)
class Hunt:
    """What to search an image's variants for.

    digests are those that the caller expects; with `claims` also what UKIs of the image claim, but for `held`: what
    the repository has, or what was searched for in vain already.
    """

    orders: tuple[ImageOrder, ...]
    digests: tuple[ObjectId, ...] = ()
    claims: bool = False
    held: tuple[ObjectId, ...] = ()

    @classmethod
    def of(
        cls, orders: Iterable[ImageOrder], expect: ObjectId | None, held: Iterable[ObjectId], *, claims: bool
    ) -> Self:
        """For a caller who wants `orders`, and may expect a digest."""
        return cls(variants(orders), () if expect is None else (expect,), claims, tuple(held))

    @property
    def most(self) -> int:
        """The largest number of images that can be found."""
        return min(len(self.orders), MAX_WANTED)

    def to_wire(self) -> dict[str, Any]:
        """As the imager reads it."""
        return {
            "orders": [order.values() for order in self.orders],
            "digests": [one.hex for one in self.digests],
            "claims": self.claims,
            "held": [one.hex for one in self.held],
        }


def require(expect: ObjectId, images: Iterable[ComposefsImage], outcomes: Iterable[Outcome]) -> ComposefsImage:
    """The image that has the expected digest.  Raises DigestMismatchError, which tells what the search has found."""
    outcomes = tuple(outcomes)
    found = [*images, *(one.image for one in outcomes if one.image is not None)]
    for image in found:
        if image.digest == expect:
            return image
    have = ", ".join(f"{ImageOrder.of(image).words} {image.digest}" for image in found)
    told = next((one.text() for one in outcomes if one.wanted == expect), "")
    message = f"expected {expect}, but the image gives {have}" + (f"\n{told}" if told else "")
    raise DigestMismatchError(message, expected=str(expect), actual=have)


# Keeping


def _path(state: Path, image: OciDigest) -> Path:
    return state / "images" / f"{image.algorithm}_{image.hex}.expected.json"


def load_outcomes(state: Path, image: OciDigest) -> tuple[Outcome, ...]:
    """The outcomes that are kept for an image; nothing where there are none, or none that this version can use."""
    data = outcomes_document(state, image)
    if data is None:
        return ()
    try:
        document = Document.parse(data, "the outcomes of an image")
        if document.integer("version") != _VERSION:
            return ()
        kept = document.value("outcomes")
        return tuple(map(Outcome.from_wire, kept)) if isinstance(kept, list) else ()
    except ComposefsdError:  # they can be found out again
        return ()


def outcomes_document(state: Path, image: OciDigest) -> bytes | None:
    """The outcomes as they are kept, JSON; None if there are none."""
    try:
        with _path(state, image).open("rb") as file:
            return file.read(DOCUMENT_BYTES)
    except OSError:
        return None


def save_outcomes(state: Path, image: OciDigest, outcomes: Sequence[Outcome]) -> None:
    """Keep new outcomes with those of other digests, if that is possible: they can be found out again."""
    new = {one.wanted: one for one in outcomes}
    others = [one for one in load_outcomes(state, image) if one.wanted not in new]
    kept = [*new.values(), *others][:MAX_WANTED]
    document = {"version": _VERSION, "outcomes": [one.to_wire() for one in kept]}
    keep(_path(state, image), json.dumps(document, indent=1).encode())


def forget_outcomes(state: Path, image: OciDigest) -> None:
    """Drop what was kept for an image that went."""
    with suppress(OSError):
        _path(state, image).unlink()


def in_vain(outcomes: Iterable[Outcome], orders: Iterable[ImageOrder]) -> tuple[ObjectId, ...]:
    """The digests that none of these variants has, which need not be searched for again."""
    asked = set(orders)
    return tuple(
        one.wanted for one in outcomes if one.found is None and {ImageOrder.of(image) for image in one.tried} >= asked
    )
