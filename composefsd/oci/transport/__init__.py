"""Where an OCI image comes from: one module for each transport, all with the calls of `source.Source`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from composefsd.errors import InvalidReferenceError
from composefsd.oci.reference import Reference, Transport
from composefsd.oci.transport.archive import ArchiveSource
from composefsd.oci.transport.layout import LayoutSource
from composefsd.oci.transport.source import Source


@asynccontextmanager
async def open_source(reference: Reference) -> AsyncIterator[Source]:
    """The source that a reference points to.  Raises InvalidReferenceError, SourceNotFoundError or FormatError."""
    if not reference.path.is_absolute():
        raise InvalidReferenceError(f"{reference}: the path has to be absolute", subject=str(reference))
    source: Source
    if reference.transport is Transport.OCI:
        source = LayoutSource(reference.path)
    else:
        source = await ArchiveSource.open(reference.path)
    try:
        yield source
    finally:
        source.close()
