"""What composefs-rs says of dumpfiles, images, splitstreams and `meta.json`.

The harness of `tests/interop/harness` is asked over a pipe.
"""

import os
import resource
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion

_MEMORY_BYTES: Final = 1 << 30
"""The crate trusts some sizes that it reads, and would fill the memory of the machine."""


class RefusedError(Exception):
    """composefs-rs refuses what it was given, in its words; `panicked` if it did not even do that."""

    def __init__(self, message: str, *, panicked: bool) -> None:
        super().__init__(message)
        self.panicked = panicked


class Harness:
    """A running harness; a context manager.  Every method raises RefusedError."""

    def __init__(self, program: Path, *, memory_bytes: int = _MEMORY_BYTES) -> None:
        self.program = program
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "RUST_BACKTRACE": "0"},  # a backtrace for every refusal takes very long
        )
        resource.prlimit(self._process.pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()

    def digest(self, dumpfile: bytes, version: FormatVersion, algorithm: Algorithm) -> str:
        """The digest of the image of a dumpfile, in hexadecimal."""
        return self._ask("digest", dumpfile, algorithm, version).decode()

    def image(self, dumpfile: bytes, version: FormatVersion, algorithm: Algorithm) -> bytes:
        """The image of a dumpfile."""
        return self._ask("image", dumpfile, algorithm, version)

    def check(self, image: bytes, algorithm: Algorithm) -> None:
        """Have the validating reader look at an image."""
        self._ask("check", image, algorithm)

    def tree(self, image: bytes, algorithm: Algorithm) -> bytes:
        """The dumpfile of an image."""
        return self._ask("tree", image, algorithm)

    def objects(self, image: bytes, algorithm: Algorithm) -> set[bytes]:
        """The raw digests of the objects that an image names."""
        return {bytes.fromhex(line) for line in self._ask("objects", image, algorithm).decode().split()}

    def splitstream(self, data: bytes, algorithm: Algorithm) -> list[str]:
        """What is in a splitstream, as lines; see the harness's source."""
        return self._ask("splitstream", data, algorithm).decode().split("\n")

    def label(self, root: Path, dumpfile: bytes, algorithm: Algorithm) -> tuple[int, bytes]:
        """The dumpfile of a tree with the labels of the policy in `root`, and what labelling took, in nanoseconds."""
        answer = self._ask("label", os.fsencode(root) + b"\n" + dumpfile, algorithm)
        nanoseconds, _, labelled = answer.partition(b"\n")
        return int(nanoseconds), labelled

    def metadata(self, data: bytes, algorithm: Algorithm) -> list[str]:
        """Of a `meta.json`: `read` or `write`, then the image formats with the default first, such as `V1`."""
        return self._ask("metadata", data, algorithm).decode().split()

    def _ask(
        self, command: str, payload: bytes, algorithm: Algorithm, version: FormatVersion = FormatVersion.V1
    ) -> bytes:
        question, answer = self._process.stdin, self._process.stdout
        if question is None or answer is None:
            raise ValueError("the harness has no pipes")
        question.write(f"{command} {algorithm.value} {int(version)} {len(payload)}\n".encode() + payload)
        question.flush()
        words = answer.readline().decode().split()
        if len(words) != 2:
            raise RuntimeError(f"the harness died of {command} with status {self._process.wait()}")
        data = answer.read(int(words[1]))
        if words[0] != "ok":
            raise RefusedError(data.decode(errors="replace"), panicked=words[0] == "panic")
        return data
