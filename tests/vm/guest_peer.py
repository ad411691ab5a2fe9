"""composefs-rs and composefsd in one secure repository: what the one has made, the other takes for secure."""

import asyncio
from pathlib import Path

import pytest
from vm.guest import DATA, Made, MakeHost, findings, has_verity, tool

from composefsd.operations.progress import Silent
from composefsd.operations.verity import enable_verity
from composefsd.repository import Repository

CFSCTL = DATA / "cfsctl"
ROOTFS = str(DATA / "rootfs")
ABSENCE = DATA / "no-cfsctl"
WHY = ABSENCE.read_text() if ABSENCE.exists() else ""
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"needs cfsctl: {WHY}")


def cfsctl(root: Path, *arguments: str) -> str:
    return tool(str(CFSCTL), f"--repo={root}", *arguments)


def test_cfsctl_finds_nothing_wrong_with_a_secure_repository_of_ours(secure: Made) -> None:
    cfsctl(secure.root, "--require-verity", "fsck")


def test_cfsctl_takes_a_repository_made_secure_for_secure(insecure: Made, make_host: MakeHost) -> None:
    with pytest.raises(AssertionError, match="not initialized with fs-verity"):
        cfsctl(insecure.root, "--require-verity", "fsck")
    asyncio.run(enable_verity(make_host(), Silent()))
    cfsctl(insecure.root, "--require-verity", "fsck")


def test_we_find_nothing_wrong_with_a_secure_repository_of_cfsctl(tmp_path: Path, make_host: MakeHost) -> None:
    root = tmp_path / "repository"
    tool(str(CFSCTL), "init", str(root))
    cfsctl(root, "create-image", ROOTFS, "code")
    host = make_host()
    assert host.problems == ()
    assert findings(root) == set()
    with Repository.open(root) as repository:
        assert repository.verity


def test_an_insecure_repository_of_cfsctl_becomes_secure(tmp_path: Path, make_host: MakeHost) -> None:
    root = tmp_path / "repository"
    tool(str(CFSCTL), "init", "--insecure", str(root))
    cfsctl(root, "create-image", ROOTFS, "code")
    assert not has_verity(root / "meta.json")
    asyncio.run(enable_verity(make_host(), Silent()))
    assert has_verity(root / "meta.json")
    cfsctl(root, "--require-verity", "fsck")
    assert "code" in cfsctl(root, "images")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_an_old_repository_is_upgraded_to_the_same_metadata(
    tmp_path: Path, make_host: MakeHost, algorithm: str
) -> None:
    texts = []
    for name in ("theirs", "ours"):
        folder = tmp_path / name
        folder.mkdir()
        tool(str(CFSCTL), "init", f"--algorithm=fsverity-{algorithm}-12", str(folder / "repository"))
        cfsctl(folder / "repository", "create-image", ROOTFS, "code")
        (folder / "repository/meta.json").unlink()
    cfsctl(tmp_path / "theirs/repository", "--require-verity", "fsck")
    Repository.open(tmp_path / "ours/repository").close()
    for name in ("theirs", "ours"):
        assert has_verity(tmp_path / name / "repository/meta.json")
        texts.append((tmp_path / name / "repository/meta.json").read_bytes())
    assert texts[0] == texts[1]
    cfsctl(tmp_path / "ours/repository", "--require-verity", "fsck")
