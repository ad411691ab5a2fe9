"""What is to be sealed: a root directory, which becomes an image of one layer, or an OCI layout or archive."""

from pathlib import Path

from composefsd.errors import SourceNotFoundError, UnsupportedError
from composefsd.oci.manifest import OciImage
from composefsd.oci.reference import Platform, Reference
from composefsd.oci.resolve import find_image
from composefsd.oci.transport import open_source
from composefsd.operations.sealing.documents import Base
from composefsd.operations.sealing.layout import StagedLayout
from composefsd.operations.sealing.packing import pack_directory
from composefsd.operations.sources import Source, SourceKind


async def read_base(text: str, platform: Platform, layout: StagedLayout) -> Base:
    """The image to be sealed, without a seal; its layers are in the layout then.

    Raises SourceNotFoundError, UnsupportedError, and whatever the source's format, or reading it, gives cause for.
    """
    source = Source.parse(text)
    if source.kind is SourceKind.FILE:
        raise SourceNotFoundError(f"{text} is neither a directory nor an OCI image", subject=text)
    if source.reference is None:
        # A link is followed only if a slash is behind it; `Path` drops the slash.
        path = Path(text)
        path = path.resolve() if text.endswith("/") else path
        layer = layout.add_layer(pack_directory(path))
        return Base.empty(platform).extended(layer, by="composefsctl: a root directory")
    async with open_source(source.reference) as opened:
        base = Base.of(await find(source.reference, platform))
        for blob in base.layers:
            layout.copy_blob(blob, await opened.open_blob(blob))
    return base


async def find(reference: Reference, platform: Platform) -> OciImage:
    """The container image of a layout or archive.  Raises UnsupportedError for an artifact."""
    async with open_source(reference) as source:
        content = await find_image(source, reference.tag, platform, None)
    if not isinstance(content, OciImage):
        raise UnsupportedError(f"{reference} is an artifact: only a container image can be sealed")
    return content
