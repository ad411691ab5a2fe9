"""What other implementations say about the images and objects that we make of a real system."""

import random
import subprocess
from pathlib import Path

import pytest
from real import apt, image, peers
from real.stage import BIN, Stage

_OBJECTS = 100
_SEED = 20250615


@pytest.fixture(scope="module")
def mkcomposefs() -> list[str]:
    """The command of the C implementation."""
    try:
        return peers.mkcomposefs()
    except apt.UnavailableError as error:
        pytest.skip(f"needs the C implementation of composefs: {error}")


@pytest.mark.parametrize("kind", ["normative", "boot"])
def test_mkcomposefs_makes_the_same_image_of_our_dumpfile(
    kind: str, demo_image: image.DemoImage, mkcomposefs: list[str], tmp_path: Path
) -> None:
    options = ["--hash=sha256", "--format=v1", *(["--bootable"] if kind == "boot" else [])]
    ours = [str(BIN / "composefsctl"), "compute-id", *options, demo_image.reference("sha256")]
    dumpfile = tmp_path / "dumpfile"
    with dumpfile.open("wb") as output:
        subprocess.run([*ours, "--dumpfile"], check=True, stdout=output)
    if kind == "boot":
        digest = demo_image.digests["sha256"]
    else:
        digest = subprocess.run(ours, check=True, capture_output=True, text=True).stdout.strip()
    theirs = [*mkcomposefs, "--from-file", "--min-version=1", "--max-version=1", "--print-digest-only", str(dumpfile)]
    assert subprocess.run(theirs, check=True, capture_output=True, text=True).stdout.strip() == digest


@pytest.mark.parametrize("kind", ["normative", "boot"])
def test_fsck_erofs_finds_no_fault_in_an_image(kind: str, pulled: Stage) -> None:
    path = pulled.image_path(pulled.digests("demo")[kind])
    done = subprocess.run(["fsck.erofs", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_fsverity_tool_gives_objects_the_digests_that_they_are_named_by(pulled: Stage) -> None:
    objects = sorted(path for path in (pulled.repository / "objects").glob("*/*"))
    biggest = max(objects, key=lambda path: path.stat().st_size)
    sample = [biggest, *random.Random(_SEED).sample(objects, _OBJECTS)]
    command = ["fsverity", "digest", "--hash-alg=sha512", "--compact", *map(str, sample)]
    digests = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert digests == [path.parent.name + path.name for path in sample]
