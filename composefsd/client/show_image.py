"""All about one OCI image, as `inspect` prints it: what it is, what vouches for it, what in it boots, where it is.

Everything goes through `Screen.line`, which escapes it: most of it comes from the image.
"""

from collections.abc import Sequence
from typing import Final

from composefsd.client.properties import Value
from composefsd.client.records import BootResource, Deployment, Image, Trust
from composefsd.client.render import Colour, Screen
from composefsd.client.show import Fact, deployment_of, facts
from composefsd.client.text import size, when

_INDENT: Final = "  "

_COLOURS: Final = {
    "good": Colour.GREEN,
    "missing": Colour.YELLOW,
    "unknown": Colour.YELLOW,
    "not-checked": Colour.YELLOW,
    "bad": Colour.RED,
}


def image(screen: Screen, found: Image, deployments: Sequence[Deployment] = ()) -> None:
    """All about one OCI image, with digests as a whole also on a terminal."""
    facts(screen, _about(found))
    _reasons(screen, found)
    _trust(screen, found.trust)
    _resources(screen, found.boot_resources)
    _deployments(screen, found, deployments)


def _about(found: Image) -> list[Fact]:
    return [
        ("names", ", ".join(found.names)),
        ("manifest", found.manifest_digest),
        ("config", found.config_digest),
        ("artifact", found.artifact_type),
        ("pulled from", ", ".join(found.references)),
        ("title", found.title),
        ("version", found.os_version),
        ("platform", "/".join(part for part in (found.os, found.architecture) if part)),
        ("created", when(found.created) if found.created else ""),
        ("size", f"{size(found.size)} in {found.layer_count} layers" if found.layer_count is not None else ""),
        *((f"{entry.kind} {entry.format}", entry.digest) for entry in found.digests),
        ("trust", f"{found.trust.state}: {found.trust.summary}".removesuffix(": ")),
        ("bootable", {True: "yes", False: "no", None: ""}[found.bootable]),
    ]


def _reasons(screen: Screen, found: Image) -> None:
    """Why it cannot boot, one reason a line."""
    if found.reasons:
        _title(screen, "why it cannot boot")
        for reason in found.reasons:
            screen.line(f"{_INDENT}{reason}")


def _trust(screen: Screen, found: Trust) -> None:
    """The chain of trust, link by link, and where it ends."""
    if not found.chain:
        return
    _title(screen, "chain of trust")
    names = max(len(link.name) for link in found.chain)
    states = max(len(link.state) for link in found.chain)
    for link in found.chain:
        line = f"{_INDENT}{link.name:<{names}}  {link.state:<{states}}  {link.text}"
        screen.line(line, _COLOURS.get(link.state))
    if found.ends:
        screen.line(f"{_INDENT}{found.ends}")


def _resources(screen: Screen, found: Sequence[BootResource]) -> None:
    """What boots, or takes part in it, each with its details."""
    if not found:
        return
    _title(screen, "boot resources")
    for one in found:
        screen.line(f"{_INDENT}{one.type} {one.path} {one.kernel_version}".rstrip())
        facts(screen, _details(one), _INDENT * 2)


def _details(one: BootResource) -> list[Fact]:
    """Several values of one detail stand below each other."""
    found: list[Fact] = []
    for key, value in one.details.items():
        label = key.replace("_", " ")
        lines = _lines(key, value)
        found += [(label if at == 0 else " " * len(label), line) for at, line in enumerate(lines)]
    return found


def _lines(key: str, value: Value) -> list[str]:
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int):
        return [size(value) if key == "size" else str(value)]
    if isinstance(value, list):
        return [str(item) for item in value]
    return str(value).splitlines() or [""]


def _deployments(screen: Screen, found: Image, deployments: Sequence[Deployment]) -> None:
    """Where it is deployed, and what each deployment enforces."""
    if not found.deployments:
        return
    _title(screen, "deployments")
    known = {one.path: one for one in deployments}
    for path in found.deployments:
        screen.line(f"{_INDENT}{deployment_of(path)}")
        if path in known:
            facts(screen, _enforcement(known[path]), _INDENT * 2)


def _enforcement(found: Deployment) -> list[Fact]:
    enforced = found.enforcement
    return [
        ("state", found.state),
        ("type", found.type),
        ("verity", enforced.verity),
        ("digest", enforced.digest),
        ("enforces", enforced.summary),
    ]


def _title(screen: Screen, text: str) -> None:
    screen.line()
    screen.line(text, Colour.BOLD)
