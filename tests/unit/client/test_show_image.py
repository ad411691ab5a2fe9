"""What `inspect` prints: every link, every reason, every detail, and nothing that a terminal would obey."""

import io

from composefsd.client import show_image
from composefsd.client.properties import Properties, Value
from composefsd.client.records import Deployment, Image
from composefsd.client.render import Screen
from composefsd.service import names

HEX = "0123456789abcdef" * 8
DEPLOYED = names.deployment_path(f"{HEX}.1")
LINKS: list[Value] = [["uki-digest", "good", "names the boot image"], ["verity", "missing", "not demanded"]]


def described(**changes: Value) -> Image:
    """An image as the bus tells it."""
    values: dict[str, Value] = {
        "ManifestDigest": f"sha256:{HEX[:64]}",
        "Names": ["os", "stable"],
        "Digests": [["boot", "v1", "sha512", 4096, f"sha512:{HEX}"]],
        "Trust": ["matching", "all is right", {"uki-digest": HEX, "chain": LINKS, "ends": "ends at the UKI"}],
        "Bootable": [False, ["no kernel", "no UKI"]],
        "BootResources": [
            ["uki", "/boot/a.efi", "6.12", {"size": 2000, "signed": True, "profiles": ["one", "two"], "pcr-key": "k"}]
        ],
        "Deployments": [DEPLOYED],
    }
    return Image.parse("/image", Properties(values | changes))


def seen(found: Image, *deployments: Deployment, width: int | None = None) -> str:
    stream = io.StringIO()
    show_image.image(Screen(stream, width), found, deployments)
    return stream.getvalue()


def section(text: str, title: str) -> list[str]:
    """The lines below a title, up to the next empty line."""
    lines = text.splitlines()
    start = lines.index(title) + 1
    end = next((at for at in range(start, len(lines)) if not lines[at]), len(lines))
    return lines[start:end]


def test_all_reasons_stand_below_each_other() -> None:
    text = seen(described())
    assert "bootable  no\n" in text
    assert section(text, "why it cannot boot") == ["  no kernel", "  no UKI"]
    assert "why it cannot boot" not in seen(described(Bootable=[True, []]))


def test_the_chain_is_shown_link_by_link_with_its_end() -> None:
    text = seen(described())
    assert "trust     matching: all is right\n" in text
    assert section(text, "chain of trust") == [
        "  uki-digest  good     names the boot image",
        "  verity      missing  not demanded",
        "  ends at the UKI",
    ]
    assert "chain of trust" not in seen(described(Trust=["unsealed", "an artifact", {"chain": [], "ends": ""}]))


def test_boot_resources_are_shown_with_all_details() -> None:
    assert section(seen(described()), "boot resources") == [
        "  uki /boot/a.efi 6.12",
        "    size      2 kB",
        "    signed    yes",
        "    profiles  one",
        "              two",
        "    pcr key   k",
    ]


def test_a_deployment_is_shown_with_what_it_enforces() -> None:
    enforced: dict[str, Value] = {"type": "uki", "verity": "require", "digest": "signed", "summary": "in words"}
    deployment = Deployment.parse(
        DEPLOYED, Properties({"Id": f"{HEX}.1", "State": "armed", "Type": "uki", "Enforcement": enforced})
    )
    assert section(seen(described(), deployment), "deployments") == [
        f"  {HEX}.1",
        "    state     armed",
        "    type      uki",
        "    verity    require",
        "    digest    signed",
        "    enforces  in words",
    ]
    assert section(seen(described()), "deployments") == [f"  {HEX}.1"]


def test_digests_are_whole_on_a_terminal_too() -> None:
    text = seen(described(), width=80)
    assert f"manifest  sha256:{HEX[:64]}\n" in text
    assert f"boot v1   sha512:{HEX}\n" in text


def test_an_artifact_is_shown_by_its_type() -> None:
    artifact = Image.parse("/image", Properties({"ArtifactType": "application/vnd.example", "LayerCount": 1}))
    assert "artifact  application/vnd.example\n" in seen(artifact)
    assert "artifact" not in seen(described())


def test_hostile_text_is_escaped_wherever_it_stands() -> None:
    evil = "\x1b[2J\u202e\x07\nsecond"
    text = seen(
        described(
            Trust=["matching", evil, {"chain": [["firmware", "good", evil]], "ends": evil}],
            Bootable=[False, [evil]],
            BootResources=[["uki", evil, evil, {"title": evil, "profiles": [evil], evil: evil}]],
        )
    )
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\x1b[2J\\u202e\\x07" in text
