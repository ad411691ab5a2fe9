"""The index of an OCI layout, and documents as bytes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from composefsd.document import Document
from composefsd.errors import FormatError
from composefsd.oci.manifest import INDEX_TYPE, REF_NAME, Descriptor
from composefsd.oci.transport.source import document_size, open_regular, read_document

INDEX: Final = "index.json"

Json = Mapping[str, object]


def descriptor_json(one: Descriptor) -> dict[str, object]:
    """A descriptor as documents have it."""
    return {"mediaType": one.media_type, "digest": str(one.digest), "size": one.size_bytes}


def serialize(document: Json) -> bytes:
    """A document as bytes, always the same ones for equal members in an equal order.

    Raises FormatError for a number that JSON has no form for.
    """
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise FormatError("a document of the image has a number that is out of range") from error


def entry(tag: str, manifest: Descriptor) -> dict[str, object]:
    """What an index says about a manifest."""
    return descriptor_json(manifest) | ({"annotations": {REF_NAME: tag}} if tag else {})


def tag_of(one: dict[str, object]) -> str:
    """The tag that an entry has, or nothing."""
    annotations = one.get("annotations")
    return str(annotations.get(REF_NAME, "")) if isinstance(annotations, dict) else ""


def serialize_index(entries: list[dict[str, object]]) -> bytes:
    """An index of these entries."""
    return serialize({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})


def read_index(layout: Path) -> list[dict[str, object]]:
    """The entries of a layout's index with all their members; none if there is no index.

    Raises FormatError, LimitExceededError or DeviceError, SourceNotFoundError for what cannot be opened.
    """
    path = layout / INDEX
    if not os.path.lexists(path):
        return []
    fd = open_regular(path, str(layout))
    try:
        data = read_document(fd, 0, document_size(fd), str(path))
    finally:
        os.close(fd)
    for one in Document.parse(data, str(path)).children("manifests"):
        Descriptor.read(one)
    manifests: list[dict[str, object]] = json.loads(data)["manifests"]
    return manifests
