"""The document of a collection: what stays and why, what went or would go, as lines of JSON.

A line is an object.  What dead writers left behind comes first, then, of a dry run, the roots, then what goes:

    {"goes": "temporary", "path": "objects/.tmp-object-…", "bytes": 5}
    {"stays": "tag", "name": "os", "leads_to": "oci-manifest-sha256:…",
     "objects": 9, "bytes": 9000, "objects_alone": 2, "bytes_alone": 70}
    {"goes": "image", "path": "images/…"}
    {"goes": "stream", "path": "streams/…"}
    {"goes": "object", "digest": "sha512:…", "bytes": 5}
    {"goes": "ref", "path": "streams/refs/…"}

`stays` and `name` are those of `reasons`.  objects and bytes are what the root reaches, and how much of that no other
root does.

Last of all, unless something stopped the collection, {"end": true, "unlisted": 0}: the number of lines that found no
room.
"""

import json
from typing import Any, Final, Self

from composefsd.linux.writing import write_all
from composefsd.operations.reasons import printable, reason
from composefsd.repository.gc import Gone, What
from composefsd.repository.marks import Weight

LISTING_BYTES: Final = 32 << 20
"""The most that a listing has: some 190,000 objects with SHA-512.  It is held in memory while it can be read."""

_BUFFER_BYTES: Final = 256 << 10
_LAST_LINE_BYTES: Final = 100


class Listing:
    """Writes a listing to a file, in whole lines; what does not fit is counted.

    A witness of `repository.gc.collect`, and a context manager that writes what waits, and the last line if nothing
    stopped the collection.
    """

    def __init__(self, fd: int, *, algorithm: str, limit_bytes: int = LISTING_BYTES) -> None:
        self.unlisted = 0
        self._fd = fd
        self._algorithm = algorithm
        self._left = limit_bytes - _LAST_LINE_BYTES
        self._buffer = bytearray()

    def stays(self, weight: Weight) -> None:
        why, name = reason(weight.root)
        self._add(
            {
                "stays": why,
                "name": name,
                "leads_to": printable(weight.root.entry),
                "objects": weight.objects,
                "bytes": weight.size_bytes,
                "objects_alone": weight.objects_alone,
                "bytes_alone": weight.bytes_alone,
            }
        )

    def goes(self, gone: Gone) -> None:
        if gone.what is What.OBJECT:
            digits = gone.path.partition("/")[2].replace("/", "").lower()
            self._add({"goes": gone.what, "digest": f"{self._algorithm}:{digits}", "bytes": gone.size_bytes})
        elif gone.what is What.TEMPORARY:
            self._add({"goes": gone.what, "path": printable(gone.path), "bytes": gone.size_bytes})
        else:
            self._add({"goes": gone.what, "path": printable(gone.path)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._buffer += _line({"end": True, "unlisted": self.unlisted})
        self._flush()

    def _flush(self) -> None:
        write_all(self._fd, self._buffer)
        self._buffer = bytearray()

    def _add(self, values: dict[str, Any]) -> None:
        line = _line(values)
        if self.unlisted or len(line) > self._left:  # once a line is left out, so are all after it
            self.unlisted += 1
            return
        self._left -= len(line)
        self._buffer += line
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
