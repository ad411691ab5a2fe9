"""fs-verity digests computed in userspace, as the kernel computes them.

The file is cut into blocks of 4096 bytes, the last one padded with zeros; each block is hashed; the hashes are
concatenated, cut and hashed again until one is left, the root hash.  The digest is the hash of a 256-byte descriptor
that holds the root hash and the file's size.  Empty files have a root hash of zeros.  Defined by the kernel
(Documentation/filesystems/fsverity.rst, `struct fsverity_descriptor`); no salt, no signature.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any, Final

from composefsd.digests import BLOCK_BITS, Algorithm, ObjectId

BLOCK_BYTES: Final = 1 << BLOCK_BITS
CHUNK_BYTES: Final = 1 << 20
"""What one read of a file takes in; a multiple of the block size."""

_ZEROS: Final = bytes(BLOCK_BYTES)
_DESCRIPTOR_BYTES: Final = 256

Buffer = bytes | bytearray | memoryview
Hash = Callable[..., Any]

_HASHES: Final[dict[Algorithm, Hash]] = {Algorithm.SHA256: hashlib.sha256, Algorithm.SHA512: hashlib.sha512}


def _level(hashed: Hash, data: Buffer) -> bytes:
    """The hashes of all blocks of `data`, concatenated."""
    full = len(data) & -BLOCK_BYTES
    digests = [hashed(data[at : at + BLOCK_BYTES]).digest() for at in range(0, full, BLOCK_BYTES)]
    if full != len(data):
        last = hashed(data[full:])
        last.update(_ZEROS[len(data) - full :])
        digests.append(last.digest())
    return b"".join(digests)


def _descriptor_digest(algorithm: Algorithm, hashed: Hash, root_hash: bytes, size_bytes: int) -> bytes:
    head = bytes((1, algorithm.kernel_number, BLOCK_BITS, 0, 0, 0, 0, 0)) + size_bytes.to_bytes(8, "little")
    return bytes(hashed((head + root_hash).ljust(_DESCRIPTOR_BYTES, b"\0")).digest())


def compute_digest(data: Buffer, algorithm: Algorithm) -> bytes:
    """The fs-verity digest of `data` as raw bytes, the form that loops over many objects want."""
    hashed, width = _HASHES[algorithm], algorithm.digest_bytes
    if not data:
        return _descriptor_digest(algorithm, hashed, bytes(width), 0)
    level = _level(hashed, memoryview(data))
    while len(level) > width:
        level = _level(hashed, level)
    return _descriptor_digest(algorithm, hashed, level, len(data))


def compute(data: Buffer, algorithm: Algorithm) -> ObjectId:
    """The fs-verity digest of `data`."""
    return ObjectId(compute_digest(data, algorithm))


def compute_file(fd: int, algorithm: Algorithm) -> ObjectId:
    """The fs-verity digest of the file open at `fd`, from its start; the offset of `fd` stays where it is."""
    hasher = Hasher(algorithm)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := os.preadv(fd, [buffer], hasher.size_bytes):
        hasher.update(buffer[:count])
    return ObjectId(hasher.digest())


class Hasher:
    """An fs-verity digest of data that arrives in pieces.

    Holds at most one block of each level of the tree: memory does not grow with the size of the file.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.size_bytes = 0
        self._algorithm = algorithm
        self._hashed = _HASHES[algorithm]
        self._partial = b""
        self._levels: list[bytearray] = [bytearray()]

    def update(self, data: Buffer) -> None:
        """Take the next bytes of the file, of any length."""
        view = memoryview(data)
        self.size_bytes += len(view)
        if self._partial:
            missing = BLOCK_BYTES - len(self._partial)
            self._partial += bytes(view[:missing])
            view = view[missing:]
            if len(self._partial) < BLOCK_BYTES:
                return
            self._push(0, self._hashed(self._partial).digest())
            self._partial = b""
        full = len(view) & -BLOCK_BYTES
        if full:
            self._push(0, _level(self._hashed, view[:full]))
        self._partial = bytes(view[full:])

    def digest(self) -> bytes:
        """The digest of all that was given; the hasher cannot be used afterwards."""
        width = self._algorithm.digest_bytes
        if self._partial:
            self._push(0, _level(self._hashed, self._partial))
        for depth, level in enumerate(self._levels):  # `_push` may add levels while we climb
            if depth == len(self._levels) - 1 and len(level) <= width:
                root = bytes(level) or bytes(width)
                return _descriptor_digest(self._algorithm, self._hashed, root, self.size_bytes)
            if level:
                rest = _level(self._hashed, level)
                level.clear()
                self._push(depth + 1, rest)
        raise AssertionError("a level was pushed below its children")

    def _push(self, depth: int, digests: bytes) -> None:
        if depth == len(self._levels):
            self._levels.append(bytearray())
        level = self._levels[depth]
        level += digests
        # A level that is exactly full may be the root's only block, so one block always waits for its successor.
        full = (len(level) - 1) & -BLOCK_BYTES
        if full > 0:
            above = _level(self._hashed, bytes(level[:full]))
            del level[:full]
            self._push(depth + 1, above)
