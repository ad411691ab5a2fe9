"""The daemon's API as typed calls.

A table of the calls with options, and a method for each call that a verb makes.  Options are plain values here; the
table says which D-Bus type each has, and leaves out those that are None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dbus_next import Variant

from composefsd.client.bus import ASK_SECONDS, READ_SECONDS, Bus, Call
from composefsd.client.failures import NO_SUCH_DOCUMENT, UNKNOWN_INTERFACE, UNKNOWN_METHOD, UNKNOWN_OBJECT, CallError
from composefsd.client.properties import NOTHING, Properties, Value, properties, rows
from composefsd.client.records import ENDED, Boot, Daemon, Deployment, Image, Job, Problem, Repository, Status
from composefsd.service import names

Option = str | bool | int | tuple[str, ...] | None
Options = Mapping[str, Option]
NO_OPTIONS: Final[Options] = {}

EXPLAIN_SECONDS: Final = 90
"""How long Explain may take: the daemon gives up before."""

PAGE: Final = 100
"""Images asked for at a time: an answer stays far below the daemon's bound of 1 MiB."""


@dataclass(frozen=True, slots=True)
class Member:
    """A method that takes `arguments` strings, then a dictionary; `options` maps its keys to their signatures."""

    interface: str
    name: str
    arguments: int
    options: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""

    def call(self, path: str, arguments: Sequence[str], options: Options) -> Call:
        """The call, with the options that are not None."""
        assert len(arguments) == self.arguments
        given = {key: _variant(self.options[key], value) for key, value in options.items() if value is not None}
        signature = "s" * self.arguments + "a{sv}"
        return Call(path, self.interface, self.name, signature, [*arguments, given], self.answer)


def _variant(signature: str, value: Option) -> Variant:
    return Variant(signature, list(value) if isinstance(value, tuple) else value)


_JOB_KEYS: Final = {"request-id": "s", "on-client-gone": "s"}
_IMAGE_KEYS: Final = {"format": "s", "hash": "s", "xattrs": "s", "profile": "s", "expect": "s"}
_DEPLOY_KEYS: Final = {
    "verity": "s",
    "type": "s",
    "uki": "s",
    "payload": "s",
    "kargs": "as",
    "kargs-delete": "as",
    "karg-form": "s",
}


def _job(interface: str, name: str, arguments: int, options: Mapping[str, str]) -> Member:
    return Member(interface, name, arguments, {**options, **_JOB_KEYS}, answer="to")


PULL: Final = _job(
    names.MANAGER,
    "Pull",
    1,
    {"name": "s", "require-digest": "s", "platform": "s", "generate": "as", "format": "s", "replace": "b"},
)
GENERATE: Final = _job(names.MANAGER, "Generate", 2, _IMAGE_KEYS)
COMPUTE: Final = _job(names.MANAGER, "ComputeDigest", 2, _IMAGE_KEYS)
PLAN: Final = _job(names.BOOT, "PlanDeploy", 1, _DEPLOY_KEYS)
DEPLOY: Final = _job(names.BOOT, "Deploy", 1, _DEPLOY_KEYS)
UNDEPLOY: Final = _job(names.DEPLOYMENT, "Remove", 0, {"state": "b"})
COLLECT: Final = _job(names.REPOSITORY, "CollectGarbage", 0, {"dry-run": "b"})
CHECK: Final = _job(names.REPOSITORY, "Check", 0, {"depth": "s", "repair": "b", "image": "s", "max-findings": "u"})
ENABLE_VERITY: Final = _job(names.REPOSITORY, "EnableVerity", 0, {})

TAG: Final = Member(names.MANAGER, "Tag", 2, {"replace": "b"})
UNTAG: Final = Member(names.MANAGER, "Untag", 1, {"missing-ok": "b"})
REMOVE: Final = Member(names.MANAGER, "RemoveImage", 1, {"force": "b"}, answer="as")
LIST_IMAGES: Final = Member(names.MANAGER, "ListImages", 0, {"limit": "u", "after": "s"}, answer="a(sasoa{sv})")
LIST_JOBS: Final = Member(names.MANAGER, "ListJobs", 0, {"type": "s", "state": "s"}, answer="a(tssdo)")
LIST_DEPLOYMENTS: Final = Member(names.BOOT, "ListDeployments", 0, answer="a(ssoa{sv})")
READ_DOCUMENT: Final = Member(names.IMAGE, "ReadDocument", 1, answer="s")
OPEN_DOCUMENT: Final = Member(names.IMAGE, "OpenDocument", 1, {"kind": "s", "hash": "s", "xattrs": "s"}, answer="h")
OPEN_JOB_DOCUMENT: Final = Member(names.JOB, "OpenDocument", 1, answer="h")

