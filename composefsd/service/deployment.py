"""Deployment objects: a boot image made bootable."""

from functools import partial
from typing import Annotated

from composefsd.deploy.state import Deployment
from composefsd.operations.deploy import remove_deployment
from composefsd.service import names
from composefsd.service.catalog import DeploymentFacts
from composefsd.service.export import View
from composefsd.service.interface import AS, ASV, TO, B, O, S, T, dbus_method, dbus_property
from composefsd.service.jobs import Result
from composefsd.service.meter import JobKind, Meter
from composefsd.service.options import JOB_OPTIONS, Options, flag, job_keys
from composefsd.service.polkit import Action
from composefsd.service.services import Services
from composefsd.service.wire import variant

Files = Annotated[list[tuple[str, int]], "a(st)"]
I = Annotated[int, "i"]  # noqa: E741

_STATE = flag("state")


class DeploymentObject(View[DeploymentFacts], interface=names.DEPLOYMENT):
    """A deployment on the bus."""

    def __init__(self, services: Services, facts: DeploymentFacts) -> None:
        super().__init__(services.tree, names.deployment_path(facts.info.id), facts)
        self._services = services

    @property
    def _info(self) -> Deployment:
        return self.facts.info

    @dbus_method("Remove")
    async def remove(self, options: ASV) -> TO:
        """Start taking the deployment off the boot partition."""
        given = Options(options, _STATE, *JOB_OPTIONS)
        keys, state = job_keys(given), given.get(_STATE, default=False)
        caller = await self._services.callers.identify()
        title = self._info.title or self._info.id[:12]
        await self._services.polkit.require(
            Action.REMOVE, caller, {"deployment": self._info.id, "title": title},
            message="Authentication is required to remove the deployment $(title)",
        )  # fmt: skip
        return await self._services.start(
            JobKind.REMOVE, caller, keys, f"Remove the deployment {title}",
            {"deployment": variant("s", self._info.id), "state": variant("b", state)},
            partial(self._remove, self._info.id, state),
        )  # fmt: skip

    async def _remove(self, deployment_id: str, state: bool, meter: Meter) -> Result:  # noqa: FBT001
        freed_bytes = await remove_deployment(self._services.host, deployment_id, state=state, progress=meter)
        await self._services.catalog.refresh()
        return {"freed-bytes": variant("t", freed_bytes)}

    @dbus_property("Id")
    def deployment_id(self) -> S:
        return self._info.id

    @dbus_property("State")
    def state(self) -> S:
        return self._info.state

    @dbus_property("Type")
    def type(self) -> S:
        return self._info.type

    @dbus_property("Title")
    def title(self) -> S:
        return self._info.title

    @dbus_property("OsVersion")
    def os_version(self) -> S:
        return self._info.os_version

    @dbus_property("Entry")
    def entry(self) -> S:
        return self._info.entry

    @dbus_property("Image")
    def image(self) -> O:
        return self.facts.image

    @dbus_property("ManifestDigest")
    def manifest_digest(self) -> S:
        return str(self._info.manifest_digest or "")

    @dbus_property("BootDigest")
    def boot_digest(self) -> S:
        return str(self._info.boot_digest)

    @dbus_property("KernelArguments")
    def kernel_arguments(self) -> AS:
        return self._info.kernel_arguments

    @dbus_property("Files")
    def files(self) -> Files:
        return [(file.path, file.size) for file in self._info.files]

    @dbus_property("CreatedUSec")
    def created_usec(self) -> T:
        return self._info.created_usec

    @dbus_property("Booted")
    def booted(self) -> B:
        return self._info.booted

    @dbus_property("Default")
    def default(self) -> B:
        return self._info.default

    @dbus_property("Pinned")
    def pinned(self) -> B:
        return self._info.pinned

    @dbus_property("TriesLeft")
    def tries_left(self) -> I:
        return self._info.tries_left

    @dbus_property("TriesDone")
    def tries_done(self) -> I:
        return self._info.tries_done

    @dbus_property("Trust")
    def trust(self) -> S:
        return self.facts.trust

    @dbus_property("Enforcement")
    def enforcement(self) -> ASV:
        found = self.facts.enforcement
        return {
            "type": variant("s", found.type),
            "verity": variant("s", found.verity),
            "digest": variant("s", found.digest),
            "repository-verity": variant("b", found.repository_verity),
            "summary": variant("s", found.summary),
        }
