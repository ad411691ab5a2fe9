"""What the tests build once and keep: directories named by what they were made from.

They lie in `$COMPOSEFSD_CACHE`, else in `${XDG_CACHE_HOME:-~/.cache}/composefsd-tests`.  An interrupted build leaves
nothing that could be taken for a whole one, and two builders do not get into each other's way.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_KEPT: Final = 3
"""So many entries of one kind stay; those that were used longest ago go when a new one is built."""


def directory() -> Path:
    """The cache, made if it is not there."""
    if named := os.environ.get("COMPOSEFSD_CACHE"):
        path = Path(named)
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "composefsd-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def key(*parts: str | Path) -> str:
    """A short digest of texts and of the contents of files: what a cached thing was made from."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock named after `path`; the lock file stays."""
    with path.with_name(f".{path.name.rpartition('-')[0]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(path: Path) -> None:
    """Remove a tree, also one with directories that its owner may not write."""
    for folder, _, _ in os.walk(path):
        if not os.access(folder, os.W_OK | os.X_OK):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _prune(kind: str, newest: Path) -> None:
    """Forget the entries of a kind that were used longest ago."""
    entries = sorted(newest.parent.glob(f"{kind}-*"), key=lambda entry: entry.stat().st_mtime)
    for entry in [entry for entry in entries if entry != newest][: -(_KEPT - 1)]:
        remove(entry)


def ensure(kind: str, made_from: str, build: Callable[[Path], None], *, saying: str) -> Path:
    """The directory `kind-made_from`, filled by `build` if it is not there; `build` is given an empty directory.

    saying tells a person who waits for it what is being done.
    """
    path = directory() / f"{kind}-{made_from}"
    with _locked(path):
        if path.is_dir():
            os.utime(path)
            return path
        print(f"{saying} …", flush=True)  # noqa: T201
        for left in path.parent.glob(f".{kind}.*.tmp"):
            remove(left)
        work = Path(tempfile.mkdtemp(prefix=f".{kind}.", suffix=".tmp", dir=path.parent))
        work.chmod(0o755)
        try:
            build(work)
            work.rename(path)
        except BaseException:
            remove(work)
            raise
        _prune(kind, path)
    return path
