"""Digests that cfsctl makes by other options are found and kept by us, and what either keeps the other one finds."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import pytest
from interop.two_tools import Cfsctl
from real import drifting, snapshot
from real.ledger import Ledger
from real.oci_layout import Layout

from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.oci.reference import Reference
from composefsd.oci.storage import ImageKind, load_image
from composefsd.operations.check import check
from composefsd.operations.generate import Made, make, measure
from composefsd.operations.host import Host, Settings
from composefsd.operations.model import BOTH_KINDS, GenerateRequest, PullRequest, PullResult
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull
from composefsd.operations.variants import ImageOrder
from composefsd.repository import Repository
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

V1, V2 = FormatVersion.V1, FormatVersion.V2
BOOT = frozenset({ImageKind.BOOT})
USUAL = ImageOrder(ImageKind.BOOT, V1, XattrMode.ALLOWLIST_ONLY)
SEARCHED = tuple(ImageOrder(ImageKind.BOOT, version, mode) for mode, version in product(XattrMode, (V1, V2)))
"""All that cfsctl searches for an expected digest."""

LAYOUTS = [
    pytest.param(times, xattrs, policy, algorithm, id=f"{when}, {which} xattrs, {algorithm.value}, policy {policy}")
    for ((when, times), (which, xattrs), policy), algorithm in zip(
        product(
            {"whole": drifting.WHOLE, "split": drifting.SPLIT, "equal": drifting.EQUAL}.items(),
            {"no": drifting.NO_XATTRS, "user": drifting.USER, "many": drifting.MANY}.items(),
            (False, True),
        ),
        cycle((Algorithm.SHA512, Algorithm.SHA256, Algorithm.SHA256, Algorithm.SHA512)),
    )
]


@dataclass(frozen=True, slots=True)
class Shared:
    """A repository that both tools work on, and a layout to pull."""

    cfsctl: Cfsctl
    host: Host
    layout: Layout

    @property
    def reference(self) -> str:
        return f"oci:{self.layout.path}:os"

    def add(self, base: bytes, *arguments: str) -> None:
        self.layout.add_image("os", [base, drifting.seal(arguments)])

    def pull(self, kinds: frozenset[ImageKind] = BOTH_KINDS) -> PullResult:
        request = PullRequest(Reference.parse(self.reference), name="os", kinds=kinds, replace=True)
        return asyncio.run(pull(self.host, request, Silent()))

    def make(self, image: OciDigest, expect: ObjectId) -> Made:
        return asyncio.run(make(self.host, image, GenerateRequest(BOOT, expect=expect), Silent()))

    def measure(self, image: OciDigest, order: ImageOrder) -> ObjectId:
        request = GenerateRequest(BOOT, order.format, None, order.xattrs, profile=order.profile)
        return asyncio.run(measure(self.host, image, request, Silent())).images[0].digest

    def boot_images(self, image: OciDigest) -> dict[ImageOrder, ObjectId]:
        with Repository.open(self.host.settings.repository) as repository:
            images = load_image(repository, image).images
            assert all(repository.has_image(one.digest.digest) for one in images)
            return {ImageOrder.of(one): one.digest for one in images if one.kind is ImageKind.BOOT}

    def linked(self) -> set[str]:
        """The boot images that cfsctl lists."""
        about = self.cfsctl.ask("oci", "inspect", "os")
        some = about["composefs_boot_erofs"] or about["composefs_erofs"]
        return {one["id"] for one in self.cfsctl.ask("oci", "linked-erofs-images", some) if one["bootable"]}

    def objects(self) -> set[str]:
        return set(snapshot.objects(self.cfsctl.repository))

    def assert_sound(self) -> None:
        report = asyncio.run(check(self.host, depth="full", image=None, max_findings=10, progress=Silent()))
        assert report.findings == ()
        assert self.cfsctl.is_sound()


def shared(folder: Path, cfsctl: Path, algorithm: Algorithm = Algorithm.SHA512) -> Shared:
    settings = Settings(
        repository=folder / "repository", sysroot=folder, esp=None, xbootldr=None, state=folder / "state",
        algorithm=algorithm, insecure=True,
    )  # fmt: skip
    return Shared(Cfsctl(cfsctl, settings.repository), Host.open(settings), Layout(folder / "oci"))


@pytest.fixture
def both(tmp_path: Path, cfsctl: Path) -> Iterator[Shared]:
    one = shared(tmp_path, cfsctl)
    one.add(drifting.base())
    yield one
    one.assert_sound()


@pytest.mark.parametrize(("times", "xattrs", "policy", "algorithm"), LAYOUTS)
def test_whatever_cfsctl_would_search_for_is_found_by_us(
    tmp_path: Path,
    cfsctl: Path,
    ledger: Ledger,
    times: drifting.Times,
    xattrs: dict[str, bytes],
    policy: bool,  # noqa: FBT001 - a parameter of pytest
    algorithm: Algorithm,
) -> None:
    both = shared(tmp_path, cfsctl, algorithm)
    base = drifting.base(times, xattrs, policy=policy)
    both.add(base)
    both.cfsctl.say("oci", "pull", both.reference, "theirs")
    theirs = {
        order: both.cfsctl.say(
            f"--erofs-version={order.format.value}", "oci", "compute-id", "--bootable", f"--xattrs={order.xattrs}",
            "theirs",
        ).decode().strip()
        for order in SEARCHED
    }  # fmt: skip
    both.add(base, *(f"composefs={digest}" for digest in theirs.values()))
    result = both.pull()
    kept = both.boot_images(result.manifest_digest)
    assert {digest.hex for digest in kept.values()} == set(theirs.values())
    assert all(digest.hex == theirs[order] for order, digest in kept.items())
    both.assert_sound()
    ledger.record("expected digests", "cfsctl oci compute-id --xattrs, V1 and V2", len(theirs), "found and kept")


@pytest.mark.parametrize("order", SEARCHED[1:], ids=lambda order: order.words)
def test_the_variant_that_we_keep_is_at_hand_for_cfsctl(both: Shared, order: ImageOrder) -> None:
    image = both.pull(BOTH_KINDS).manifest_digest
    wanted = both.measure(image, order)
    assert both.make(image, wanted).images[0].digest == wanted
    assert wanted.hex in both.linked()
    objects, images = both.objects(), set((both.cfsctl.repository / "images").iterdir())
    both.cfsctl.say("oci", "pull", "--bootable", "--expected-digest", wanted.hex, both.reference, "os")
    assert set((both.cfsctl.repository / "images").iterdir()) == images
    added = both.objects() - objects  # the streams of config and manifest, which cfsctl writes in any order
    assert all((both.cfsctl.repository / name).read_bytes().startswith(b"SplitStream") for name in added)
    assert both.boot_images(image)[order] == wanted


@pytest.mark.parametrize("order", SEARCHED[1:], ids=lambda order: order.words)
def test_the_variant_that_cfsctl_keeps_is_at_hand_for_us(both: Shared, order: ImageOrder) -> None:
    image = both.pull(frozenset()).manifest_digest
    wanted = both.measure(image, order)
    both.cfsctl.say("oci", "pull", "--bootable", "--expected-digest", wanted.hex, both.reference, "os")
    assert both.boot_images(image)[order] == wanted
    again = both.make(image, wanted)
    assert ([one.digest for one in again.images], again.outcomes) == ([wanted], ())  # known, not searched for


@pytest.mark.parametrize("profile", [Profile.UP_TO_0_9_2, Profile.V0_7_0])
@pytest.mark.parametrize("mode", XattrMode)
def test_an_image_of_an_earlier_version_survives_what_cfsctl_does(
    both: Shared, profile: Profile, mode: XattrMode
) -> None:
    order = ImageOrder(ImageKind.BOOT, V1, mode, profile)
    image = both.pull().manifest_digest
    request = GenerateRequest(BOOT, V1, None, mode, profile=profile)
    (kept,) = asyncio.run(make(both.host, image, request, Silent())).images
    other = both.measure(image, SEARCHED[-1])
    assert kept.digest.hex in both.linked()
    both.cfsctl.say("oci", "pull", "--bootable", "--expected-digest", other.hex, both.reference, "os")  # writes anew
    both.cfsctl.say("gc")
    images = both.boot_images(image)
    assert (images[order], images[SEARCHED[-1]]) == (kept.digest, other)
    assert {kept.digest.hex, other.hex} <= both.linked()
    assert both.cfsctl.ask("oci", "inspect", "os")["composefs_boot_erofs"] == images[USUAL].hex


def test_an_image_that_we_keep_by_default_is_what_cfsctl_takes(both: Shared) -> None:
    image = both.pull().manifest_digest
    old = ImageOrder(ImageKind.BOOT, V1, XattrMode.ALLOWLIST_ONLY, Profile.UP_TO_0_9_2)
    both.make(image, both.measure(image, old))
    names = both.boot_images(image)
    assert both.cfsctl.ask("oci", "inspect", "os")["composefs_boot_erofs"] == names[USUAL].hex
    assert both.cfsctl.say("oci", "compute-id", "--bootable", "os").decode().strip() == names[USUAL].hex
