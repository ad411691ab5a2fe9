import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from composefsd.deploy import persistent
from composefsd.deploy.persistent import Directory, Layout
from composefsd.deploy.state import Deployment, DeploymentState, DeploymentType, Phase, VerityPolicy
from composefsd.deploy.volume import Volume
from composefsd.digests import ObjectId, OciDigest
from composefsd.errors import ComposefsdError

B, OTHER, ALIAS = "ab" * 64, "cd" * 64, "ef" * 64
MANIFEST = "sha256:" + "12" * 32
PLAIN = Directory()


def deployment(digest: str, seq: int, *aliases: str) -> Deployment:
    return Deployment(
        id=digest,
        seq=seq,
        phase=Phase.PLANNED,
        state=DeploymentState.PREPARED,
        type=DeploymentType.UKI,
        verity=VerityPolicy.REQUIRE,
        boot_digest=ObjectId.parse(digest),
        aliases=tuple(ObjectId.parse(alias) for alias in aliases),
        manifest_digest=OciDigest.parse(MANIFEST),
        reference="docker://example.org/os:13",
    )


@pytest.fixture
def sysroot(tmp_path: Path) -> Iterator[Volume]:
    with Volume.open(tmp_path) as opened:
        yield opened


def create(sysroot: Volume, what: Deployment, etc: Directory = PLAIN) -> None:
    persistent.create(sysroot, what, etc, PLAIN, "34" * 32)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_state_is_what_composefs_setup_root_mounts(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1), Directory(0o750))
    state = tmp_path / "state/deploy" / B
    assert mode(state) == mode(state / "etc") == 0o755
    assert mode(state / "etc/upper") == 0o750
    assert mode(state / "etc/work") == 0o700
    assert (state / "var").readlink() == Path("../../os/default/var")
    assert (state / "var").resolve() == tmp_path / "state/os/default/var"
    assert [path.name for path in (tmp_path / "state/deploy").iterdir()] == [B]
    assert persistent.find(sysroot, B) is Layout.OVERLAY


def test_the_umask_does_not_count(sysroot: Volume, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        create(sysroot, deployment(B, 1))
    finally:
        os.umask(before)
    assert mode(tmp_path / "state/os/default/var") == mode(tmp_path / "state/deploy" / B / "etc/upper") == 0o755


def test_upper_has_the_owner_of_the_image_s_etc_where_that_can_be_given(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1), Directory(0o2775, 7, 8))
    found = (tmp_path / "state/deploy" / B / "etc/upper").stat()
    owner = (7, 8) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o2775)


def test_the_origin_names_the_image_as_bootc_does(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1))
    assert (tmp_path / "state/deploy" / B / f"{B}.origin").read_text() == (
        "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://example.org/os:13\n"
        f"\n[boot]\nboot_type=uki\ndigest={'34' * 32}\n\n[image]\nmanifest_digest={MANIFEST}\n"
    )


def test_state_that_exists_keeps_its_content_and_gets_a_new_origin(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1))
    hostname = tmp_path / "state/deploy" / B / "etc/upper/hostname"
    hostname.write_text("here\n")
    create(sysroot, replace(deployment(B, 2), reference="oci:/new"))
    assert hostname.read_text() == "here\n"
    assert "oci:/new" in (tmp_path / "state/deploy" / B / f"{B}.origin").read_text()


def test_another_digest_of_the_same_boot_image_leads_to_the_same_state(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1, ALIAS))
    assert (tmp_path / "state/deploy" / ALIAS / "etc/upper").is_dir()
    persistent.remove(sysroot, deployment(B, 1, ALIAS))
    assert list((tmp_path / "state/deploy").iterdir()) == []


def test_the_state_of_another_tool_is_recognised(sysroot: Volume, tmp_path: Path) -> None:
    assert persistent.find(sysroot, B) is Layout.MISSING
    full_copy = tmp_path / "state/deploy" / B / "etc"
    full_copy.mkdir(parents=True)
    (full_copy / "passwd").touch()
    (full_copy.parent / "var").symlink_to("../../os/default/var")
    assert persistent.find(sysroot, B) is Layout.OTHER
    (tmp_path / "state/deploy" / OTHER).symlink_to(B)
    assert persistent.find(sysroot, OTHER) is Layout.OTHER


def test_var_is_shared_and_goes_with_the_last_state(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1))
    create(sysroot, deployment(OTHER, 2))
    log = tmp_path / "state/deploy" / B / "var" / "log"
    log.mkdir()
    persistent.remove(sysroot, deployment(B, 1))
    assert (tmp_path / "state/deploy" / OTHER / "var" / "log").is_dir()
    persistent.remove(sysroot, deployment(OTHER, 2))
    persistent.remove(sysroot, deployment(OTHER, 2))
    assert list((tmp_path / "state/deploy").iterdir()) == list((tmp_path / "state/os/default").iterdir()) == []


def test_trees_are_removed_however_deep_and_links_are_not_followed(
    sysroot: Volume, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "kept").touch()
    create(sysroot, deployment(B, 1))
    upper = tmp_path / "state/deploy" / B / "etc/upper"
    (upper / "link").symlink_to(outside)
    fd = os.open(upper, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python recurses, and than a path is long
        os.mkdir("deep", dir_fd=fd)
        child = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        fd = child
    os.close(fd)
    persistent.remove(sysroot, deployment(B, 1))
    assert list((tmp_path / "state/deploy").iterdir()) == []
    assert (outside / "kept").exists()


def test_what_was_interrupted_is_swept_and_nothing_else(sysroot: Volume, tmp_path: Path) -> None:
    create(sysroot, deployment(B, 1))
    deploy, shared = tmp_path / "state/deploy", tmp_path / "state/os/default"
    for path in (deploy / f".{OTHER}.2.tmp/etc/upper", deploy / f".{OTHER}.3.gone", shared / ".var.0.tmp"):
        path.mkdir(parents=True)
    (deploy / ".mine").mkdir()
    persistent.sweep(sysroot)
    assert {path.name for path in deploy.iterdir()} == {B, ".mine"}
    assert [path.name for path in shared.iterdir()] == ["var"]


class Crash(BaseException):
    pass


def test_state_is_whole_or_absent_whenever_power_fails(tmp_path: Path) -> None:
    for stop in range(1, 100):
        root = tmp_path / str(stop)
        root.mkdir()
        left = stop

        def step(_step: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash

        with Volume.open(root, step) as sysroot:
            try:
                create(sysroot, deployment(B, 1))
            except Crash:
                pass
            else:
                assert stop > 20
                return
        with Volume.open(root) as sysroot:
            assert persistent.find(sysroot, B) in (Layout.MISSING, Layout.OVERLAY)
            persistent.sweep(sysroot)
            create(sysroot, deployment(B, 1))
            assert persistent.find(sysroot, B) is Layout.OVERLAY
            assert not [path for path in root.rglob("*") if path.name.startswith(".")]
    pytest.fail("creating the state never ended")


def test_a_link_in_the_place_of_a_directory_is_refused(sysroot: Volume, tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to("/tmp")
    with pytest.raises(ComposefsdError, match="not followed"):
        create(sysroot, deployment(B, 1))
