"""A digest that is expected is searched for among the variants of the image, kept if it is found, else explained."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest
from interop.oci_ours import parse_tar
from real import drifting
from real.oci_layout import Layout

from composefsd.deploy.state import VerityPolicy
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import compute_id
from composefsd.errors import DigestMismatchError
from composefsd.oci.reference import Reference
from composefsd.oci.storage import ComposefsImage, ImageKind, load_image
from composefsd.operations.check import check
from composefsd.operations.collect import collect_garbage
from composefsd.operations.deploy import deploy, plan_deploy
from composefsd.operations.expected import load_outcomes
from composefsd.operations.generate import generate, make, measure
from composefsd.operations.host import Host
from composefsd.operations.images import list_images, untag
from composefsd.operations.model import BOTH_KINDS, DeployRequest, GenerateRequest, PullRequest, PullResult
from composefsd.operations.progress import Silent, Stage
from composefsd.operations.pull import pull
from composefsd.operations.transformed import Trees
from composefsd.operations.variants import ImageOrder, variants
from composefsd.repository import Repository
from composefsd.tree import dumpfile
from composefsd.tree.merge import apply_layer
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile
from composefsd.tree.table import Tree

BOOT = frozenset({ImageKind.BOOT})
V1, V2 = FormatVersion.V1, FormatVersion.V2
ALLOWED, USER = XattrMode
DEFAULT = ImageOrder(ImageKind.BOOT, V1, ALLOWED)
VARIANTS = variants([DEFAULT])
OTHERS = [one for one in VARIANTS if one != DEFAULT]


@dataclass
class Builder:
    """Makes images of one base, sealed or not, and pulls them."""

    host: Host
    layout: Layout
    base: bytes = drifting.base()

    def pull(
        self, *arguments: str, dump: bytes | None = None, kinds: frozenset[ImageKind] = BOTH_KINDS
    ) -> PullResult:
        self.layout.add_image("os", [self.base, drifting.seal(arguments, dump)])
        reference = Reference.parse(f"oci:{self.layout.path}:os")
        request = PullRequest(reference, name="os", kinds=kinds, replace=True)
        return asyncio.run(pull(self.host, request, Silent()))

    def trees(self, algorithm: Algorithm = Algorithm.SHA512) -> Trees:
        """All that can be made of the base: /boot is empty in a boot image, so a UKI changes none of them."""
        contents: dict[bytes, bytes] = {}
        merged = Tree(algorithm)
        for tar in (self.base, drifting.seal(())):
            apply_layer(merged, *parse_tar(tar, algorithm, contents))
        merged.freeze()
        return Trees(merged, lambda digest, _limit: contents[digest])

    def digests(self, algorithm: Algorithm = Algorithm.SHA512) -> dict[ImageOrder, ObjectId]:
        """The digests of all variants."""
        trees = self.trees(algorithm)
        return {one: compute_id(trees.get(one), one.format) for one in VARIANTS}

    def dump(self, order: ImageOrder) -> bytes:
        """The dumpfile of a variant."""
        return b"".join(dumpfile.serialize(self.trees().get(order)))

    def boot_images(self, image: OciDigest) -> dict[ImageOrder, ComposefsImage]:
        """Those of the repository, as anybody loads them."""
        with Repository.open(self.host.settings.repository) as repository:
            found = load_image(repository, image).images
            assert all(repository.has_image(one.digest.digest) for one in found)
            return {ImageOrder.of(one): one for one in found if one.kind is ImageKind.BOOT}

    def findings(self) -> list[str]:
        report = asyncio.run(check(self.host, depth="full", image=None, max_findings=10, progress=Silent()))
        return [f"{one.code}: {one.message}" for one in report.findings]


@pytest.fixture
def builder(host: Host, layout: Layout) -> Builder:
    return Builder(host, layout)


def leftovers(host: Host) -> list[Path]:
    return [path for path in host.settings.repository.rglob("*") if path.name.startswith(".")]


def test_all_variants_of_an_image_that_has_everything_have_their_own_digest(builder: Builder) -> None:
    digests = builder.digests()
    assert len(digests) == len(set(digests.values())) == 8


@pytest.mark.parametrize("order", OTHERS, ids=lambda order: order.words)
def test_the_variant_that_a_uki_names_is_found_kept_and_survives(builder: Builder, order: ImageOrder) -> None:
    wanted = builder.digests()[order]
    result = builder.pull(f"composefs={wanted.hex}")
    kept = builder.boot_images(result.manifest_digest)
    assert set(kept) == {DEFAULT, order}
    assert kept[order].digest == wanted
    assert order.words in result.notes[0]
    asyncio.run(collect_garbage(builder.host, dry_run=False, progress=Silent()))
    assert set(builder.boot_images(result.manifest_digest)) == {DEFAULT, order}
    assert builder.findings() == []
    (info,) = asyncio.run(list_images(builder.host))
    assert info.trust.state == "matching"
    assert kept[order] in info.images


def test_the_argument_of_a_uki_may_name_the_format_and_more_than_one_digest(builder: Builder) -> None:
    digests = builder.digests()
    old, user = replace(DEFAULT, profile=Profile.UP_TO_0_9_2), ImageOrder(ImageKind.BOOT, V2, USER)
    named = f"composefs.digest=v1-sha512-12:{digests[old].hex}", f"composefs={digests[user].hex}"
    foreign = f"composefs.digest=v1-sha256-12:{'0' * 64}"
    result = builder.pull(foreign, *named)
    assert set(builder.boot_images(result.manifest_digest)) == {DEFAULT, old, user}
    assert len(result.notes) == 2


def test_what_a_uki_names_is_not_searched_where_the_boot_image_is_not_wanted(builder: Builder) -> None:
    wanted = builder.digests()[OTHERS[0]]
    result = builder.pull(f"composefs={wanted.hex}", kinds=frozenset({ImageKind.NORMATIVE}))
    assert builder.boot_images(result.manifest_digest) == {}
    assert result.notes == ()
    made = asyncio.run(generate(builder.host, result.manifest_digest, GenerateRequest(BOOT), Silent()))
    assert {ImageOrder.of(one) for one in made} == {DEFAULT, OTHERS[0]}


def test_the_difference_to_the_default_is_told_in_words(builder: Builder) -> None:
    builder.base = drifting.base({"boot": (7, 500_000_000)}, drifting.NO_XATTRS)
    wanted = builder.digests()[replace(DEFAULT, profile=Profile.UP_TO_0_9_2)]
    (note,) = builder.pull(f"composefs={wanted.hex}").notes
    assert note == (
        f"{wanted} is the digest of boot v1, composefs-rs up to 0.9.2: "
        "/boot: mtime 1700000000.000000000 -> 1700000000.500000000 "
        "(composefs-rs sets it to that of /usr, up to 0.9.2 without the nanoseconds)"
    )


def test_a_digest_that_no_variant_has_leaves_the_pull_alone_and_is_remembered(builder: Builder) -> None:
    result = builder.pull(f"composefs={'1' * 128}")
    assert set(builder.boot_images(result.manifest_digest)) == {DEFAULT}
    (outcome,) = load_outcomes(builder.host.settings.state, result.manifest_digest)
    assert outcome.found is None
    assert {ImageOrder.of(one): one.digest for one in outcome.tried} == builder.digests()
    assert result.notes == (outcome.text(),)
    assert "none of 8 variants" in outcome.text()
    (info,) = asyncio.run(list_images(builder.host))
    assert info.trust.state == "mismatch"


def test_a_search_in_vain_is_not_made_again_unless_asked_for(builder: Builder) -> None:
    claim = f"composefs={'1' * 128}"
    builder.pull(claim)
    assert builder.pull(claim).notes == ()
    image = builder.pull(claim).manifest_digest
    with pytest.raises(DigestMismatchError, match="none of 8 variants"):
        asyncio.run(make(builder.host, image, GenerateRequest(BOOT, expect=ObjectId.parse("1" * 128)), Silent()))


@pytest.mark.parametrize("order", OTHERS[:3], ids=lambda order: order.words)
def test_the_dumpfile_beside_the_uki_shows_what_another_tool_has_done(builder: Builder, order: ImageOrder) -> None:
    dump = builder.dump(order).replace(b"/usr/note 1 100644", b"/usr/note 1 100600")
    wanted = compute_id(dumpfile.parse(BytesIO(dump), Algorithm.SHA512), order.format)
    (note,) = builder.pull(f"composefs={wanted.hex}", dump=dump).notes
    assert f"by /boot/EFI/Linux/demo.dump, {order.words} comes closest: /usr/note: mode 0644 -> 0600" in note


@pytest.mark.parametrize(
    ("dump", "told"),
    [
        (b"garbage\n", "/boot/EFI/Linux/demo.dump cannot be compared: dump, line 1"),
        (b"/ 0 40755 2 0 0 0 0.0 - - -\n", "/boot/EFI/Linux/demo.dump is not the tree that has this digest"),
        (b"\0" * 100_000, "cannot be compared"),
    ],
    ids=["garbage", "another tree", "zeros"],
)
def test_a_dumpfile_is_not_believed_before_its_digest_fits(builder: Builder, dump: bytes, told: str) -> None:
    (note,) = builder.pull(f"composefs={'1' * 128}", dump=dump).notes
    assert told in note
    assert "closest" not in note


def test_an_image_of_the_digest_in_the_repository_shows_the_difference(builder: Builder, tmp_path: Path) -> None:
    builder.base = drifting.base(xattrs=drifting.NO_XATTRS)
    other = Builder(builder.host, Layout(tmp_path / "other"), drifting.base({"var": (9, 9)}, drifting.NO_XATTRS))
    wanted = other.pull().images
    digest = next(one.digest for one in wanted if one.kind is ImageKind.BOOT)
    (note,) = builder.pull(f"composefs={digest.hex}").notes
    assert "by the image in the repository, boot v1 comes closest, with" in note
    assert "/var: mtime" in note


@pytest.mark.parametrize("order", OTHERS, ids=lambda order: order.words)
def test_an_expected_digest_gives_its_variant_alone(builder: Builder, order: ImageOrder) -> None:
    wanted = builder.digests()[order]
    image = builder.pull(kinds=frozenset()).manifest_digest
    measured = asyncio.run(measure(builder.host, image, GenerateRequest(BOOT, expect=wanted), Silent()))
    assert [ImageOrder.of(one) for one in measured.images] == [order]
    assert builder.boot_images(image) == {}
    made = asyncio.run(make(builder.host, image, GenerateRequest(BOOT, expect=wanted), Silent()))
    assert made.images == measured.images
    assert set(builder.boot_images(image)) == {order}
    again = asyncio.run(make(builder.host, image, GenerateRequest(BOOT, expect=wanted), Silent()))
    assert (again.images, again.objects_added, again.outcomes) == (made.images, 0, ())
    assert leftovers(builder.host) == []


def test_an_expected_digest_is_found_beside_the_other_kind(builder: Builder) -> None:
    wanted = builder.digests()[OTHERS[2]]
    image = builder.pull(kinds=frozenset()).manifest_digest
    made = asyncio.run(make(builder.host, image, GenerateRequest(BOTH_KINDS, expect=wanted), Silent()))
    assert {ImageOrder.of(one) for one in made.images} == {OTHERS[2], replace(DEFAULT, kind=ImageKind.NORMATIVE)}
    assert set(builder.boot_images(image)) == {OTHERS[2]}


def test_an_expected_digest_that_nothing_has_changes_nothing(builder: Builder) -> None:
    image = builder.pull(kinds=frozenset()).manifest_digest
    objects = sorted((builder.host.settings.repository / "objects").rglob("*"))
    for work in (make, measure):
        with pytest.raises(DigestMismatchError, match="none of 8 variants") as caught:
            asyncio.run(work(builder.host, image, GenerateRequest(BOOT, expect=ObjectId.parse("2" * 128)), Silent()))
        assert all(order.words in caught.value.message for order in VARIANTS)
    assert sorted((builder.host.settings.repository / "objects").rglob("*")) == objects
    (outcome,) = load_outcomes(builder.host.settings.state, image)
    assert outcome.text() in caught.value.message


def test_a_digest_of_another_hash_is_searched_with_that_hash_alone(builder: Builder) -> None:
    wanted = builder.digests(Algorithm.SHA256)[OTHERS[2]]
    image = builder.pull(kinds=frozenset()).manifest_digest
    request = GenerateRequest(BOOT, algorithm=Algorithm.SHA256, expect=wanted)
    measured = asyncio.run(measure(builder.host, image, request, Silent()))
    assert [ImageOrder.of(one) for one in measured.images] == [OTHERS[2]]
    with pytest.raises(DigestMismatchError, match="but the images have sha512"):
        asyncio.run(make(builder.host, image, GenerateRequest(BOOT, expect=wanted), Silent()))


@pytest.mark.parametrize("times", [drifting.WHOLE, drifting.SPLIT, drifting.EQUAL], ids=["whole", "split", "equal"])
@pytest.mark.parametrize("xattrs", [drifting.NO_XATTRS, drifting.USER, drifting.MANY], ids=["none", "user", "many"])
def test_variants_have_one_digest_only_where_nothing_tells_them_apart(
    builder: Builder, times: drifting.Times, xattrs: dict[str, bytes]
) -> None:
    builder.base = drifting.base(times, xattrs, policy=False)
    digests = builder.digests()
    has_user, has_others, is_split = bool(xattrs), "trusted.left" in xattrs, times is drifting.SPLIT
    assert (digests[replace(DEFAULT, xattrs=USER)] != digests[DEFAULT]) is has_user
    assert (digests[replace(DEFAULT, profile=Profile.UP_TO_0_9_2)] != digests[DEFAULT]) is is_split
    plain = ImageOrder(ImageKind.BOOT, V2, USER)
    assert (digests[ImageOrder(ImageKind.BOOT, V2, ALLOWED, Profile.V0_7_0)] != digests[plain]) is has_others


def test_what_is_kept_of_a_search_is_read_back_or_counts_for_nothing(builder: Builder) -> None:
    image = builder.pull(f"composefs={'1' * 128}").manifest_digest
    state = builder.host.settings.state
    (path,) = (state / "images").glob("*.expected.json")
    document = json.loads(path.read_text())
    assert document["outcomes"][0]["summary"].startswith("sha512:111")
    for damage in (b"", b"{}", b"\xff", path.read_bytes()[:-20], b'{"version": 1, "outcomes": [{"wanted": 1}]}'):
        path.write_bytes(damage)
        assert load_outcomes(state, image) == ()


Make = Callable[..., Host]


@pytest.mark.parametrize("version", [V1, V2])
def test_the_search_is_the_same_in_a_repository_of_either_format(
    make_host: Make, layout: Layout, version: FormatVersion
) -> None:
    builder = Builder(make_host(formats=(version,)), layout)
    digests = builder.digests()
    for order in VARIANTS:
        result = builder.pull(f"composefs={digests[order].hex}")
        assert order in builder.boot_images(result.manifest_digest)


@pytest.mark.parametrize("order", OTHERS[2:5], ids=lambda order: order.words)
@pytest.mark.parametrize("kinds", [BOTH_KINDS, frozenset()], ids=["pulled with images", "pulled without"])
def test_a_uki_of_any_variant_is_planned_and_deployed(
    builder: Builder, order: ImageOrder, kinds: frozenset[ImageKind]
) -> None:
    host, wanted = builder.host, builder.digests()[order]
    image = builder.pull(f"composefs={wanted.hex}", kinds=kinds).manifest_digest
    request = DeployRequest(verity=VerityPolicy.DEFERRED)
    assert asyncio.run(plan_deploy(host, image, request, Silent())).objections == ()
    deployed = asyncio.run(deploy(host, image, request, Silent()))
    assert deployed.id == wanted.hex
    asyncio.run(untag(host, "os", missing_ok=False))
    asyncio.run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert builder.boot_images(image)[order].digest == wanted
    assert builder.findings() == []


class StopError(Exception):
    """Where a job is cancelled."""


class Stopping(Silent):
    """Lets a job go as far as a stage."""

    def __init__(self, last: Stage) -> None:
        self._last = last

    def stage(self, stage: Stage) -> None:
        if stage is self._last:
            raise StopError


@pytest.mark.parametrize("last", [Stage.GENERATE, Stage.COMMIT])
def test_a_search_that_is_stopped_leaves_nothing(builder: Builder, last: Stage) -> None:
    wanted = builder.digests()[OTHERS[2]]
    image = builder.pull(kinds=frozenset()).manifest_digest
    repository = builder.host.settings.repository
    before = sorted(repository.rglob("*"))
    with pytest.raises(StopError):
        asyncio.run(make(builder.host, image, GenerateRequest(BOOT, expect=wanted), Stopping(last)))
    assert sorted(repository.rglob("*")) == before
    assert builder.findings() == []


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.6, 0.9])
def test_a_search_that_is_cancelled_at_any_time_leaves_nothing(builder: Builder, seconds: float) -> None:
    image = builder.pull(kinds=frozenset()).manifest_digest
    repository = builder.host.settings.repository
    before = sorted(repository.rglob("*"))
    expect = ObjectId.parse("3" * 128)

    async def cancelled() -> None:
        request = GenerateRequest(BOOT, expect=expect)
        async with asyncio.timeout(seconds):
            await make(builder.host, image, request, Silent())

    with pytest.raises((TimeoutError, DigestMismatchError)):
        asyncio.run(cancelled())
    assert sorted(repository.rglob("*")) == before
    assert builder.findings() == []
