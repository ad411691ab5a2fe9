"""Documents: the bulk that a job brings, for whoever asks, while the job has its object.

A document is an anonymous file in memory.  Workers write it through its descriptor; once the job has ended it is
sealed, and readers get descriptors of their own for the same memory, so that asking again costs nothing.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final

from composefsd.errors import FormatError, LimitExceededError, NoSuchDocumentError
from composefsd.service.memfd import seal

TEXT_BYTES: Final = 4 << 20
"""What a document may have to be told as text."""

TOTAL_BYTES: Final = 64 << 20
"""What the documents of all ended jobs may have together."""


class Document:
    """A document under way, and after `seal` one that nobody can change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    def seal(self) -> None:
        """Let it be as it is for ever; whoever still writes to it fails."""
        seal(self.fd)

    def open(self) -> int:
        """A descriptor for reading, at the document's start, which the caller closes."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def text(self) -> str:
        """The whole document.  Raises LimitExceededError if it is too long for that, FormatError if it is no text."""
        size = self.size_bytes
        if size > TEXT_BYTES:
            raise LimitExceededError(
                f"the {self.name} document has {size} bytes, more than {TEXT_BYTES}; read it with OpenDocument"
            )
        try:
            return os.pread(self.fd, size, 0).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"the {self.name} document is not UTF-8; read it with OpenDocument") from error

    def close(self) -> None:
        """Let go of it; readers keep what they have."""
        os.close(self.fd)


class Documents:
    """The documents of one job."""

    def __init__(self) -> None:
        self._open: dict[str, Document] = {}
        self._sealed: dict[str, Document] = {}

    def begin(self, name: str) -> Document:
        """A new document for the job's work to write; nobody sees it before the job has ended."""
        assert name not in self._open
        document = self._open[name] = Document(name)
        return document

    def seal(self) -> None:
        """The job has ended: show what there is."""
        for name, document in self._open.items():
            document.seal()
            self._sealed[name] = document
        self._open = {}

    def find(self, name: str) -> Document:
        """A document of a job that has ended.  Raises NoSuchDocumentError."""
        if name not in self._sealed:
            there_are = ", ".join(self._sealed) or "none"
            raise NoSuchDocumentError(f"no document {name[:80]!r}; there are: {there_are}", subject=name[:80])
        return self._sealed[name]

    @property
    def size_bytes(self) -> int:
        """Of what a job that has ended keeps."""
        return sum(document.size_bytes for document in self._sealed.values())

    def close(self) -> None:
        """Let go of all."""
        for document in (*self._open.values(), *self._sealed.values()):
            document.close()
        self._open, self._sealed = {}, {}


def make_room(documents: Mapping[int, Sequence[Documents]], limit_bytes: int = TOTAL_BYTES) -> None:
    """Drop documents of ended jobs until the rest has no more than the limit.

    They are given by uid, the oldest first.  Whoever has the most loses the oldest first, so that nobody can push
    out what others wait for.
    """
    sizes = {uid: [one.size_bytes for one in those] for uid, those in documents.items()}
    while sum(map(sum, sizes.values())) > limit_bytes:
        uid = max(sizes, key=lambda uid: sum(sizes[uid]))
        oldest = next(number for number, size in enumerate(sizes[uid]) if size)
        documents[uid][oldest].close()
        sizes[uid][oldest] = 0
