"""Fetching layers, as far as it needs no worker."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, DiffId, OciDigest
from composefsd.errors import ReadOnlyError, UnsupportedError
from composefsd.oci.manifest import Descriptor, Layer, LayerForm
from composefsd.oci.transport.source import Blob
from composefsd.operations.layers import LayerFetcher, Tally
from composefsd.operations.progress import Silent
from composefsd.repository import Metadata, Repository

TAR = "application/vnd.oci.image.layer.v1.tar"


class OneBlob:
    """A source whose blobs are all one empty file."""

    name = "one blob"

    async def open_blob(self, descriptor: Descriptor) -> Blob:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        return Blob(self.fd, 0)


@pytest.mark.parametrize(
    ("media_type", "form", "error"),
    [
        (f"{TAR}+gzip", LayerForm.PACKED, ReadOnlyError),  # there is no place for the copy
        ("text/plain", LayerForm.TAR, UnsupportedError),
    ],
)
def test_a_blob_is_closed_though_no_worker_has_taken_it(
    tmp_path: Path, media_type: str, form: LayerForm, error: type[Exception]
) -> None:
    Repository.create(tmp_path / "repository", Metadata.new(Algorithm.SHA256), insecure=True).close()
    source: Any = OneBlob()
    nobody: Any = None
    layer = Layer(Descriptor(media_type, OciDigest("sha256", "0" * 64), 9, {}), DiffId("sha256", "0" * 64), form)
    with Repository.open(tmp_path / "repository", writable=False) as repository, ExitStack() as keep:
        fetcher = LayerFetcher(repository, source, nobody, nobody, Silent(), 1 << 20, keep, Tally(9))
        with pytest.raises(error):
            asyncio.run(fetcher.fetch_again(layer))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(source.fd)
