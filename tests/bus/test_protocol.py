"""The wire: what the specification asks for is answered, and what is hostile hurts nobody but who sends it."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant
from helpers.bus import Stage, open_descriptors
from helpers.client import Answer, Call, Client, connect
from helpers.raw import Raw

from composefsd.service import names

ERRORS = names.FREEDESKTOP_ERRORS
LIST_JOBS = Call(names.MANAGER, "ListJobs", "a{sv}", [{}])
PING = Call(names.PEER, "Ping")
NORMATIVE = Variant("as", ["normative"])


def run(stage: Stage, test: Any) -> Any:
    """Run a coroutine function with a client."""

    async def connected() -> Any:
        async with connect(stage.address) as client:
            return await test(client)

    return asyncio.run(connected())


def ask(stage: Stage, call: Call) -> Answer:
    answer = run(stage, lambda client: client.call(call))
    assert isinstance(answer, Answer)
    return answer


def raw_call(member: str = "ListJobs", signature: str = "a{sv}", body: Any = ({},), **more: Any) -> Message:
    call = Call(names.MANAGER, member, signature, body)
    message = call.message()
    for name, value in more.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (Call(names.MANAGER, "Nonsense"), f"{ERRORS}.UnknownMethod"),
        (Call("org.example.Nothing", "ListJobs", "a{sv}", [{}]), f"{ERRORS}.UnknownInterface"),
        (Call(names.MANAGER, "ListJobs", "a{sv}", [{}], path="/org/example"), f"{ERRORS}.UnknownObject"),
        (Call(names.MANAGER, "ListJobs", "s", ["x"]), f"{ERRORS}.InvalidArgs"),
        (Call(names.MANAGER, "ListJobs"), f"{ERRORS}.InvalidArgs"),
        (Call("", "Nonsense"), f"{ERRORS}.UnknownMethod"),
        (Call(names.PROPERTIES, "Nonsense"), f"{ERRORS}.UnknownMethod"),
        (Call(names.PROPERTIES, "Get", "ss", [names.MANAGER, "Colour"]), f"{ERRORS}.UnknownProperty"),
        (Call(names.PROPERTIES, "Get", "ss", ["org.example.Nothing", "State"]), f"{ERRORS}.UnknownInterface"),
        (Call(names.PROPERTIES, "GetAll", "s", [names.MANAGER], path="/x"), f"{ERRORS}.UnknownObject"),
        (Call(names.INTROSPECTABLE, "Introspect", path="/x"), f"{ERRORS}.UnknownObject"),
        (
            Call(names.OBJECT_MANAGER, "GetManagedObjects", path=f"{names.ROOT_PATH}/job"),
            f"{ERRORS}.UnknownInterface",
        ),
        (Call(names.MANAGER, "GetJob", "t", [999]), f"{names.ERRORS}.NoSuchJob"),
        (Call(names.MANAGER, "WaitJob", "tt", [999, 0]), f"{names.ERRORS}.NoSuchJob"),
        (Call(names.MANAGER, "CancelJob", "ta{sv}", [999, {}]), f"{names.ERRORS}.NoSuchJob"),
        (Call(names.MANAGER, "GetImage", "s", ["nothing"]), f"{names.ERRORS}.NoSuchImage"),
        (Call(names.BOOT, "GetDeployment", "s", ["nothing"]), f"{names.ERRORS}.NoSuchDeployment"),
        (Call(names.MANAGER, "Pull", "sa{sv}", ["ftp://x", {}]), f"{names.ERRORS}.InvalidReference"),
    ],
    ids=lambda value: value.member + value.path if isinstance(value, Call) else value.rpartition(".")[2],
)
def test_what_is_not_there_is_told_apart(shared_stage: Stage, call: Call, error: str) -> None:
    assert ask(shared_stage, call).error == error


def test_a_property_cannot_be_set(shared_stage: Stage) -> None:
    call = Call(names.PROPERTIES, "Set", "ssv", [names.MANAGER, "State", Variant("s", "idle")])
    assert ask(shared_stage, call).error == f"{ERRORS}.PropertyReadOnly"


def test_a_call_without_interface_finds_its_method(shared_stage: Stage) -> None:
    assert ask(shared_stage, Call("", "ListJobs", "a{sv}", [{}])).error == ""
    assert ask(shared_stage, Call("", "Ping")).error == ""


def test_the_machine_id_is_told(shared_stage: Stage) -> None:
    machine_id = Path("/etc/machine-id")
    answer = ask(shared_stage, Call(names.PEER, "GetMachineId"))
    if machine_id.exists():
        assert answer.body == [machine_id.read_text().strip()]
    else:
        assert answer.error


def test_getall_of_no_interface_merges_all(shared_stage: Stage) -> None:
    (merged,) = ask(shared_stage, Call(names.PROPERTIES, "GetAll", "s", [""])).body
    assert {"Version", "Algorithm", "Esp"} <= set(merged)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colour": Variant("s", "blue")}, "'colour'"),
        ({"replace": Variant("s", "yes")}, "'replace' is of type 'b'"),
        ({"generate": Variant("as", ["everything"])}, "none of normative, boot"),
        ({"name": Variant("v", Variant("s", "x"))}, "'name' is of type 's'"),
        ({"request-id": Variant("s", "x" * 200)}, "'request-id'"),
        ({"on-client-gone": Variant("s", "explode")}, "none of keep, cancel"),
    ],
)
def test_options_that_are_not_understood_are_refused_by_name(
    shared_stage: Stage, options: dict[str, Variant], text: str
) -> None:
    answer = ask(shared_stage, Call(names.MANAGER, "Pull", "sa{sv}", ["oci:/nowhere", options]))
    assert answer.error == f"{ERRORS}.InvalidArgs"
    assert text in answer.body[0]


def test_a_format_that_the_repository_lacks_is_unsupported(shared_stage: Stage) -> None:
    for label in ("v2", "v9"):
        call = Call(names.MANAGER, "Pull", "sa{sv}", ["oci:/nowhere", {"format": Variant("s", label)}])
        assert ask(shared_stage, call).error == f"{names.ERRORS}.Unsupported"


@pytest.mark.parametrize("text", ["\ufdd0", "\uffff", "\U0001fffe", "\x01\x7f", "x" * 60_000])
def test_strange_text_comes_back_in_an_error_that_everybody_can_read(shared_stage: Stage, text: str) -> None:
    answer = ask(shared_stage, Call(names.MANAGER, "GetImage", "s", [text]))
    assert answer.error == f"{names.ERRORS}.NoSuchImage"
    assert not set(answer.body[0]) & {"\ufdd0", "\uffff", "\U0001fffe", "\0"}


def test_a_call_that_is_too_long_is_refused_and_the_next_one_answered(shared_stage: Stage) -> None:
    with Raw(str(shared_stage.socket)) as raw:
        for size in (100_000, 20 << 20):
            long = raw.send(Call(names.MANAGER, "GetImage", "s", ["x" * size]).message())
            short = raw.send(PING.message())
            assert raw.reply(long).error_name == f"{names.ERRORS}.LimitExceeded"
            assert raw.reply(short).message_type is MessageType.METHOD_RETURN


def test_descriptors_that_nobody_asked_for_are_closed(shared_stage: Stage) -> None:
    before = open_descriptors(shared_stage.pid)
    descriptor = os.open("/etc/hostname", os.O_RDONLY)
    try:
        for _ in range(5):
            with Raw(str(shared_stage.socket)) as raw:
                for _ in range(20):
                    assert not raw.reply(raw.send(PING.message(), [descriptor] * 16)).error_name
                serial = raw.send(raw_call("GetImage", "h", [0]), [descriptor])
                assert raw.reply(serial).error_name == f"{ERRORS}.InvalidArgs"
    finally:
        os.close(descriptor)
    assert open_descriptors(shared_stage.pid) <= before + 2


def test_descriptors_that_are_handed_out_are_closed(stage: Stage, layout: str) -> None:
    async def read(client: Client) -> None:
        job = await client.start(
            names.MANAGER, "Pull", f"oci:{layout}:other", name=Variant("s", "x"), generate=NORMATIVE
        )
        assert not (await client.wait(job)).error
        (image,) = await client.ask(Call(names.MANAGER, "GetImage", "s", ["x"]))
        before = open_descriptors(stage.pid)
        (text,) = await client.ask(Call(names.IMAGE, "ReadDocument", "sa{sv}", ["manifest", {}], image))
        for _ in range(30):
            descriptor = await client.descriptor(Call(names.IMAGE, "OpenDocument", "sa{sv}", ["manifest", {}], image))
            with os.fdopen(descriptor, "rb") as document:
                assert document.read().decode() == text
        assert open_descriptors(stage.pid) <= before + 2

    run(stage, read)


def test_a_flood_is_refused_and_others_are_served(shared_stage: Stage) -> None:
    async def measure(client: Client) -> float:
        slowest = 0.0
        for _ in range(50):
            began = time.monotonic()
            assert not (await client.call(LIST_JOBS)).error
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)
        return slowest

    with Raw(str(shared_stage.socket)) as raw:
        last = 0
        for _ in range(100):  # each counts as sixty calls
            last = raw.send(Call(names.MANAGER, "GetImage", "s", ["x" * 60_000]).message())
        assert run(shared_stage, measure) < 2.0
        assert raw.reply(last).error_name == f"{names.ERRORS}.LimitExceeded"
        time.sleep(1)
        assert raw.reply(raw.send(PING.message())).message_type is MessageType.METHOD_RETURN


def test_calls_that_want_no_answer_get_none(shared_stage: Stage) -> None:
    with Raw(str(shared_stage.socket)) as raw:
        silent = [raw.send(raw_call(flags=MessageFlag.NO_REPLY_EXPECTED)) for _ in range(5)]
        silent.append(raw.send(raw_call("Nonsense", flags=MessageFlag.NO_REPLY_EXPECTED)))
        assert raw.reply(raw.send(PING.message())).reply_serial == silent[-1] + 1


def test_a_reply_that_nobody_waits_for_is_harmless(shared_stage: Stage) -> None:
    with Raw(str(shared_stage.socket)) as raw:
        signal = Message.new_signal("/x", "org.example.X", "Y", "s", ["z"])
        signal.destination = names.BUS_NAME
        raw.send(signal)
        assert raw.reply(raw.send(PING.message())).message_type is MessageType.METHOD_RETURN


def test_one_connection_can_wait_for_so_many_jobs_and_no_more(stage: Stage, layout: str) -> None:
    async def wait(client: Client) -> None:
        job = await client.start(
            names.MANAGER, "Pull", f"oci:{layout}:slow", name=Variant("s", "x"), generate=NORMATIVE
        )
        errors = [answer.error for answer in await asyncio.gather(*(client.wait(job) for _ in range(21)))]
        assert errors.count(f"{names.ERRORS}.LimitExceeded") == 1
        assert errors.count("") == 20

    run(stage, wait)
