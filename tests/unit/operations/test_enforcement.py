"""What a deployment enforces: by the command line that is on the partition, not by what its image claims."""

from dataclasses import replace

import pytest

from composefsd.deploy.state import Deployment, DeploymentState, DeploymentType, Phase, VerityPolicy
from composefsd.digests import ObjectId, OciDigest
from composefsd.operations.enforcement import Cover, enforcement
from composefsd.operations.model import ImageInfo, LinkState, Trust, TrustLink, TrustState

BOOT = ObjectId(bytes(64))
ARGUMENT = f"composefs.digest=v1-sha512-12:{BOOT.hex}"
LAX = ARGUMENT.replace("=", "=?", 1)
BLOB = OciDigest("sha256", "cd" * 32)


def deployment(**changes: object) -> Deployment:
    made = Deployment(
        id=BOOT.hex,
        seq=1,
        phase=Phase.ENTRY,
        state=DeploymentState.ARMED,
        type=DeploymentType.TYPE1,
        verity=VerityPolicy.REQUIRE,
        boot_digest=BOOT,
        options=f"quiet {ARGUMENT}",
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields


def image(*states: LinkState) -> ImageInfo:
    """An image with UKIs of whose signatures this is known."""
    chain = tuple(TrustLink("uki-signature", state, "") for state in states)
    trust = Trust(TrustState.MATCHING, "", {}, (*chain, TrustLink("verity", LinkState.GOOD, "")), "")
    return ImageInfo(
        BLOB, BLOB, "", (), (), "", "", "", "", 0, 0, 0, (), trust, bootable=True, reasons=(), boot_resources=()
    )


@pytest.mark.parametrize(
    ("policy", "line", "verity"),
    [
        (VerityPolicy.REQUIRE, ARGUMENT, "require"),
        (VerityPolicy.DEFERRED, ARGUMENT, "deferred"),
        (VerityPolicy.OPTIONAL, LAX, "optional"),
        (VerityPolicy.REQUIRE, LAX, "optional"),  # somebody has changed the entry
        (VerityPolicy.OPTIONAL, ARGUMENT, "require"),
        (VerityPolicy.REQUIRE, f"{ARGUMENT} composefs=?{BOOT.hex}", "optional"),
        (VerityPolicy.REQUIRE, "quiet", "unknown"),
        (VerityPolicy.REQUIRE, "composefs=nonsense", "unknown"),
        (VerityPolicy.REQUIRE, None, "unknown"),
    ],
)
def test_the_mark_on_the_partition_decides_about_verity(policy: VerityPolicy, line: str | None, verity: str) -> None:
    assert enforcement(deployment(verity=policy, options=line), None, verity=True).verity == verity
    arguments = tuple((line or "").split())
    uki = deployment(verity=policy, options=None, kernel_arguments=arguments, type=DeploymentType.UKI)
    assert enforcement(uki, None, verity=True).verity == verity


@pytest.mark.parametrize(
    ("states", "cover"),
    [
        ((LinkState.GOOD,), Cover.SIGNED),
        ((LinkState.GOOD, LinkState.GOOD), Cover.SIGNED),
        ((LinkState.MISSING,), Cover.UNSIGNED),
        ((LinkState.BAD, LinkState.NOT_CHECKED), Cover.UNSIGNED),
        ((LinkState.GOOD, LinkState.MISSING), Cover.UNKNOWN),
        ((), Cover.UNKNOWN),
    ],
)
def test_a_good_signature_of_the_uki_covers_the_digest(states: tuple[LinkState, ...], cover: Cover) -> None:
    uki = deployment(type=DeploymentType.UKI, kernel_arguments=(ARGUMENT,))
    assert enforcement(uki, image(*states), verity=True).digest is cover


def test_nothing_covers_an_entry_and_of_an_image_that_is_gone_nothing_is_known() -> None:
    assert enforcement(deployment(), image(LinkState.GOOD), verity=True).digest is Cover.LOCAL
    assert enforcement(deployment(type=DeploymentType.UKI), None, verity=True).digest is Cover.UNKNOWN


def test_the_summary_tells_all_of_it_in_words() -> None:
    assert enforcement(deployment(), None, verity=True).summary == (
        "the command line demands fs-verity, and the repository demands it; "
        "the digest is in an entry that was written here, and no signature covers it"
    )
    lax = deployment(type=DeploymentType.UKI, kernel_arguments=(LAX,))
    assert enforcement(lax, image(LinkState.GOOD), verity=False).summary == (
        "the command line lets the system boot without fs-verity (`?`), and the repository does not demand it of its "
        "objects; the digest is covered by the UKI's signature"
    )
    for options in (None, ARGUMENT, LAX):
        for kind in DeploymentType:
            assert enforcement(deployment(options=options, type=kind), None, verity=False).summary
