"""What the daemon tells, as plain records that are also the JSON of `--json`: the fields are its keys.

A field is called as on the bus, in lower case with underscores (`ManifestDigest` is `manifest_digest`).  Times ending
in `_usec` are microseconds since the epoch, `created` of an image is in seconds, sizes are bytes.  Null stands for
what this daemon does not tell, an empty string for what there is not.
"""

from dataclasses import dataclass
from typing import Final, Self

from composefsd.client.properties import NOTHING, Properties, Value

ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
"""The states that a job does not leave."""


@dataclass(frozen=True, slots=True)
class ComposefsImage:
    """A composefs image of an OCI image: kind `normative` or `boot`, format `v1` or `v2`, digest with its hash."""

    kind: str
    format: str
    hash: str
    block_size: int | None
    digest: str

    @classmethod
    def parse(cls, row: Properties) -> Self:
        return cls(
            row.text("kind"), row.text("format"), row.text("hash"), row.number("block-size"), row.text("digest")
        )


@dataclass(frozen=True, slots=True)
class BootResource:
    """A UKI, addon or kernel in an image."""

    type: str
    path: str
    kernel_version: str
    details: dict[str, Value]

    @classmethod
    def parse(cls, row: Properties) -> Self:
        return cls(row.text("type"), row.text("path"), row.text("kernel"), row.details("details"))


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a chain of trust; state is good, missing, bad, unknown or not-checked."""

    name: str
    state: str
    text: str


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether what claims the image's digest is right: unsealed, sealed, matching or mismatch.

    `chain` goes from the firmware down to the files, `ends` tells how far up it holds.
    """

    state: str
    summary: str
    evidence: dict[str, Value]
    chain: tuple[Link, ...]
    ends: str

    @classmethod
    def parse(cls, row: Properties) -> Self:
        evidence = row.dictionary("evidence")
        return cls(
            row.text("state"),
            row.text("summary"),
            evidence.without("chain", "ends"),
            tuple(
                Link(link.text("name"), link.text("state"), link.text("text"))
                for link in evidence.structs("chain", "name", "state", "text")
            ),
            evidence.text("ends"),
        )


@dataclass(frozen=True, slots=True)
class Image:
    """An OCI image of the repository; `deployments` are object paths, `reasons` tell why it is not bootable.

    `artifact_type` is empty for a container image.
    """

    path: str
    manifest_digest: str
    config_digest: str
    artifact_type: str
    names: tuple[str, ...]
    references: tuple[str, ...]
    title: str
    os: str
    os_version: str
    architecture: str
    created: int | None
    size: int | None
    layer_count: int | None
    digests: tuple[ComposefsImage, ...]
    trust: Trust
    bootable: bool | None
    reasons: tuple[str, ...]
    boot_resources: tuple[BootResource, ...]
    deployments: tuple[str, ...]

    @classmethod
    def parse(cls, path: str, values: Properties) -> Self:
        """From the properties of an Image object.  Raises AnswerError."""
        bootable = values.struct("Bootable", "flag", "reasons") or NOTHING
        digests = values.structs("Digests", "kind", "format", "hash", "block-size", "digest")
        resources = values.structs("BootResources", "type", "path", "kernel", "details")
        return cls(
            path=path,
            manifest_digest=values.text("ManifestDigest"),
            config_digest=values.text("ConfigDigest"),
            artifact_type=values.text("ArtifactType"),
            names=values.texts("Names"),
            references=values.texts("References"),
            title=values.text("Title"),
            os=values.text("Os"),
            os_version=values.text("OsVersion"),
            architecture=values.text("Architecture"),
            created=values.number("Created"),
            size=values.number("Size"),
            layer_count=values.number("LayerCount"),
            digests=tuple(ComposefsImage.parse(row) for row in digests),
            trust=Trust.parse(values.struct("Trust", "state", "summary", "evidence") or NOTHING),
            bootable=bootable.flag("flag"),
            reasons=bootable.texts("reasons"),
            boot_resources=tuple(BootResource.parse(row) for row in resources),
            deployments=values.texts("Deployments"),
        )


