"""Errors on their way out of a worker process."""

import json

import pytest

from composefsd import errors
from composefsd.errors import ComposefsdError, FormatError, InternalError, NoSpaceError, from_wire, to_wire

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ComposefsdError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_crosses_a_pipe_as_json(cls: type[ComposefsdError]) -> None:
    wire = json.loads(json.dumps(to_wire(cls("what happened", offset=512, subject="/usr", detail=None))))
    arrived = from_wire(wire)
    assert type(arrived) is cls
    assert str(arrived) == "what happened"
    assert arrived.facts == {"offset": 512, "subject": "/usr", "detail": None}


def test_a_class_that_does_not_exist_becomes_an_internal_error() -> None:
    arrived = from_wire({"name": "KeyboardInterrupt", "message": "boo", "facts": {}})
    assert type(arrived) is InternalError


def test_every_class_says_what_a_caller_can_act_on() -> None:
    assert [cls.__name__ for cls in CLASSES if not cls.__doc__] == []


def test_facts_are_attributes_and_not_part_of_the_message() -> None:
    error = NoSpaceError("the disk is full", partition="/boot", needed_bytes=10, free_bytes=5)
    assert (str(error), error.facts["needed_bytes"]) == ("the disk is full", 10)
    assert FormatError("short").facts == {}
