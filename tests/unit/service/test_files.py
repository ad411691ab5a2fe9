"""The files that go with the daemon agree with its code."""

import configparser
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from composefsd.service import names
from composefsd.service.daemon import JOBS_SECONDS
from composefsd.service.polkit import Action

PROJECT = Path(__file__).parents[3]
DBUS, SYSTEMD = PROJECT / "dbus", PROJECT / "systemd"
POLICY = ET.parse(DBUS / f"{names.BUS_NAME}.policy").getroot()
BUS_POLICY = ET.parse(DBUS / f"{names.BUS_NAME}.conf").getroot()


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(path.read_text())
    return parser


def test_polkit_knows_exactly_the_actions_that_are_asked_for() -> None:
    assert {element.get("id") for element in POLICY.iter("action")} == {action.action_id for action in Action}


def test_only_what_cannot_change_the_system_is_open_to_the_active_user() -> None:
    open_to = {
        element.get("id", "").rpartition(".")[2]
        for element in POLICY.iter("action")
        if element.findtext("defaults/allow_active") == "yes"
    }
    assert open_to == {"generate", "compute"}
    for element in POLICY.iter("action"):
        assert element.findtext("defaults/allow_any") == "auth_admin"


def test_questions_name_only_details_that_are_always_there() -> None:
    allowed = {
        "pull": {"reference", "name", "digest"},
        "generate": {"image", "kind"},
        "compute": {"image"},
        "tag": {"image", "name"},
        "remove": set(),
        "cancel": {"job", "type", "uid"},
        "gc": set(),
        "fsck": {"depth", "image"},
        "repair": {"depth", "image"},
        "enable-verity": set(),
        "deploy": {"image", "digest"},
    }
    for element in POLICY.iter("action"):
        used = set(re.findall(r"\$\((\w+)\)", element.findtext("message") or ""))
        assert used <= allowed[element.get("id", "").rpartition(".")[2]]


def test_the_bus_lets_through_exactly_our_interfaces_and_the_reading_ones() -> None:
    (default,) = (policy for policy in BUS_POLICY.iter("policy") if policy.get("context") == "default")
    through = {rule.get("send_interface") for rule in default.iter("allow")}
    standard = {names.PEER, names.INTROSPECTABLE, names.OBJECT_MANAGER, names.PROPERTIES}
    assert through == {*names.INTERFACES, *standard}
    members = {rule.get("send_member") for rule in default.iter("allow") if rule.get("send_member")}
    assert members == {"Get", "GetAll"}
    assert all(
        rule.get("send_destination") == names.BUS_NAME for rule in BUS_POLICY.iter("allow") if not rule.get("own")
    )


def test_activation_and_unit_belong_together() -> None:
    activation = unit(DBUS / f"{names.BUS_NAME}.service")["D-BUS Service"]
    service = unit(SYSTEMD / "composefsd.service")
    assert activation["Name"] == service["Service"]["BusName"] == names.BUS_NAME
    assert activation["SystemdService"] == service["Install"]["Alias"]
    assert service["Service"]["Type"] == "notify"


def test_the_daemon_stops_before_systemd_loses_patience() -> None:
    assert float(unit(SYSTEMD / "composefsd.service")["Service"]["TimeoutStopSec"]) > JOBS_SECONDS + 5
