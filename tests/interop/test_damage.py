"""Every kind of damage, as cfsctl and as composefsd find it."""

import shutil
from pathlib import Path

import pytest
from interop.two_tools import Cfsctl, add_images, reference, serving, serving_what_is_there
from real.damage import DAMAGES, Damage
from real.ledger import Ledger

AT_ONCE = (
    "a byte of a file flipped",
    "a composefs image deleted",
    "a ref that leads nowhere",
    "a file among the streams",
    "something else among the objects",
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that has an image of three layers as `os`, and its layout beside it."""
    folder = tmp_path_factory.mktemp("damage")
    layout = add_images(folder / "oci")
    with serving(folder) as daemon:
        daemon.pull(reference(layout, "full"), "os")
    return folder / "repository"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_cfsctl_finds_the_damage_that_the_list_says_it_finds(
    damage: Damage, filled: Path, cfsctl: Path, tmp_path: Path, ledger: Ledger
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(filled, repository, symlinks=True)
    peer = Cfsctl(cfsctl, repository)
    assert peer.is_sound()
    damage.apply(repository)
    assert peer.is_sound() != damage.peer_finds
    result = "found by both" if damage.peer_finds else "found by composefsd alone"
    ledger.record(f"damage to a repository, {result}", "cfsctl fsck", 1, "by code and subject")


def test_findings_come_over_the_bus_by_code_and_subject_none_keeps_back_another(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "host"
    shutil.copytree(filled, folder / "repository", symlinks=True)
    some = [one for one in DAMAGES if one.name in AT_ONCE]
    told = {(one.code, one.apply(folder / "repository")) for one in some}
    with serving_what_is_there(folder) as daemon:
        found = {(code, subject) for _, code, subject, _ in daemon.findings("full")}
    assert len(told) == len(AT_ONCE)
    assert told <= found