MEMBERS: Final = (
    PULL, GENERATE, COMPUTE, PLAN, DEPLOY, UNDEPLOY, COLLECT, CHECK, ENABLE_VERITY,
    TAG, UNTAG, REMOVE, LIST_IMAGES, LIST_JOBS, LIST_DEPLOYMENTS, READ_DOCUMENT, OPEN_DOCUMENT,
    OPEN_JOB_DOCUMENT,
)  # fmt: skip
"""All of the above; a test compares them with the API's XML."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A call that starts a job; `path` is the object it is made on."""

    member: Member
    arguments: Sequence[str] = ()
    options: Options = field(default_factory=dict)
    path: str = names.ROOT_PATH

    def asking(self, options: Options) -> "JobRequest":
        """The same request with more options."""
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True, slots=True)
class JobHandle:
    """What the daemon calls a job: its number and its object."""

    id: int
    path: str


class Proxy:
    """The daemon at the other end of a bus.  Every method raises what `Bus.call` raises."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def start(self, request: JobRequest) -> JobHandle:
        """Start a job; the answer comes once it is accepted, which may take a password."""
        number, path = await self._ask(request.member, request.arguments, request.options, request.path)
        assert isinstance(number, int), "the signature of the answer was checked"
        return JobHandle(number, str(path))

    async def wait_job(self, job: int, timeout_usec: int) -> tuple[str, dict[str, Value]]:
        """State and result of a job at its end, or at the timeout; the error of a failed job is raised."""
        call = Call(names.ROOT_PATH, names.MANAGER, "WaitJob", "tt", [job, timeout_usec], "sa{sv}")
        state, result = await self.bus.call(call)
        assert isinstance(result, dict), "the signature of the answer was checked"
        return str(state), result

    async def cancel_job(self, job: int) -> None:
        """Ask a job to stop; it has not stopped when this returns."""
        call = Call(names.ROOT_PATH, names.MANAGER, "CancelJob", "ta{sv}", [job, {}])
        await self.bus.call(call, timeout_seconds=ASK_SECONDS)

    async def job_values(self, path: str) -> dict[str, Value]:
        """The properties of a job's object, as they came."""
        (values,) = await self.bus.call(Call(path, names.PROPERTIES, "GetAll", "s", [names.JOB], "a{sv}"))
        assert isinstance(values, dict), "the signature of the answer was checked"
        return values

    async def jobs(self, *, kind: str | None = None, state: str | None = None, ended: bool = True) -> list[Job]:
        """The jobs that are remembered, or only those that have not ended."""
        (listed,) = await self._read(LIST_JOBS, options={"type": kind, "state": state})
        found: list[Job] = []
        for row in rows(listed, "id", "type", "state", "progress", "path"):
            if not ended and row.text("state") in ENDED:
                continue
            try:
                values = await self.job_values(row.text("path"))
            except CallError as error:
                if error.name == UNKNOWN_OBJECT:  # it was removed since it was listed
                    continue
                raise
            found.append(Job.parse(row.text("path"), Properties(values)))
        return found

    async def image(self, text: str) -> Image:
        """An image by tag, digest or prefix of a digest."""
        (path,) = await self.bus.call(Call(names.ROOT_PATH, names.MANAGER, "GetImage", "s", [text], "o"))
        return Image.parse(str(path), await self._all(str(path), names.IMAGE))

    async def document(self, image: Image, which: str) -> str:
        """The text of an image's `manifest` or `config`."""
        (text,) = await self._read(READ_DOCUMENT, [which], path=image.path)
        return str(text)

    async def open_document(self, image: Image, which: str, options: Options) -> int:
        """A descriptor of a document, at its start, which is the caller's to close."""
        call = OPEN_DOCUMENT.call(image.path, [which], options)
        return await self.bus.call_for_descriptor(call, timeout_seconds=ASK_SECONDS)

    async def repository(self) -> Repository:
        """The properties of Repository, or an empty record from a daemon that does not serve them."""
        return Repository.parse(await self._if_served(names.REPOSITORY))

    async def job_document(self, job: JobHandle, which: str) -> int | None:
        """A descriptor of a document that a job has left, which is the caller's to close; None if it is gone."""
        try:
            return await self.bus.call_for_descriptor(OPEN_JOB_DOCUMENT.call(job.path, [which], NO_OPTIONS))
        except CallError as error:
            if error.name in (UNKNOWN_OBJECT, UNKNOWN_METHOD, NO_SUCH_DOCUMENT):
                return None
            raise

    async def explain(self, what: str) -> list[tuple[str, str]]:
        """What keeps an object, stream or image: kinds and names of roots."""
        call = Call(names.ROOT_PATH, names.REPOSITORY, "Explain", "s", [what], "a(ss)")
        (listed,) = await self.bus.call(call, timeout_seconds=EXPLAIN_SECONDS)
        return [(row.text("kind"), row.text("name")) for row in rows(listed, "kind", "name")]

    async def images(self) -> list[Image]:
        """All images, asked for in pages."""
        found: list[Image] = []
        after = None
        while True:
            (listed,) = await self._read(LIST_IMAGES, options={"limit": PAGE, "after": after})
            page = rows(listed, "digest", "names", "path", "details")
            found += [Image.parse(row.text("path"), row.dictionary("details")) for row in page]
            if len(page) < PAGE:
                return found
            after = page[-1].text("digest")

    async def tag(self, image: str, name: str, *, replace: bool) -> None:
        """Give an image a name."""
        await self._ask(TAG, [image, name], {"replace": replace})

    async def untag(self, name: str, *, missing_ok: bool) -> None:
        """Take a name away."""
        await self._ask(UNTAG, [name], {"missing-ok": missing_ok})

    async def remove(self, image: str, *, force: bool) -> list[str]:
        """Remove an image; the names that went."""
        (gone,) = await self._ask(REMOVE, [image], {"force": force})
        assert isinstance(gone, list), "the signature of the answer was checked"
        return [str(name) for name in gone]

    async def deployments(self) -> list[Deployment]:
        """All deployments in boot order."""
        (listed,) = await self._read(LIST_DEPLOYMENTS)
        found = rows(listed, "id", "state", "path", "details")
        return [Deployment.parse(row.text("path"), row.dictionary("details")) for row in found]

    async def deployment_path(self, text: str) -> str:
        """The object of a deployment by id, prefix, or `booted`, `default`, `staged`, `rollback`."""
        (path,) = await self.bus.call(Call(names.ROOT_PATH, names.BOOT, "GetDeployment", "s", [text], "o"))
        return str(path)

    async def boot(self) -> Boot:
        """The properties of Boot, or an empty record from a daemon that does not serve them."""
        return Boot.parse(await self._if_served(names.BOOT))

    async def status(self) -> Status:
        """Everything that `status` shows."""
        manager = await self._all(names.ROOT_PATH, names.MANAGER)
        problems = manager.structs("Problems", "name", "message")
        return Status(
            daemon=Daemon.parse(manager),
            problems=tuple(Problem(row.text("name"), row.text("message")) for row in problems),
            repository=await self.repository(),
            boot=await self.boot(),
            deployments=tuple(await self.deployments()),
            jobs=tuple(await self.jobs(ended=False)),
        )

    async def _all(self, path: str, interface: str) -> Properties:
        (values,) = await self.bus.call(Call(path, names.PROPERTIES, "GetAll", "s", [interface], "a{sv}"))
        return properties(values)

    async def _if_served(self, interface: str) -> Properties:
        try:
            return await self._all(names.ROOT_PATH, interface)
        except CallError as error:
            if error.name in (UNKNOWN_INTERFACE, UNKNOWN_METHOD):
                return NOTHING
            raise

    async def _read(
        self,
        member: Member,
        arguments: Sequence[str] = (),
        options: Options = NO_OPTIONS,
        path: str = names.ROOT_PATH,
    ) -> list[Value]:
        return await self.bus.call(member.call(path, arguments, options), timeout_seconds=READ_SECONDS)

    async def _ask(
        self, member: Member, arguments: Sequence[str], options: Options, path: str = names.ROOT_PATH
    ) -> list[Value]:
        return await self.bus.call(member.call(path, arguments, options), timeout_seconds=ASK_SECONDS)
