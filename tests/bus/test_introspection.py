"""The XML in `dbus/` is what the daemon serves, member by member, and what it serves is there."""

import asyncio
import xml.etree.ElementTree as ET

import pytest
from dbus_next import Variant
from helpers.bus import REPOSITORY_ROOT, Stage
from helpers.client import Call, Client, connect

from composefsd.service import names

FILE = REPOSITORY_ROOT / "dbus" / f"{names.BUS_NAME}.xml"
ROOT_INTERFACES = {names.MANAGER, names.REPOSITORY, names.BOOT}


def canonical(element: ET.Element) -> str:
    return ET.canonicalize(ET.tostring(element, encoding="unicode"), strip_text=True)


def interfaces(xml: str) -> dict[str, str]:
    """The interfaces of a node that are ours, in a form that can be compared."""
    found = ET.fromstring(xml).findall("interface")
    return {
        element.get("name", ""): canonical(element) for element in found if names.BUS_NAME in element.get("name", "")
    }


async def introspect(client: Client, path: str) -> str:
    (xml,) = await client.ask(Call(names.INTROSPECTABLE, "Introspect", path=path))
    assert isinstance(xml, str)
    return xml


def test_the_objects_serve_exactly_what_the_file_says(stage: Stage, layout: str) -> None:
    async def served() -> dict[str, str]:
        async with connect(stage.address) as client:
            job = await client.start(names.MANAGER, "Pull", f"oci:{layout}:small", name=Variant("s", "small"))
            assert not (await client.wait(job)).error
            (image,) = await client.ask(Call(names.MANAGER, "GetImage", "s", ["small"]))
            options = {"verity": Variant("s", "deferred"), "type": Variant("s", "type1")}
            deploying = await client.start(names.BOOT, "Deploy", "small", **options)
            answer = await client.wait(deploying)
            assert not answer.error, answer.body
            paths = [names.ROOT_PATH, image, names.job_path(job), answer.body[1]["deployment"]]
            found = [interfaces(await introspect(client, path)) for path in paths]
            assert [set(one) for one in found] == [ROOT_INTERFACES, {names.IMAGE}, {names.JOB}, {names.DEPLOYMENT}]
            return {name: text for one in found for name, text in one.items()}

    assert asyncio.run(served()) == interfaces(FILE.read_text())


def test_every_property_can_be_read_and_has_the_type_of_the_file(shared_stage: Stage) -> None:
    async def check() -> None:
        async with connect(shared_stage.address) as client:
            for element in ET.parse(FILE).getroot().findall("interface"):
                name = element.get("name", "")
                if name in ROOT_INTERFACES:
                    wanted = {prop.get("name") for prop in element.findall("property")}
                    assert set(await client.get_all(names.ROOT_PATH, name)) == wanted

    asyncio.run(check())


def test_the_package_serves_the_same_file() -> None:
    packaged = REPOSITORY_ROOT / "composefsd" / "service" / f"{names.BUS_NAME}.xml"
    assert packaged.is_symlink()
    assert packaged.resolve() == FILE


@pytest.mark.parametrize("path", ["/", "/org", "/org/composefs", names.ROOT_PATH])
def test_a_browser_finds_its_way_to_the_objects(shared_stage: Stage, path: str) -> None:
    async def children() -> list[str | None]:
        async with connect(shared_stage.address) as client:
            return [node.get("name") for node in ET.fromstring(await introspect(client, path)).findall("node")]

    parts = names.ROOT_PATH.strip("/").split("/")
    depth = len([part for part in path.split("/") if part])
    assert asyncio.run(children()) == parts[depth : depth + 1]
