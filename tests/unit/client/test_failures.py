"""Exit statuses of the errors of the bus."""

import pytest

from composefsd.client.exits import Exit
from composefsd.client.failures import CallError, exit_of, is_absence
from composefsd.service import names
from composefsd.service.errors import NAMES, full_name

STANDARD = names.FREEDESKTOP_ERRORS


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (f"{names.ERRORS}.NoSpace", Exit.FAILED),
        (f"{STANDARD}.InvalidArgs", Exit.FAILED),
        (f"{names.ERRORS}.Cancelled", Exit.CANCELLED),
        (f"{names.ERRORS}.Interrupted", Exit.CANCELLED),
        (f"{STANDARD}.AccessDenied", Exit.NOT_AUTHORIZED),
        (f"{STANDARD}.InteractiveAuthorizationRequired", Exit.NOT_AUTHORIZED),
        (f"{STANDARD}.ServiceUnknown", Exit.NO_SERVICE),
        (f"{STANDARD}.Spawn.ChildExited", Exit.NO_SERVICE),
        ("org.freedesktop.systemd1.NoSuchUnit", Exit.NO_SERVICE),
        ("com.example.Error.New", Exit.FAILED),
    ],
)
def test_an_error_has_its_exit_status(name: str, status: Exit) -> None:
    assert exit_of(name) is status


def test_no_error_of_the_daemon_is_taken_for_its_absence() -> None:
    assert not [name for name in NAMES.values() if is_absence(full_name(name))]


def test_an_error_without_a_text_tells_its_name() -> None:
    assert CallError(f"{names.ERRORS}.Locked", "").message == "Locked"
