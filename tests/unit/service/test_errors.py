import asyncio
import logging

import pytest
from dbus_next import DBusError

from composefsd import errors
from composefsd.errors import ComposefsdError, FormatError, NoSuchImageError
from composefsd.service import names
from composefsd.service.errors import NAMES, describe, full_name, name_of, name_of_class, replies


def classes(root: type[ComposefsdError]) -> set[type[ComposefsdError]]:
    return {root}.union(*(classes(child) for child in root.__subclasses__()))


def test_every_class_of_the_tree_has_a_name_on_the_bus() -> None:
    ours = {cls for cls in classes(ComposefsdError) if cls.__module__ == errors.__name__}
    assert ours == set(NAMES)


def test_a_class_of_another_room_goes_by_its_nearest_ancestor() -> None:
    class SpecialFormatError(FormatError):
        pass

    assert name_of(SpecialFormatError("x")) == f"{names.ERRORS}.Format"


@pytest.mark.parametrize("name", NAMES.values())
def test_names_are_valid_on_the_bus(name: str) -> None:
    parts = full_name(name).split(".")
    assert len(parts) > 2
    assert all(part.isidentifier() and part.isascii() for part in parts)


def test_a_problem_of_the_host_is_told_by_the_name_of_its_error() -> None:
    assert name_of_class("VerityRequired") == f"{names.ERRORS}.Unsupported"
    assert name_of_class("Nonsense") == f"{names.ERRORS}.Internal"


def test_a_bug_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(DBusError) as told, replies():
        raise ValueError("secret of /etc/shadow")
    assert told.value.type == f"{names.ERRORS}.Internal"
    assert "secret" not in told.value.text
    assert "secret" in caplog.text


def test_an_error_is_told_by_name_and_text_without_a_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DBusError) as told, replies():
        raise NoSuchImageError("no image 'x\0'")
    assert (told.value.type, told.value.text) == (f"{names.ERRORS}.NoSuchImage", "no image 'x\\x00'")
    assert not caplog.records


def test_a_cancelled_method_is_answered() -> None:
    with pytest.raises(DBusError) as told, replies():
        raise asyncio.CancelledError
    assert told.value.type == f"{names.ERRORS}.Cancelled"


def test_a_long_message_is_cut() -> None:
    assert len(describe(FormatError("x" * 1_000_000))[1]) < 10_000
