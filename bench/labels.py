"""What it costs to label a large system, beside composefs-rs: `make bench`.

The tree is that of a large Debian: whole packages of its archive, taken until there are enough paths.  The policy is
Debian's own.  Both sides are timed in turn, in the same run, over the same
tree in memory: from the text of the policy to the last label, neither reading the tree nor writing an image.
composefs-rs is the crate that `cfsctl` is made of, built as that is.  The labels of both have to be equal.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from real import peers, policies
from real.harness import Harness

from composefsd.boot.selabel import Policy
from composefsd.boot.transform import label
from composefsd.digests import Algorithm
from composefsd.tree import dumpfile
from composefsd.tree.table import Tree

_PATHS: Final = 280_000
_ROUNDS: Final = 7
_MEMORY_BYTES: Final = 8 << 30

_DIRECTORY: Final = "40755 2 0 0 0 0.0 - - -"
_FILE: Final = "100644 1 0 0 0 0.0 - x -"


@dataclass(frozen=True, slots=True)
class Times:
    """What each round took, in seconds."""

    ours: list[float]
    theirs: list[float]

    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def _paths(wanted: int) -> dict[str, str]:
    """Paths that whole packages of Debian install, and the directories above them; of each the rest of its dump line.

    The packages are chosen by the digests of their names.
    """
    found: dict[str, str] = {}
    for _, paths in sorted(
        policies.packaged_paths().items(), key=lambda package: sha256(package[0].encode()).digest()
    ):
        for path in paths:
            found |= {str(above): f"0 {_DIRECTORY}" for above in PurePosixPath(path).parents if above.name}
            found.setdefault(path, f"1 {_FILE}")
        if len(found) >= wanted:
            break
    return found


def _dump(paths: dict[str, str]) -> bytes:
    ordered = sorted((path.split("/"), line) for path, line in paths.items() if path)
    lines = ((f"/{'/'.join(parts)}", line) for parts, line in ordered)
    return "".join(f"{path} {line}\n" for path, line in (("/", f"0 {_DIRECTORY}"), *lines)).encode()


def _write_policy(root: Path, files: dict[str, bytes]) -> None:
    folder = root / "etc/selinux/real/contexts/files"
    folder.mkdir(parents=True)
    (root / "etc/selinux/config").write_text("SELINUXTYPE=real\n")
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _label(tree: Tree, files: dict[str, bytes]) -> tuple[float, Tree]:
    labelled = tree.fork()
    start = time.perf_counter()
    label(labelled, Policy.parse(files.get))
    return time.perf_counter() - start, labelled


def _measure(dump: bytes, files: dict[str, bytes], rounds: int) -> Times:
    """Label the tree with both, in turn.  Raises ValueError if the labels differ."""
    tree, times = dumpfile.parse(io.BytesIO(dump), Algorithm.SHA256), Times([], [])
    tree.freeze()
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory()))
        _write_policy(root, files)
        harness = stack.enter_context(Harness(peers.harness(), memory_bytes=_MEMORY_BYTES))
        for number in range(rounds):
            seconds, ours = _label(tree, files)
            nanoseconds, theirs = harness.label(root, dump, Algorithm.SHA256)
            if number == 0 and b"".join(dumpfile.serialize(ours)) != theirs:
                raise ValueError("the labels of both sides differ")
            times.ours.append(seconds)
            times.theirs.append(nanoseconds / 1e9)
    return times


def _report(times: Times) -> Iterator[str]:
    yield "round     ours   theirs    ratio"
    for number, (ours, theirs, ratio) in enumerate(zip(times.ours, times.theirs, times.ratios(), strict=True), 1):
        yield f"{number:5} {ours:7.2f}s {theirs:7.2f}s {ratio:8.2f}"
    low, median, high = min(times.ratios()), statistics.median(times.ratios()), max(times.ratios())
    yield f"ours / theirs: median {median:.2f}, from {low:.2f} to {high:.2f}"


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)  # noqa: T201


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench/labels.py", description=__doc__)
    parser.add_argument("--paths", type=int, default=_PATHS, help="how many paths the tree has (%(default)s)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="how often each side labels it (%(default)s)")
    options = parser.parse_args(arguments)
    for policy in policies.POLICIES[:1]:
        paths = _paths(options.paths)
        files, dump = policies.files(policy), _dump(paths)
        rules = sum(bool(line.strip()) and not line.startswith(b"#") for line in _rule_lines(files))
        _say([f"{len(paths):,} paths, the {rules:,} rules of {policy}"])
        _say(_report(_measure(dump, files, options.rounds)))


def _rule_lines(files: dict[str, bytes]) -> Iterator[bytes]:
    for name in ("file_contexts", "file_contexts.local", "file_contexts.homedirs"):
        yield from files.get(name, b"").splitlines()


if __name__ == "__main__":
    main(sys.argv[1:])
