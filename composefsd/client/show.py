"""What the verbs print for people; programs take `--json`."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from composefsd.client.properties import NOTHING, Properties, Value
from composefsd.client.records import Boot, Deployment, Image, Job, Repository, Status
from composefsd.client.render import Colour, Screen, Table
from composefsd.client.text import size, when, when_usec

Fact = tuple[str, str]

_STATE_COLOURS: Final = {
    "booted": Colour.GREEN,
    "good": Colour.GREEN,
    "matching": Colour.GREEN,
    "succeeded": Colour.GREEN,
    "armed": Colour.YELLOW,
    "staged": Colour.YELLOW,
    "running": Colour.YELLOW,
    "warning": Colour.YELLOW,
    "failed": Colour.RED,
    "mismatch": Colour.RED,
    "error": Colour.RED,
}

_RESULT_ORDER: Final = (
    "deployment",
    "manifest-digest",
    "normative-digest",
    "boot-digest",
    "bytes-fetched",
    "bytes-reused",
)
_EXPECTED: Final = "expected-digests"
_RESULT_ELSEWHERE: Final = frozenset({"plan", "space", "objections", "image", "unlisted", _EXPECTED})


def _state(word: str) -> tuple[str, Colour | None]:
    return word, _STATE_COLOURS.get(word)


def facts(screen: Screen, pairs: Iterable[Fact], indent: str = "") -> None:
    """Labels and values in two columns; pairs without a value are left out."""
    shown = [(label, value) for label, value in pairs if value]
    width = max((len(label) for label, _ in shown), default=0)
    for label, value in shown:
        screen.line(f"{indent}{label:<{width}}  {value}")


def status(screen: Screen, found: Status) -> None:
    """The machine at a glance."""
    daemon = found.daemon
    facts(
        screen,
        [
            ("composefsd", f"{daemon.version}, {daemon.state}"),
            ("repository", ", ".join(_repository(found.repository))),
            ("boot", ", ".join(_boot(found.boot))),
            ("last check", _last_check(found.repository)),
        ],
    )
    if found.problems:
        screen.line()
        for problem in found.problems:
            screen.line(f"problem: {problem.message} ({problem.name.rpartition('.')[2]})", Colour.RED)
    if found.deployments:
        screen.line()
        deployments(screen, found.deployments, found.boot)
    if found.jobs:
        screen.line()
        jobs(screen, found.jobs)


def _repository(found: Repository) -> list[str]:
    verity = {True: "verity", False: "insecure (no verity)", None: ""}[found.verity]
    parts = [found.path, found.algorithm, verity, "read-only" if found.writable is False else ""]
    if found.image_count is not None:
        parts.append(f"{found.image_count} image{'' if found.image_count == 1 else 's'}")
    if found.bytes_used is not None:
        parts.append(f"{size(found.bytes_used)} used")
    if found.bytes_free is not None:
        parts.append(f"{size(found.bytes_free)} free")
    return [part for part in parts if part]


def _boot(found: Boot) -> list[str]:
    parts = [found.esp and f"ESP {found.esp}", found.xbootldr and f"XBOOTLDR {found.xbootldr}"]
    parts.append(f"{found.loader} {found.loader_version}".strip())
    if found.esp_bytes_total:
        parts.append(f"{size(found.esp_bytes_free)} of {size(found.esp_bytes_total)} free")
    if found.secure_boot:
        parts.append(f"Secure Boot {found.secure_boot}")
    return [part for part in parts if part] or ["no boot partition"]


def _last_check(found: Repository) -> str:
    if not found.last_check_usec:
        return ""
    return f"{when_usec(found.last_check_usec)}, {'clean' if found.last_check_clean else 'not clean, see fsck'}"


def images(screen: Screen, found: Sequence[Image]) -> None:
    """A row for each OCI image."""
    if not found:
        screen.line("no images")
        return
    table = Table(("NAME", "DIGEST", "TITLE", "ARCH", "SIZE", "CREATED", "BOOTABLE", "TRUST"), frozenset({"SIZE"}))
    for image in found:
        table.add(
            ", ".join(image.names),
            screen.digest(image.manifest_digest),
            image.title or image.artifact_type or image.os,
            image.architecture,
            size(image.size),
            when(image.created),
            {True: "yes", False: "no", None: ""}[image.bootable],
            _state(image.trust.state),
        )
    table.show(screen)


def deployments(screen: Screen, found: Sequence[Deployment], boot: Boot) -> None:
    """A row for each deployment, in boot order."""
    if not found:
        screen.line("no deployments")
        return
    table = Table(("DEPLOYMENT", "TITLE", "VERSION", "TYPE", "STATE", "ROLE", "TRUST", "CREATED"))
    for deployment in found:
        roles = roles_of(deployment, boot)
        table.add(
            screen.deployment(deployment.id),
            deployment.title,
            deployment.os_version,
            deployment.type,
            (_tries(deployment), _STATE_COLOURS.get(deployment.state)),
            (",".join(roles), Colour.GREEN if "booted" in roles else None),
            _state(deployment.trust),
            when_usec(deployment.created_usec),
        )
    table.show(screen)


def roles_of(deployment: Deployment, boot: Boot) -> list[str]:
    """What the deployment is to the next boots: booted, default, rollback, pinned."""
    roles = {
        "booted": deployment.booted,
        "default": deployment.default,
        "rollback": boot.rollback == deployment.path,
        "pinned": deployment.pinned,
    }
    return [role for role, holds in roles.items() if holds]


def _tries(deployment: Deployment) -> str:
    if deployment.tries_left is None or deployment.tries_left < 0:
        return deployment.state
    return f"{deployment.state}, {deployment.tries_left} tries left"


def jobs(screen: Screen, found: Sequence[Job]) -> None:
    """A row for each job."""
    if not found:
        screen.line("no jobs")
        return
    table = Table(("JOB", "TYPE", "STATE", "STAGE", "DONE", "STARTED", "DESCRIPTION"), frozenset({"JOB", "DONE"}))
    for job in found:
        done = "" if job.progress is None else f"{int(job.progress * 100)}%"
        description = f"{job.description}: {job.message}" if job.message else job.description
        started = when_usec(job.started_usec)
        table.add(str(job.id), job.type, _state(job.state), job.stage, done, started, description)
    table.show(screen)


def result(screen: Screen, values: Mapping[str, Value], intro: str | None = None) -> None:
    """What a job brought: its plan as a table, the rest as facts."""
    if intro:
        screen.line(intro)
    reader = Properties(values)
    plan(screen, reader)
    known = [name for name in _RESULT_ORDER if name in values]
    others = [name for name in values if name not in known and name not in _RESULT_ELSEWHERE]
    facts(screen, [(name.replace("-", " "), _result_value(screen, name, values[name])) for name in known + others])
    _expected(screen, reader)


def _expected(screen: Screen, reader: Properties) -> None:
    """What came of searches for digests."""
    for told in reader.texts(_EXPECTED):
        for line in told.splitlines():
            screen.line(line)


def _result_value(screen: Screen, name: str, value: Value) -> str:
    if isinstance(value, str):
        if name == "deployment":
            return screen.deployment(deployment_of(value))
        return screen.digest(value) if name.endswith("digest") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size(value) if "bytes" in name.split("-") else str(value)
    if isinstance(value, list):
        return (" " if name == "kernel-arguments" else ", ").join(str(item) for item in value)
    return str(value)


def digests(screen: Screen, values: Mapping[str, Value]) -> None:
    """The digests that were computed: as a whole, to be copied into a kernel command line."""
    pairs = [(name.replace("-", " "), str(value)) for name, value in values.items() if name != _EXPECTED]
    facts(screen, pairs)
    _expected(screen, Properties(values))


def plan(screen: Screen, reader: Properties) -> None:
    """What a deployment would do to the boot partition, and what room it would take."""
    steps = reader.structs("plan", "action", "path", "bytes")
    if steps:
        table = Table(("ACTION", "BYTES", "PATH"), frozenset({"BYTES"}))
        for step in steps:
            table.add(step.text("action"), size(step.number("bytes")), step.text("path"))
        table.show(screen)
    if space := reader.struct("space", "before", "needed", "after"):
        before, needed, after = (size(space.number(name)) for name in ("before", "needed", "after"))
        screen.line(f"needs {needed} of {before} free, leaves {after}")


def findings(screen: Screen, reader: Properties) -> None:
    """What a check found, and how much of it; after a repair what was repaired, and why the rest was not."""
    found = reader.structs("findings", "severity", "code", "subject", "message")
    total = reader.number("findings-total") or len(found)
    _repaired(screen, reader)
    if not total:
        screen.line("clean", Colour.GREEN)
        return
    table = Table(("SEVERITY", "CODE", "SUBJECT", "MESSAGE"))
    facts = reader.dictionaries("finding-facts")
    for row, fact in itertools.zip_longest(found, facts[: len(found)], fillvalue=NOTHING):
        message = "; not repaired: ".join(filter(None, (row.text("message"), fact.text("unrepaired"))))
        table.add(_state(row.text("severity")), row.text("code"), row.text("subject"), message)
    table.show(screen)
    more = f", {len(found)} of them shown" if total > len(found) else ""
    screen.line(f"{total} finding{'' if total == 1 else 's'}{more}")


def _repaired(screen: Screen, reader: Properties) -> None:
    rows = reader.structs("repaired", "code", "subject", "how")
    if not rows:
        return
    table = Table(("REPAIRED", "SUBJECT", "HOW"))
    for row in rows:
        table.add(row.text("code"), row.text("subject"), row.text("how"))
    table.show(screen)


def made_secure(screen: Screen, values: Mapping[str, Value]) -> None:
    """What enable-verity did."""
    reader = Properties(values)
    if reader.flag("already-secure"):
        screen.line("the repository was secure already")
        return
    screen.line("the repository is secure: from now on it demands fs-verity of every object", Colour.GREEN)
    facts(
        screen,
        [
            ("objects checked", str(reader.number("objects-checked"))),
            ("objects enabled", str(reader.number("objects-enabled"))),
            ("bytes checked", size(reader.number("bytes-checked"))),
        ],
    )


def deployment_of(path: str) -> str:
    """The id of a deployment from its object path: an underscore, then every other byte as `_xx`."""
    label = path.rpartition("/")[2].removeprefix("_")
    return re.sub("_([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), label)
