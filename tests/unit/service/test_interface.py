import pytest

from composefsd.service import names
from composefsd.service.boot import Boot
from composefsd.service.deployment import DeploymentObject
from composefsd.service.image import ImageObject
from composefsd.service.interface import SPECS, S, Served, T, dbus_method, dbus_property
from composefsd.service.job import JobObject
from composefsd.service.manager import Manager
from composefsd.service.repository import RepositoryInterface

SERVED = (Manager, RepositoryInterface, Boot, ImageObject, JobObject, DeploymentObject)


def test_every_interface_of_the_file_is_served() -> None:
    assert {cls.spec.name for cls in SERVED} == set(SPECS) == set(names.INTERFACES)


@pytest.mark.parametrize("cls", SERVED, ids=lambda cls: cls.__name__)
def test_every_member_of_the_file_is_served(cls: type[Served]) -> None:
    assert set(cls.methods) == set(cls.spec.methods)
    assert set(cls.properties) == set(cls.spec.properties)


@pytest.mark.parametrize("cls", SERVED, ids=lambda cls: cls.__name__)
def test_what_asks_the_system_for_its_value_is_not_announced(cls: type[Served]) -> None:
    for prop in cls.properties.values():
        assert not (prop.is_async and prop.spec.changes.value == "true")


def test_objects_below_the_root_have_no_property_that_has_to_be_waited_for() -> None:
    for cls in (ImageObject, JobObject, DeploymentObject):
        assert not any(prop.is_async for prop in cls.properties.values())


def test_a_method_of_another_signature_cannot_be_served() -> None:
    with pytest.raises(TypeError, match="GetJob is not what the XML says"):

        class Wrong(Served, interface=names.MANAGER):
            @dbus_method("GetJob")
            def get_job(self, job_id: S) -> S:
                return job_id


def test_a_property_that_the_file_does_not_have_cannot_be_served() -> None:
    with pytest.raises(TypeError, match="Colour is not what the XML says"):

        class Wrong(Served, interface=names.MANAGER):
            @dbus_property("Colour")
            def colour(self) -> T:
                return 0


def test_a_class_that_leaves_members_out_cannot_be_served() -> None:
    with pytest.raises(TypeError, match="does not serve"):

        class Wrong(Served, interface=names.BOOT):
            pass


@pytest.mark.parametrize("text", ["", "abc", "a-b.c", "ü/\0", "_", "0123abcdef.1"])
def test_an_escaped_name_is_told_back(text: str) -> None:
    assert names.unescape(names.escape(text)) == text
    assert all(character.isalnum() or character == "_" for character in names.escape(text))
