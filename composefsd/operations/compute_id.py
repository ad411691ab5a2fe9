"""The digest or dumpfile of a tree that is in no repository: what image builders ask for, without a daemon."""

import asyncio
import tempfile
from dataclasses import dataclass
from typing import BinaryIO

from composefsd.boot.cmdline import ComposefsArgument
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import compute_id
from composefsd.oci.reference import Reference
from composefsd.operations import generate
from composefsd.operations.model import GenerateRequest
from composefsd.operations.progress import Silent
from composefsd.operations.sources import Reading, Source, copy, dump_oci, pull_into, read, scratch
from composefsd.tree import dumpfile
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile


@dataclass(frozen=True, slots=True)
class Question:
    """What to compute; a dumpfile as source is taken as it is, so it cannot be asked for its boot image.

    With `as_is` a directory is taken as it is, too, but for what makes a boot image of it.
    """

    source: str
    bootable: bool = False
    version: FormatVersion = FormatVersion.V1
    algorithm: Algorithm = Algorithm.SHA512
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
    as_is: bool = False
    profile: Profile = Profile.CURRENT

    @property
    def reading(self) -> Reading:
        return Reading(self.algorithm, self.bootable, self.xattrs, self.as_is, self.profile)

    def check(self) -> None:
        """Raises InvalidArgumentsError for what can be seen to be wrong without reading anything."""
        Source.parse(self.source).check(self.reading)


def compute(question: Question) -> ObjectId:
    """The fs-verity digest of the composefs image of the source.

    Raises InvalidArgumentsError, and whatever the source's format, or reading it, gives cause for.
    """
    source = Source.parse(question.source)
    source.check(question.reading)
    if source.reference is not None:
        return asyncio.run(_of_oci(question, source.reference))
    return compute_id(read(source, question.reading), question.version)


def karg(digest: ObjectId, version: FormatVersion) -> str:
    """The argument of a UKI's command line that names an image, spelt as composefs-rs spells it.

    Images of format 2 have the old spelling, the only one that was known when they were current.
    """
    return str(ComposefsArgument(digest, 1 if version.c_compatible else None))


def write_dumpfile(question: Question, out: BinaryIO) -> None:
    """Write the tree instead, as a dumpfile."""
    source = Source.parse(question.source)
    source.check(question.reading)
    if source.reference is None:
        out.writelines(dumpfile.serialize(read(source, question.reading)))
        return
    with tempfile.TemporaryFile() as file:
        asyncio.run(dump_oci(source.reference, question.reading, file.fileno()))
        file.seek(0)
        copy(file, out)


async def _of_oci(question: Question, reference: Reference) -> ObjectId:
    """Without the detour of a dumpfile; and the tree stays in the sandbox."""
    with scratch(question.algorithm) as host:
        image = await pull_into(host, reference)
        kinds = frozenset({question.reading.kind})
        request = GenerateRequest(kinds, question.version, xattrs=question.xattrs, profile=question.profile)
        (made,) = await generate.compute_digest(host, image, request, Silent())
        return made.digest
