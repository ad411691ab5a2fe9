"""The interface of images and jobs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final

from dbus_next import Variant

from composefsd import VERSION
from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.errors import FormatError, InvalidArgumentsError, UnsupportedError
from composefsd.oci.reference import Platform, Reference
from composefsd.operations import images
from composefsd.operations.generate import Made, make, measure
from composefsd.operations.model import (
    BOTH_KINDS,
    ComposefsImage,
    GenerateRequest,
    ImageInfo,
    ImageKind,
    PullRequest,
)
from composefsd.operations.pull import pull
from composefsd.service import names
from composefsd.service.condition import Condition
from composefsd.service.export import property_values
from composefsd.service.interface import (
    AS,
    ASV,
    TO,
    O,
    S,
    Served,
    T,
    U,
    dbus_method,
    dbus_property,
)
from composefsd.service.job import Waited
from composefsd.service.jobs import JobState, Result
from composefsd.service.meter import JobKind, Meter
from composefsd.service.options import (
    JOB_OPTIONS,
    JobKeys,
    Option,
    Options,
    arguments_of,
    flag,
    job_keys,
    number,
    parsed,
    text,
    word,
    words,
)
from composefsd.service.polkit import Action
from composefsd.service.services import Services
from composefsd.service.wire import variant
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

API_VERSION: Final = 1

Images = Annotated[list[tuple[str, tuple[str, ...], str, dict[str, Variant]]], "a(sasoa{sv})"]
Jobs = Annotated[list[tuple[int, str, str, float, str]], "a(tssdo)"]
Problems = Annotated[Sequence[tuple[str, str]], "a(ss)"]
Counters = Annotated[dict[str, int], "a{st}"]


def _digest(value: str) -> ObjectId:
    """An fs-verity digest as the bus has it, `sha512:…`, or as command lines have it, without the hash."""
    algorithm, colon, digits = value.partition(":")
    if not colon:
        return ObjectId.parse(value)
    if algorithm not in [known.value for known in Algorithm]:
        raise InvalidArgumentsError(f"{value[:80]!r} is not a digest such as sha512:…")
    return ObjectId.parse(digits, Algorithm(algorithm))


def _hash(value: str) -> Algorithm:
    if value not in [known.value for known in Algorithm]:
        raise UnsupportedError(f"{value[:80]!r} is no hash that fs-verity has", subject=value[:80])
    return Algorithm(value)


def _format(value: str) -> FormatVersion:
    try:
        return FormatVersion.from_label(value)
    except FormatError as error:
        raise UnsupportedError(error.message, **error.facts) from error


_NAME = text("name")
_REQUIRE_DIGEST = parsed("require-digest", OciDigest.parse)
_PLATFORM = parsed("platform", Platform.parse)
_GENERATE = words("generate", ImageKind)
_FORMAT = parsed("format", _format)
_REPLACE = flag("replace")
_PULL_OPTIONS: tuple[Option[Any], ...] = (_NAME, _REQUIRE_DIGEST, _PLATFORM, _GENERATE, _FORMAT, _REPLACE)
_HASH = parsed("hash", _hash)
_XATTRS = word("xattrs", XattrMode)
_EXPECT = parsed("expect", _digest)
_PROFILE = word("profile", Profile)
_MISSING_OK = flag("missing-ok")
_FORCE = flag("force")
_LIMIT = number("limit")
_AFTER = text("after")
_NAMES_ONLY = flag("names-only")
_TYPE = word("type", JobKind)
_STATE = word("state", JobState)

_ALL: Final = "all"
_KINDS: Final = {kind.value: frozenset({kind}) for kind in ImageKind} | {_ALL: BOTH_KINDS}


def _digests(made: tuple[ComposefsImage, ...]) -> dict[str, Variant]:
    return {f"{image.kind}-digest": variant("s", str(image.digest)) for image in made}


def _notes(notes: Sequence[str]) -> dict[str, Variant]:
    """What came of the search for digests that somebody expects."""
    return {"expected-digests": variant("as", list(notes))} if notes else {}


def _made(made: Made) -> dict[str, Variant]:
    return _digests(made.images) | _notes([one.text() for one in made.outcomes])


def _label(image: ImageInfo) -> str:
    return image.names[0] if image.names else f"{image.manifest_digest.algorithm}:{image.manifest_digest.hex[:12]}"


def _generate_request(kind: str, options: Mapping[str, Variant]) -> tuple[GenerateRequest, JobKeys]:
    given = Options(options, _FORMAT, _HASH, _XATTRS, _EXPECT, _PROFILE, *JOB_OPTIONS)
    if kind not in _KINDS:
        raise InvalidArgumentsError(f"{kind[:80]!r} is none of {', '.join(_KINDS)}")
    request = GenerateRequest(
        _KINDS[kind],
        given.get(_FORMAT, None),
        given.get(_HASH, None),
        given.get(_XATTRS, XattrMode.ALLOWLIST_ONLY),
        given.get(_EXPECT, None),
        given.get(_PROFILE, Profile.CURRENT),
    )
    return request, job_keys(given)


class Manager(Served, interface=names.MANAGER):
    """Images and jobs on the bus."""

    def __init__(self, services: Services, condition: Condition) -> None:
        super().__init__(services.tree, names.ROOT_PATH)
        self._services = services
        self._host = services.host
        self._condition = condition
        self._is_stopping = False

    def stopping(self) -> None:
        """Show that the daemon is about to leave."""
        self._is_stopping = True
        self.changed("State")

    # Bringing images in

    @dbus_method("Pull")
    async def pull(self, reference: S, options: ASV) -> TO:
        """Start pulling `reference`."""
        given = Options(options, *_PULL_OPTIONS, *JOB_OPTIONS)
        keys, source = job_keys(given), Reference.parse(reference)
        request = PullRequest(
            source,
            given.get(_NAME, None),
            given.get(_REQUIRE_DIGEST, None),
            given.get(_PLATFORM, None),
            given.get(_GENERATE, BOTH_KINDS),
            self._host.check_format(given.get(_FORMAT, None)),
            given.get(_REPLACE, default=False),
        )
        images.check_name(request.name or str(source))
        caller = await self._services.callers.identify()
        digest = "" if request.require_digest is None else str(request.require_digest)
        details = {"reference": str(source), "name": request.name or str(source), "digest": digest}
        await self._services.polkit.require(Action.PULL, caller, details)
        arguments = arguments_of(options, reference=str(source))
        return await self._services.start(
            JobKind.PULL, caller, keys, f"Pull {source}", arguments, partial(self._pull, request)
        )

    async def _pull(self, request: PullRequest, meter: Meter) -> Result:
        done = await pull(self._host, request, meter)
        tally = self._services.tally
        tally.add("bytes-fetched", done.bytes_fetched)
        tally.add("bytes-reused", done.bytes_reused)
        tally.add("objects-added", done.objects_added)
        await self._services.catalog.refresh()
        return (
            {
                "manifest-digest": variant("s", str(done.manifest_digest)),
                "image": variant("o", names.image_path(done.manifest_digest)),
                "bytes-fetched": variant("t", done.bytes_fetched),
                "bytes-reused": variant("t", done.bytes_reused),
                "objects-added": variant("t", done.objects_added),
            }
            | _digests(done.images)
            | _notes(done.notes)
        )

    # Making images of them

    @dbus_method("Generate")
    async def generate(self, image: S, kind: S, options: ASV) -> TO:
        """Start building composefs images of a stored OCI image."""
        request, keys = _generate_request(kind, options)
        self._host.check_format(request.format, request.algorithm)
        found = await self._services.catalog.find_image(image)
        caller = await self._services.callers.identify()
        details = {"image": str(found.manifest_digest), "kind": kind}
        await self._services.polkit.require(Action.GENERATE, caller, details)
        return await self._services.start(
            JobKind.GENERATE, caller, keys, f"Generate {kind} of {_label(found)}",
            arguments_of(options, image=image, kind=kind), partial(self._generate, found.manifest_digest, request),
        )  # fmt: skip

    async def _generate(self, image: OciDigest, request: GenerateRequest, meter: Meter) -> Result:
        made = await make(self._host, image, request, meter)
        await self._services.catalog.refresh()
        return _made(made)

    @dbus_method("ComputeDigest")
    async def compute_digest(self, image: S, kind: S, options: ASV) -> TO:
        """Start computing the digests that these images would have."""
        request, keys = _generate_request(kind, options)
        found = await self._services.catalog.find_image(image)
        caller = await self._services.callers.identify()
        await self._services.polkit.require(Action.COMPUTE, caller, {"image": str(found.manifest_digest)})
        return await self._services.start(
            JobKind.COMPUTE, caller, keys, f"Compute {kind} of {_label(found)}",
            arguments_of(options, image=image, kind=kind), partial(self._compute, found.manifest_digest, request),
        )  # fmt: skip

    async def _compute(self, image: OciDigest, request: GenerateRequest, meter: Meter) -> Result:
        return _made(await measure(self._host, image, request, meter))

    # Naming and removing

    @dbus_method("Tag")
    async def tag(self, image: S, name: S, options: ASV) -> None:
        """Give an image a name."""
        replace = Options(options, _REPLACE).get(_REPLACE, default=False)
        images.check_name(name)
        found = await self._services.catalog.find_image(image)
        caller = await self._services.callers.identify()
        details = {"image": str(found.manifest_digest), "name": name}
        await self._services.polkit.require(Action.TAG, caller, details)
        await images.tag(self._host, found.manifest_digest, name, replace=replace)
        await self._services.catalog.refresh()

    @dbus_method("Untag")
    async def untag(self, name: S, options: ASV) -> None:
        """Take a name away."""
        missing_ok = Options(options, _MISSING_OK).get(_MISSING_OK, default=False)
        images.check_name(name)
        caller = await self._services.callers.identify()
        await self._services.polkit.require(Action.TAG, caller, {"image": "", "name": name})
        await images.untag(self._host, name, missing_ok=missing_ok)
        await self._services.catalog.refresh()

    @dbus_method("RemoveImage")
    async def remove_image(self, image: S, options: ASV) -> AS:
        """Take all names of an image away and forget it."""
        force = Options(options, _FORCE).get(_FORCE, default=False)
        found = await self._services.catalog.find_image(image)
        caller = await self._services.callers.identify()
        details = {"image": str(found.manifest_digest), "names": ", ".join(found.names)}
        await self._services.polkit.require(
            Action.REMOVE, caller, details, message="Authentication is required to remove the image $(image)"
        )
        gone = await images.remove(self._host, found.manifest_digest, force=force)
        await self._services.catalog.refresh()
        return gone

    # Looking

    @dbus_method("GetImage", reads=True)
    async def get_image(self, image: S) -> O:
        """The path of an image's object."""
        return names.image_path((await self._services.catalog.find_image(image)).manifest_digest)

    @dbus_method("ListImages", reads=True)
    async def list_images(self, options: ASV) -> Images:
        """Digest, names, path and properties of every image, by digest."""
        given = Options(options, _LIMIT, _AFTER, _NAMES_ONLY)
        limit, after = given.get(_LIMIT, None), given.get(_AFTER, "")
        is_brief = given.get(_NAMES_ONLY, default=False)
        await self._services.catalog.update()
        rows = [
            (str(view.facts.info.manifest_digest), view.facts.info.names, view)
            for view in self._services.catalog.images
            if str(view.facts.info.manifest_digest) > after
        ]
        return [
            (digest, tags, view.path, {} if is_brief else property_values(view))
            for digest, tags, view in rows[:limit]
        ]

    # Jobs

    @dbus_method("GetJob", reads=True)
    def get_job(self, job_id: T) -> O:
        """The path of a job's object."""
        return self._services.desk.jobs.get(job_id).path

    @dbus_method("ListJobs", reads=True)
    def list_jobs(self, options: ASV) -> Jobs:
        """Id, type, state, progress and path of the jobs that have an object."""
        given = Options(options, _TYPE, _STATE)
        kind, state = given.get(_TYPE, None), given.get(_STATE, None)
        return [
            (job.id, job.kind, job.state, job.fraction, job.path)
            for job in self._services.desk.jobs.jobs
            if kind in (None, job.kind) and state in (None, job.state)
        ]

    @dbus_method("WaitJob", reads=True)
    async def wait_job(self, job_id: T, timeout_usec: T) -> Waited:
        """Answer once the job has ended, or with its state at the timeout."""
        return await self._services.desk.wait(job_id, timeout_usec)

    @dbus_method("CancelJob")
    async def cancel_job(self, job_id: T, options: ASV) -> None:
        """Ask a job to stop."""
        Options(options)
        await self._services.desk.cancel(self._services.desk.jobs.get(job_id))

    @dbus_property("Version")
    def version(self) -> S:
        return VERSION

    @dbus_property("ApiVersion")
    def api_version(self) -> U:
        return API_VERSION

    @dbus_property("Features")
    def features(self) -> AS:
        return self._condition.features

    @dbus_property("State")
    def state(self) -> S:
        if self._is_stopping:
            return "stopping"
        return "busy" if self._services.desk.jobs.running or self._services.desk.jobs.queued else "idle"

    @dbus_property("JobsRunning")
    def jobs_running(self) -> U:
        return self._services.desk.jobs.running

    @dbus_property("JobsQueued")
    def jobs_queued(self) -> U:
        return self._services.desk.jobs.queued

    @dbus_property("Problems")
    def problems(self) -> Problems:
        return self._condition.problems

    @dbus_property("Counters")
    def counters(self) -> Counters:
        return self._services.tally.counts
