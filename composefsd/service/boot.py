"""The interface of what the machine boots: planning, deploying, listing."""

import asyncio
import os
from functools import partial
from typing import Annotated

from dbus_next import Variant

from composefsd.boot.cmdline import Spelling
from composefsd.digests import OciDigest
from composefsd.operations.deploy import deploy, plan_deploy
from composefsd.operations.model import DeployRequest, PayloadType, VerityPolicy
from composefsd.service import names
from composefsd.service.export import property_values
from composefsd.service.interface import ASV, TO, O, S, Served, T, dbus_method, dbus_property
from composefsd.service.jobs import Result
from composefsd.service.meter import JobKind, Meter
from composefsd.service.options import JOB_OPTIONS, JobKeys, Options, arguments_of, job_keys, text, texts, word
from composefsd.service.polkit import Action
from composefsd.service.services import Services
from composefsd.service.wire import variant

Deployments = Annotated[list[tuple[str, str, str, dict[str, Variant]]], "a(ssoa{sv})"]

_VERITY = word("verity", VerityPolicy)
_TYPE = word("type", PayloadType)
_UKI = text("uki")
_PAYLOAD = text("payload")
_KARGS = texts("kargs")
_KARGS_DELETE = texts("kargs-delete")
_KARG_FORM = word("karg-form", Spelling)


def _deploy_request(options: ASV) -> tuple[DeployRequest, JobKeys]:
    known = (_VERITY, _TYPE, _UKI, _PAYLOAD, _KARGS, _KARGS_DELETE, _KARG_FORM)
    given = Options(options, *known, *JOB_OPTIONS)
    request = DeployRequest(
        verity=given.get(_VERITY, VerityPolicy.REQUIRE),
        type=given.get(_TYPE, PayloadType.AUTO),
        uki=given.get(_UKI, None),
        kargs=given.get(_KARGS, ()),
        payload=given.get(_PAYLOAD, None),
        kargs_delete=given.get(_KARGS_DELETE, ()),
        karg_form=given.get(_KARG_FORM, Spelling.AUTO),
    )
    return request, job_keys(given)


class Boot(Served, interface=names.BOOT):
    """The boot partitions on the bus."""

    def __init__(self, services: Services) -> None:
        super().__init__(services.tree, names.ROOT_PATH)
        self._services = services
        self._host = services.host

    @dbus_method("PlanDeploy")
    async def plan_deploy(self, image: S, options: ASV) -> TO:
        """Start finding out what Deploy would do."""
        request, keys = _deploy_request(options)
        found = await self._services.catalog.find_image(image)
        caller = await self._services.callers.identify()
        return await self._services.start(
            JobKind.PLAN, caller, keys, f"Plan to deploy {image}", arguments_of(options, image=image),
            partial(self._plan, found.manifest_digest, request),
        )  # fmt: skip

    async def _plan(self, image: OciDigest, request: DeployRequest, meter: Meter) -> Result:
        plan = await plan_deploy(self._host, image, request, meter)
        return {
            "plan": variant("a(sst)", plan.actions),
            "space": variant("(ttt)", (plan.space.free_bytes, plan.needed_bytes, plan.free_after_bytes)),
            "boot-digest": variant("s", str(plan.deployment.boot_digest)),
            "kernel-arguments": variant("as", plan.deployment.kernel_arguments),
            "objections": variant("as", plan.objections),
        }

    @dbus_method("Deploy")
    async def deploy(self, image: S, options: ASV) -> TO:
        """Start making an image bootable."""
        request, keys = _deploy_request(options)
        found = await self._services.catalog.find_image(image)
        caller = await self._services.callers.identify()
        details = {"image": image, "digest": str(found.manifest_digest)}
        await self._services.polkit.require(Action.DEPLOY, caller, details)
        return await self._services.start(
            JobKind.DEPLOY, caller, keys, f"Deploy {image}", arguments_of(options, image=image),
            partial(self._deploy, found.manifest_digest, request),
        )  # fmt: skip

    async def _deploy(self, image: OciDigest, request: DeployRequest, meter: Meter) -> Result:
        made = await deploy(self._host, image, request, meter)
        await self._services.catalog.refresh()
        return {
            "deployment": variant("o", names.deployment_path(made.id)),
            "boot-digest": variant("s", str(made.boot_digest)),
        }

    @dbus_method("ListDeployments", reads=True)
    async def list_deployments(self, options: ASV) -> Deployments:
        """Id, state, path and properties of every deployment, in boot order."""
        Options(options)
        await self._services.catalog.update()
        return [
            (view.facts.info.id, view.facts.info.state, view.path, property_values(view))
            for view in self._services.catalog.deployments
        ]

    @dbus_method("GetDeployment", reads=True)
    async def get_deployment(self, deployment_id: S) -> O:
        """The path of a deployment's object."""
        return (await self._services.catalog.find_deployment(deployment_id)).path

    @dbus_property("Esp")
    def esp(self) -> S:
        found = self._services.catalog.partitions
        return "" if found is None else str(found.esp)

    @dbus_property("Xbootldr")
    def xbootldr(self) -> S:
        found = self._services.catalog.partitions
        return "" if found is None else str(found.xbootldr or "")

    @dbus_property("EspBytesFree")
    async def esp_bytes_free(self) -> T:
        about = await self._statvfs()
        return 0 if about is None else about.f_bavail * about.f_frsize

    @dbus_property("EspBytesTotal")
    async def esp_bytes_total(self) -> T:
        about = await self._statvfs()
        return 0 if about is None else about.f_blocks * about.f_frsize

    async def _statvfs(self) -> os.statvfs_result | None:
        """Of $BOOT, None if there is none; in a thread, as its automount may have to be waited for."""
        found = self._services.catalog.partitions
        if found is None:
            return None
        try:
            return await asyncio.to_thread(os.statvfs, found.boot)
        except OSError:
            return None
