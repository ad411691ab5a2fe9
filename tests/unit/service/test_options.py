from enum import StrEnum
from typing import Any

import pytest
from dbus_next import Variant

from composefsd.digests import OciDigest
from composefsd.errors import FormatError, InvalidArgumentsError
from composefsd.service.options import (
    JOB_OPTIONS,
    ClientGone,
    JobKeys,
    Option,
    Options,
    Priority,
    arguments_of,
    choice,
    flag,
    job_keys,
    number,
    parsed,
    text,
    texts,
    word,
    words,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def test_values_are_read_and_defaults_kept() -> None:
    known: tuple[Option[Any], ...] = (
        text("a"),
        flag("b"),
        number("c"),
        texts("d"),
        word("e", Colour),
        words("f", Colour),
    )
    given = {"a": Variant("s", "x"), "c": Variant("u", 7), "f": Variant("as", ["red", "blue", "red"])}
    options = Options(given, *known)
    assert [options.get(option, None) for option in known] == ["x", None, 7, None, None, set(Colour)]


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentsError, match="unknown option 'colour'"):
        Options({"colour": Variant("s", "red")}, text("a"))


def test_another_type_is_refused_with_the_one_wanted() -> None:
    with pytest.raises(InvalidArgumentsError, match="option 'b' is of type 'b', not 's'"):
        Options({"b": Variant("s", "yes")}, flag("b"))


@pytest.mark.parametrize("option", [word("e", Colour), choice("e", ["red", "blue"])])
def test_a_word_that_is_none_is_refused_with_those_that_are(option: Option[Any]) -> None:
    options = Options({"e": Variant("s", "green")}, option)
    with pytest.raises(InvalidArgumentsError, match="option 'e': 'green' is none of red, blue"):
        options.get(option, None)


def test_what_a_parser_raises_keeps_its_class_and_names_the_key() -> None:
    option = parsed("digest", OciDigest.parse)
    with pytest.raises(FormatError, match="option 'digest': not an OCI digest"):
        Options({"digest": Variant("s", "x")}, option).get(option, None)


@pytest.mark.parametrize(
    ("option", "value"),
    [(text("a"), Variant("s", "x" * 5000)), (texts("a"), Variant("as", ["x"] * 1000))],
)
def test_what_is_too_long_is_refused(option: Option[Any], value: Variant) -> None:
    with pytest.raises(InvalidArgumentsError, match="option 'a'"):
        Options({"a": value}, option).get(option, None)


def test_the_job_keys_are_read() -> None:
    given = {
        "request-id": Variant("s", "one"),
        "on-client-gone": Variant("s", "cancel"),
        "priority": Variant("s", "idle"),
        "timeout-usec": Variant("t", 5),
    }
    assert job_keys(Options(given, *JOB_OPTIONS)) == JobKeys("one", ClientGone.CANCEL, Priority.IDLE, 5)
    assert job_keys(Options({}, *JOB_OPTIONS)) == JobKeys()


@pytest.mark.parametrize("value", ["x" * 129, "a\nb", "\0"])
def test_a_request_id_is_short_and_printable(value: str) -> None:
    with pytest.raises(InvalidArgumentsError, match="request-id"):
        job_keys(Options({"request-id": Variant("s", value)}, *JOB_OPTIONS))


def test_a_jobs_arguments_are_those_given_without_the_job_keys() -> None:
    given = {"name": Variant("s", "x"), "request-id": Variant("s", "one")}
    shown = arguments_of(given, reference="oci:/x")
    assert shown == {"name": Variant("s", "x"), "reference": Variant("s", "oci:/x")}


def test_text_that_others_cannot_read_does_not_come_back() -> None:
    shown = arguments_of({"kargs": Variant("as", ["a\ufdd0"])}, image="\uffff")
    assert shown == {"kargs": Variant("as", ["a\\xef\\xb7\\x90"]), "image": Variant("s", "\\xef\\xbf\\xbf")}
