"""fs-verity by the kernel: enable it on a file, ask for a file's digest.

The request codes and structures are those of linux/fsverity.h.  All files get blocks of 4096 bytes, no salt and no
signature, as composefs asks for everywhere.
"""

import errno
import fcntl
import os
import time
from struct import Struct
from typing import Final

from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import ComposefsdError, CorruptError, LockedError, UnsupportedError, VerityRequiredError
from composefsd.linux.oserrors import translate, translated
from composefsd.verity import BLOCK_BYTES

_ENABLE: Final = Struct("=IIIIQIIQ88x")
"""struct fsverity_enable_arg: version, hash algorithm, block size, salt size, salt, signature size, 0, signature."""

_DIGEST: Final = Struct("=HH")
"""struct fsverity_digest: algorithm, size of the digest that follows; the caller sets it to the room it has."""

_ROOM_BYTES: Final = 64

_ATTEMPTS: Final = 3
_PAUSE_SECONDS: Final = 0.001

_UNSUPPORTED: Final = (errno.ENOTTY, errno.EOPNOTSUPP)


def _request(*, read: bool, size_bytes: int, number: int) -> int:
    """_IOW, or _IOWR if `read`, of asm/ioctl.h: a few architectures number the directions their own way."""
    if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")):
        direction = (0b110 if read else 0b100) << 29
    else:
        direction = (0b11 if read else 0b01) << 30
    return direction | size_bytes << 16 | ord("f") << 8 | number


ENABLE_VERITY: Final = _request(read=False, size_bytes=_ENABLE.size, number=133)
MEASURE_VERITY: Final = _request(read=True, size_bytes=_DIGEST.size, number=134)


def enable_argument(algorithm: Algorithm) -> bytes:
    """The `struct fsverity_enable_arg` that asks for `algorithm`."""
    return _ENABLE.pack(1, algorithm.kernel_number, BLOCK_BYTES, 0, 0, 0, 0, 0)


def enable(fd: int, algorithm: Algorithm) -> None:
    """Enable fs-verity on the file that `fd` has open for reading; nothing happens if the file has it already.

    Raises VerityRequiredError if the filesystem has no fs-verity, UnsupportedError if the kernel lacks `algorithm`,
    and LockedError if somebody has the file open for writing.  That is usually a child that was forked at the wrong
    moment and will close it within moments, so it is tried a few times.
    """
    argument = enable_argument(algorithm)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            fcntl.ioctl(fd, ENABLE_VERITY, argument)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return
            if error.errno != errno.ETXTBSY:
                raise _enable_error(error, algorithm) from error
            if attempt == _ATTEMPTS:
                raise LockedError("a file that shall get fs-verity is still open for writing") from error
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _enable_error(error: OSError, algorithm: Algorithm) -> ComposefsdError:
    if error.errno in _UNSUPPORTED:
        return VerityRequiredError("the filesystem has no fs-verity", errno=error.errno)
    if error.errno == errno.ENOPKG:
        return UnsupportedError(f"the kernel has no fs-verity with {algorithm.value}", errno=error.errno)
    return translate(error, "enabling fs-verity")


def measure(fd: int, algorithm: Algorithm) -> ObjectId | None:
    """The digest that the kernel holds for the file open at `fd`.

    None if the file has no fs-verity, or its filesystem does not know it.  Raises CorruptError if the file has
    fs-verity by another hash than `algorithm`, and what `translate` says for the rest.
    """
    room = bytearray(_DIGEST.size + _ROOM_BYTES)
    _DIGEST.pack_into(room, 0, 0, _ROOM_BYTES)
    try:
        fcntl.ioctl(fd, MEASURE_VERITY, room)
    except OSError as error:
        if error.errno in (errno.ENODATA, *_UNSUPPORTED):
            return None
        if error.errno == errno.EOVERFLOW:
            raise CorruptError("the file has fs-verity with a digest of more than 64 bytes") from error
        raise translate(error, "measuring fs-verity") from error
    return parse_digest(room, algorithm)


def parse_digest(room: bytes | bytearray, algorithm: Algorithm) -> ObjectId:
    """The digest in a `struct fsverity_digest`.  Raises CorruptError unless it is one of `algorithm`."""
    number, size_bytes = _DIGEST.unpack_from(room)
    if (number, size_bytes) != (algorithm.kernel_number, algorithm.digest_bytes):
        raise CorruptError(f"the file has fs-verity by hash number {number}, not by {algorithm.value}")
    return ObjectId(bytes(room[_DIGEST.size : _DIGEST.size + size_bytes]))


def probe(directory: int, algorithm: Algorithm) -> bool:
    """Whether a file in the directory open at `directory` can have fs-verity; tried on a file without a name."""
    with translated("trying whether the filesystem has fs-verity"):
        fd = _unnamed_file(directory)
        if fd is None:
            return False
        try:
            fd = reopen_for_reading(fd)
            enable(fd, algorithm)
            return measure(fd, algorithm) is not None
        except UnsupportedError:
            return False
        finally:
            os.close(fd)


def _unnamed_file(directory: int) -> int | None:
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # no filesystem has fs-verity but not O_TMPFILE
            return None
        raise


def reopen_for_reading(fd: int) -> int:
    """A new descriptor for the file at `fd`, for reading only; `fd` is closed, as the kernel asks for.

    Raises OSError, and then `fd` stays open.
    """
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return reading
