"""Calls as they go out, and whether they are those of the API."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from dbus_next.signature import SignatureTree, SignatureType

from composefsd.client.properties import Properties, Value
from composefsd.client.proxy import CHECK, MEMBERS, PULL, JobRequest, Member
from composefsd.client.records import Boot, Daemon, Deployment, Image, Job, Repository
from composefsd.service import names

XML = ET.parse(Path(__file__).parents[3] / "dbus" / "org.composefs.Composefs1.xml")
EXAMPLES: dict[str, Value] = {"s": "text", "o": "/path", "b": True, "d": 0.5, "u": 7, "t": 7, "i": -1}


def types(element: ET.Element, direction: str) -> str:
    return "".join(arg.attrib["type"] for arg in element.iterfind("arg") if arg.attrib["direction"] == direction)


def example(kind: SignatureType) -> Value:
    """Some value of a D-Bus type."""
    if kind.token == "a" and kind.children[0].token == "{":
        return {"key": "value"}
    if kind.token == "a":
        return [example(kind.children[0])]
    if kind.token == "(":
        return [example(child) for child in kind.children]
    return EXAMPLES[kind.token]


def served(interface: str) -> Properties:
    """A value of the right type for each property that the daemon serves."""
    found = XML.iterfind(f"interface[@name='{interface}']/property")
    return Properties({each.attrib["name"]: example(SignatureTree(each.attrib["type"]).types[0]) for each in found})


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_call_has_the_signatures_of_the_api(member: Member) -> None:
    method = XML.find(f"interface[@name='{member.interface}']/method[@name='{member.name}']")
    assert method is not None
    call = member.call(names.ROOT_PATH, ["text"] * member.arguments, {})
    assert (call.signature, call.answer) == (types(method, "in"), types(method, "out"))


def test_every_property_that_is_served_is_read_with_the_type_that_it_has() -> None:
    assert Daemon.parse(served(names.MANAGER)).jobs_running == 7
    assert Repository.parse(served(names.REPOSITORY)).last_check_clean
    assert Boot.parse(served(names.BOOT)).esp_bytes_free == 7
    assert Image.parse("/", served(names.IMAGE)).digests[0].block_size == 7
    assert Deployment.parse("/", served(names.DEPLOYMENT)).files[0].bytes == 7
    assert Job.parse("/", served(names.JOB)).bytes_total == 7


def test_options_that_are_none_are_left_out_and_the_others_have_their_types() -> None:
    call = PULL.call(names.ROOT_PATH, ["oci:/os"], {"name": None, "replace": True, "generate": ()})
    options = call.body[1]
    assert isinstance(options, dict)
    assert {key: (value.signature, value.value) for key, value in options.items()} == {
        "replace": ("b", True),
        "generate": ("as", []),
    }


def test_more_options_do_not_change_the_request_they_are_added_to() -> None:
    request = JobRequest(CHECK, [], {"depth": "full"})
    assert request.asking({"request-id": "x"}).options == {"depth": "full", "request-id": "x"}
    assert request.options == {"depth": "full"}