@dataclass(frozen=True, slots=True)
class File:
    """A file of a deployment on the boot partition; bytes is its size."""

    path: str
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What a deployment enforces: `digest` tells what covers the command line, and so the digest on it."""

    type: str
    verity: str
    digest: str
    repository_verity: bool | None
    summary: str

    @classmethod
    def parse(cls, values: Properties) -> Self:
        return cls(
            values.text("type"),
            values.text("verity"),
            values.text("digest"),
            values.flag("repository-verity"),
            values.text("summary"),
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """A boot image made bootable; tries_left and tries_done are -1 without boot counting."""

    path: str
    id: str
    state: str
    type: str
    title: str
    os_version: str
    entry: str
    image: str
    manifest_digest: str
    boot_digest: str
    kernel_arguments: tuple[str, ...]
    files: tuple[File, ...]
    created_usec: int | None
    booted: bool | None
    default: bool | None
    pinned: bool | None
    tries_left: int | None
    tries_done: int | None
    health: str
    trust: str
    enforcement: Enforcement

    @classmethod
    def parse(cls, path: str, values: Properties) -> Self:
        """From the properties of a Deployment object.  Raises AnswerError."""
        return cls(
            path=path,
            id=values.text("Id"),
            state=values.text("State"),
            type=values.text("Type"),
            title=values.text("Title"),
            os_version=values.text("OsVersion"),
            entry=values.text("Entry"),
            image=values.text("Image"),
            manifest_digest=values.text("ManifestDigest"),
            boot_digest=values.text("BootDigest"),
            kernel_arguments=values.texts("KernelArguments"),
            files=tuple(
                File(row.text("path"), row.number("bytes")) for row in values.structs("Files", "path", "bytes")
            ),
            created_usec=values.number("CreatedUSec"),
            booted=values.flag("Booted"),
            default=values.flag("Default"),
            pinned=values.flag("Pinned"),
            tries_left=values.number("TriesLeft"),
            tries_done=values.number("TriesDone"),
            health=values.text("Health"),
            trust=values.text("Trust"),
            enforcement=Enforcement.parse(values.dictionary("Enforcement")),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A job while it is remembered; `progress` is from 0 to 1 or null, `rate` is bytes a second."""

    path: str
    id: int | None
    type: str
    description: str
    state: str
    stage: str
    progress: float | None
    bytes_reused: int
    bytes_done: int
    bytes_total: int
    items_done: int
    items_total: int
    rate: int
    cancellable: bool | None
    created_usec: int | None
    started_usec: int | None
    finished_usec: int | None
    error: str
    message: str

    @classmethod
    def parse(cls, path: str, values: Properties) -> Self:
        """From the properties of a Job object.  Raises AnswerError."""
        counted = values.struct("Bytes", "reused", "done", "total") or NOTHING
        items = values.struct("Items", "done", "total") or NOTHING
        error = values.struct("Error", "name", "message") or NOTHING
        return cls(
            path=path,
            id=values.number("Id"),
            type=values.text("Type"),
            description=values.text("Description"),
            state=values.text("State"),
            stage=values.text("Stage"),
            progress=values.fraction("Progress"),
            bytes_reused=counted.number("reused") or 0,
            bytes_done=counted.number("done") or 0,
            bytes_total=counted.number("total") or 0,
            items_done=items.number("done") or 0,
            items_total=items.number("total") or 0,
            rate=values.number("Rate") or 0,
            cancellable=values.flag("Cancellable"),
            created_usec=values.number("CreatedUSec"),
            started_usec=values.number("StartedUSec"),
            finished_usec=values.number("FinishedUSec"),
            error=error.text("name"),
            message=error.text("message"),
        )


@dataclass(frozen=True, slots=True)
class Daemon:
    """The daemon itself; state is idle, busy or stopping."""

    version: str
    api_version: int | None
    features: tuple[str, ...]
    state: str
    jobs_running: int | None
    jobs_queued: int | None

    @classmethod
    def parse(cls, values: Properties) -> Self:
        """From the properties of the Manager.  Raises AnswerError."""
        return cls(
            version=values.text("Version"),
            api_version=values.number("ApiVersion"),
            features=values.texts("Features"),
            state=values.text("State"),
            jobs_running=values.number("JobsRunning"),
            jobs_queued=values.number("JobsQueued"),
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """What needs a person: an error name of the bus and a text."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Repository:
    """The repository; last_check_clean tells whether the check at last_check_usec found nothing."""

    path: str
    algorithm: str
    verity: bool | None
    writable: bool | None
    format_version: str
    image_count: int | None
    bytes_used: int | None
    bytes_free: int | None
    last_garbage_collection_usec: int | None
    last_check_usec: int | None
    last_check_clean: bool | None

    @classmethod
    def parse(cls, values: Properties) -> Self:
        """From the properties of the Repository.  Raises AnswerError."""
        check = values.struct("LastCheck", "when", "clean") or NOTHING
        return cls(
            path=values.text("Path"),
            algorithm=values.text("Algorithm"),
            verity=values.flag("Verity"),
            writable=values.flag("Writable"),
            format_version=values.text("FormatVersion"),
            image_count=values.number("ImageCount"),
            bytes_used=values.number("BytesUsed"),
            bytes_free=values.number("BytesFree"),
            last_garbage_collection_usec=values.number("LastGarbageCollection"),
            last_check_usec=check.number("when"),
            last_check_clean=check.flag("clean"),
        )


@dataclass(frozen=True, slots=True)
class Boot:
    """The boot partitions; rollback and staged are object paths of deployments, or `/` or empty for none."""

    esp: str
    xbootldr: str
    loader: str
    loader_version: str
    secure_boot: str
    staged: str
    rollback: str
    esp_bytes_free: int | None
    esp_bytes_total: int | None

    @classmethod
    def parse(cls, values: Properties) -> Self:
        """From the properties of Boot.  Raises AnswerError."""
        loader = values.struct("Loader", "kind", "version") or NOTHING
        return cls(
            esp=values.text("Esp"),
            xbootldr=values.text("Xbootldr"),
            loader=loader.text("kind"),
            loader_version=loader.text("version"),
            secure_boot=values.text("SecureBoot"),
            staged=values.text("Staged"),
            rollback=values.text("RollbackTarget"),
            esp_bytes_free=values.number("EspBytesFree"),
            esp_bytes_total=values.number("EspBytesTotal"),
        )


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that `status` shows; jobs are those that have not ended."""

    daemon: Daemon
    problems: tuple[Problem, ...]
    repository: Repository
    boot: Boot
    deployments: tuple[Deployment, ...]
    jobs: tuple[Job, ...]
