"""composefs-rs: repositories of `cfsctl`, one for each hash and format."""

import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from interop.oci_seen import DIGESTS, DUMPS, FORMATS, Seen, Wanted
from real.corpus.case import Verdict

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.oci.storage import ImageKind
from composefsd.tree.normative import XattrMode

_HANG_SECONDS: Final = 300.0
_NO_ENDING_SECONDS: Final = 3.0
"""How long something may take, and after which time we believe what the corpus says: that it never ends."""

_KEYS: Final = {ImageKind.NORMATIVE: "composefs_erofs", ImageKind.BOOT: "composefs_boot_erofs"}


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended; status is None if it did not."""

    status: int | None
    output: bytes
    message: str


class Theirs:
    """The repositories of one hash."""

    def __init__(self, cfsctl: Path, folder: Path, algorithm: Algorithm) -> None:
        self._cfsctl = cfsctl
        self._folder = folder
        self.algorithm = algorithm
        for version in FORMATS:
            done = self.run(version, "init", "--insecure", f"--algorithm=fsverity-{algorithm.value}-12")
            if done.status != 0:
                raise ValueError(done.message)

    def run(self, version: FormatVersion, *arguments: str, seconds: float = _HANG_SECONDS) -> Done:
        """Run cfsctl on the repository of a format."""
        repository = self._folder / f"{self.algorithm.value}-{version.label}"
        command = [str(self._cfsctl), f"--repo={repository}", f"--erofs-version={int(version)}", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Done(None, b"", "")
        return Done(done.returncode, done.stdout, done.stderr.decode(errors="backslashreplace"))

    def _ask(self, version: FormatVersion, *arguments: str) -> bytes | None:
        """What a command writes; None if it fails."""
        done = self.run(version, *arguments)
        return done.output if done.status == 0 else None

    def pull(self, reference: str, name: str, *, hangs: bool = False) -> list[tuple[Verdict, Done]]:
        """Pull into the repository of each format."""
        seconds = _NO_ENDING_SECONDS if hangs else _HANG_SECONDS
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda version: self.pull_into(version, reference, name, seconds=seconds), FORMATS))

    def pull_into(
        self, version: FormatVersion, reference: str, name: str, *, seconds: float = _HANG_SECONDS
    ) -> tuple[Verdict, Done]:
        """Pull into the repository of a format: with a boot image, else without one."""
        done = self.run(version, "oci", "pull", "--bootable", reference, name, seconds=seconds)
        if done.status == 0:
            return Verdict.IMAGES, done
        if done.status is None:
            return Verdict.HANGS, done
        again = self.run(version, "oci", "pull", reference, name)  # of an artifact, too, it makes no boot image
        if again.status != 0:
            return Verdict.REFUSED, done
        verdict = Verdict.NORMATIVE if self._about(version, name) else Verdict.ARTIFACT
        return verdict, replace(again, message=done.message)

    def look(self, reference: str, name: str, *, hangs: bool = False) -> Seen:
        """Everything that cfsctl says about a layout."""
        pulled = self.pull(reference, name, hangs=hangs)
        verdict, done = pulled[0]
        if any(one != verdict for one, _ in pulled):
            raise ValueError(f"the verdict on {name} depends on the format")
        seen = Seen(verdict, done.message)
        if verdict in (Verdict.REFUSED, Verdict.HANGS):
            return seen
        told = dict(line.split(None, 1) for line in done.output.decode().splitlines()[:2])
        seen.manifest, seen.config = told["manifest"], told["config"]
        if verdict is not Verdict.ARTIFACT:
            self._add_images(seen, name)
        return seen

    def _add_images(self, seen: Seen, name: str) -> None:
        for version in FORMATS:
            for kind, digest in self._about(version, name).items():
                seen.recorded[str(Wanted(kind, XattrMode.ALLOWLIST_ONLY, version))] = digest
        for one in DIGESTS:
            if (computed := self.compute_id(name, one)) is not None:
                seen.computed[str(one)] = computed
        for one in DUMPS:
            if (dump := self.dump(name, one)) is not None:
                seen.dumps[str(one)] = dump
        for diff_id in self._diff_ids(name):
            seen.layers[diff_id] = self.dump_layer(FormatVersion.V1, diff_id)

    def _about(self, version: FormatVersion, name: str) -> dict[ImageKind, str]:
        """The images that a pull has recorded."""
        about = json.loads(self._ask(version, "oci", "inspect", name) or b"{}")
        return {kind: about[key] for kind, key in _KEYS.items() if about.get(key)}

    def _diff_ids(self, name: str) -> Sequence[str]:
        config = json.loads(self._ask(FormatVersion.V1, "oci", "inspect", "--config", name) or b"{}")
        diff_ids: list[str] = config["rootfs"]["diff_ids"]
        return list(dict.fromkeys(diff_ids))

    def dump_layer(self, version: FormatVersion, diff_id: str) -> bytes:
        """The dump of a stored layer."""
        return self._ask(version, "oci", "layer", diff_id, "--dumpfile") or b""

    def compute_id(self, name: str, wanted: Wanted) -> str | None:
        """The digest of an image, in hexadecimal; None if it has none."""
        found = self._ask(wanted.format, "oci", "compute-id", *_options(wanted), name)
        return None if found is None else found.decode().strip()

    def dump(self, name: str, wanted: Wanted) -> bytes | None:
        """The dumpfile of an image; None if it has none."""
        return self._ask(wanted.format, "oci", "dump", *_options(wanted), name)


def _options(wanted: Wanted) -> list[str]:
    bootable = ["--bootable"] if wanted.kind is ImageKind.BOOT else []
    return [*bootable, f"--xattrs={wanted.mode}"]
