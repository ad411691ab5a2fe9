"""Who may do what, with the real polkitd: root, an unprivileged user, and a user whom a rule lets do something."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dbus_next import MessageFlag, Variant
from helpers.agent import agent
from helpers.bus import GAMES, PolkitStage, why_no_polkit
from helpers.client import Answer, Call, call_as

from composefsd.service import names

pytestmark = pytest.mark.skipif(bool(why_no_polkit()), reason=why_no_polkit() or "-")

ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
INTERACTION = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
ALLOWED_REFERENCE = "oci:/nowhere/allowed"
OTHER_REFERENCE = "oci:/nowhere/other"
IMAGE = "0123456789ab"

RULES = """
polkit.addRule(function(action, subject) {
    if (subject.user != "games")
        return polkit.Result.NOT_HANDLED;
    if (action.id == "org.composefs.Composefs1.pull" && action.lookup("reference") == "%s")
        return polkit.Result.YES;
    if (action.id == "org.composefs.Composefs1.tag")
        return action.lookup("name") == "mine" ? polkit.Result.YES : polkit.Result.NO;
    return polkit.Result.NOT_HANDLED;
});
polkit.addAdminRule(function(action, subject) { return ["unix-user:0"]; });
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[PolkitStage]:
    with (
        TemporaryDirectory(prefix="composefsd-test-") as folder,
        PolkitStage(Path(folder), RULES % ALLOWED_REFERENCE) as stage,
    ):
        yield stage


def ask(stage: PolkitStage, call: Call, uid: int = GAMES) -> Answer:
    (answer,) = call_as(uid, stage.address, [call])
    return answer


def pull(reference: str, **options: Variant) -> Call:
    return Call(names.MANAGER, "Pull", "sa{sv}", [reference, options])


READING = [
    Call(names.MANAGER, "ListImages", "a{sv}", [{}]),
    Call(names.MANAGER, "ListJobs", "a{sv}", [{}]),
    Call(names.BOOT, "ListDeployments", "a{sv}", [{}]),
    Call(names.PROPERTIES, "GetAll", "s", [names.MANAGER]),
    Call(names.PROPERTIES, "GetAll", "s", [names.REPOSITORY]),
    Call(names.PROPERTIES, "Get", "ss", [names.BOOT, "Esp"]),
    Call(names.OBJECT_MANAGER, "GetManagedObjects"),
    Call(names.INTROSPECTABLE, "Introspect"),
    Call(names.PEER, "Ping"),
    Call(names.REPOSITORY, "CollectGarbage", "a{sv}", [{"dry-run": Variant("b", value=True)}]),
]

CHANGING = [
    pull(OTHER_REFERENCE),
    Call(names.REPOSITORY, "CollectGarbage", "a{sv}", [{}]),
    Call(names.REPOSITORY, "Check", "a{sv}", [{}]),
    Call(names.REPOSITORY, "EnableVerity", "a{sv}", [{}]),
    Call(names.MANAGER, "Untag", "sa{sv}", ["mine-not", {}]),
]


@pytest.mark.parametrize("call", READING, ids=lambda call: f"{call.interface.rpartition('.')[2]}.{call.member}")
def test_anybody_may_read(stage: PolkitStage, call: Call) -> None:
    assert ask(stage, call).error == ""


@pytest.mark.parametrize("call", CHANGING[:-1], ids=lambda call: call.member)
def test_a_user_who_would_have_to_be_asked_is_told_so(stage: PolkitStage, call: Call) -> None:
    assert ask(stage, call).error == INTERACTION


def test_a_user_whom_a_rule_refuses_is_denied(stage: PolkitStage) -> None:
    assert ask(stage, CHANGING[-1]).error == ACCESS_DENIED


def test_a_rule_can_allow_one_reference_by_the_details(stage: PolkitStage) -> None:
    (answer,) = call_as(GAMES, stage.address, [pull(ALLOWED_REFERENCE)])
    job, path = answer.body
    assert (answer.error, path) == ("", names.job_path(job))
    assert ask(stage, Call(names.MANAGER, "WaitJob", "tt", [job, 0])).error == f"{names.ERRORS}.SourceNotFound"


def test_a_rule_can_allow_one_name(stage: PolkitStage) -> None:
    answer = ask(stage, Call(names.MANAGER, "Untag", "sa{sv}", ["mine", {}]))
    assert answer.error == f"{names.ERRORS}.NoSuchImage"


def test_root_is_not_asked(stage: PolkitStage) -> None:
    assert ask(stage, pull(OTHER_REFERENCE), uid=0).error == ""


def test_arguments_are_checked_before_anybody_is_asked(stage: PolkitStage) -> None:
    assert ask(stage, pull("nonsense")).error == f"{names.ERRORS}.InvalidReference"
    answer = ask(stage, pull(OTHER_REFERENCE, colour=Variant("s", "blue")))
    assert answer.error == "org.freedesktop.DBus.Error.InvalidArgs"


INTERACTIVE = Call(
    names.MANAGER, "Pull", "sa{sv}", [OTHER_REFERENCE, {}], flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
)


def test_a_user_who_authenticates_is_let_through(stage: PolkitStage) -> None:
    prepare = partial(agent, stage.address, approves=True)
    (answer,) = call_as(GAMES, stage.address, [INTERACTIVE], prepare=prepare)
    assert answer.error == ""


def test_a_user_who_dismisses_the_prompt_is_denied(stage: PolkitStage) -> None:
    prepare = partial(agent, stage.address, approves=False)
    (answer,) = call_as(GAMES, stage.address, [INTERACTIVE], prepare=prepare)
    assert answer.error == ACCESS_DENIED
    assert "dismissed" in answer.body[0]


def test_without_an_agent_a_prompt_ends_at_once(stage: PolkitStage) -> None:
    assert ask(stage, INTERACTIVE).error == INTERACTION


def test_the_bus_lets_nothing_through_but_our_interfaces(stage: PolkitStage) -> None:
    setting = Call(names.PROPERTIES, "Set", "ssv", [names.MANAGER, "State", Variant("s", "idle")])
    foreign = Call("org.freedesktop.systemd1.Manager", "Reload")
    without_interface = Call("", "ListJobs", "a{sv}", [{}])
    for call in (setting, foreign, without_interface):
        assert ask(stage, call).error == ACCESS_DENIED
    owning = Call(
        names.FREEDESKTOP, "RequestName", "su", [names.BUS_NAME, 0], names.FREEDESKTOP_PATH, names.FREEDESKTOP
    )
    assert ask(stage, owning).error == ACCESS_DENIED


def test_a_job_of_another_user_is_not_cancelled_without_a_right(stage: PolkitStage) -> None:
    (started,) = call_as(0, stage.address, [pull(OTHER_REFERENCE)])
    job = started.body[0]
    answer = ask(stage, Call(names.MANAGER, "CancelJob", "ta{sv}", [job, {}]))
    assert answer.error in (INTERACTION, f"{names.ERRORS}.JobFinished")
