"""All layouts that are compared."""

from pathlib import Path
from typing import Final

from real import image
from real.corpus import contents, documents, extensions, headers, hostile, links, removals, systems
from real.corpus.case import Case

CASES: Final[tuple[Case, ...]] = (
    *links.CASES,
    *removals.CASES,
    *contents.CASES,
    *headers.CASES,
    *extensions.CASES,
    *systems.CASES,
    *documents.CASES,
    *hostile.CASES,
)


def _debian(_folder: Path) -> str:
    return image.debian_image().reference()


def _demo(_folder: Path) -> str:
    return image.handmade_image("to be compared").reference()


REAL: Final = (Case("Debian 13 with a kernel and a UKI", _debian), Case("the hand-made image of the demo", _demo))
