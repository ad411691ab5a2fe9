"""What a repository holds that somebody can reach, to be compared before and after."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def files(folder: Path) -> Iterator[str]:
    """Every file and link below a folder, as a relative path."""
    for directory, _, names in os.walk(folder):
        for name in names:
            yield str((Path(directory) / name).relative_to(folder))


def links(repository: Path) -> dict[str, str]:
    """Tags, refs, and whatever else has a name: each symbolic link of the repository with its target."""
    found = (repository / name for kind in ("streams", "images") for name in files_below(repository, kind))
    return {str(path.relative_to(repository)): str(path.readlink()) for path in found if path.is_symlink()}


def files_below(repository: Path, kind: str) -> Iterator[str]:
    """The paths below one folder of the repository, relative to the repository."""
    return (f"{kind}/{name}" for name in files(repository / kind))


def objects(repository: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of modification (ns) and permissions of every object."""
    found = {}
    for name in files_below(repository, "objects"):
        info = (repository / name).lstat()
        found[name] = (info.st_size, info.st_mtime_ns, stat.S_IMODE(info.st_mode))
    return found
