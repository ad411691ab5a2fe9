"""The command line."""

import re
import shlex

import pytest

from composefsd.client.exits import Exit
from composefsd.client.options import parse
from composefsd.client.schema import describe
from composefsd.client.verbs import VERBS

OFFLINE = ("compute-id", "diff", "seal", "verify-seal")
HELP = re.compile(r"^    ([a-z-]+)(?: |$)", re.MULTILINE)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == Exit.USAGE
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("composefsctl: ")
    return line


def test_options_of_the_program_stand_before_the_verb_or_after_it() -> None:
    for argv in (["--json", "--user", "images"], ["images", "--json", "--user"], ["--user", "images", "--json"]):
        args = parse(argv)
        assert (args.verb, args.json, args.bus) == ("images", True, "session")


def test_without_an_option_it_is_the_system_bus() -> None:
    assert (parse(["status"]).bus, parse(["status"]).json) == ("system", False)
    assert parse(["status", "--bus", "unix:path=/run/x"]).bus == "unix:path=/run/x"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["pulll"],
        ["pull"],
        ["images", "extra"],
        ["deploy", "os", "--verity", "maybe"],
        ["cancel", "first"],
        ["cancel", "-1"],
        ["cancel", str(2**64)],
        ["cancel", "\u0661"],
        ["fsck", "--max-findings", str(2**32)],
        ["images", "--js"],
        ["--user", "--bus", "x", "images"],
        ["compute-id", "/", "--hash", "md5"],
        ["compute-id", "/", "--json", "--dumpfile"],
        ["compute-id", "/", "--karg", "--dumpfile"],
        ["diff", "a"],
        ["diff", "a", "b", "--limit", "-1"],
        ["inspect", "os", "--kind", "boot"],
        ["inspect", "os", "--document", "dumpfile", "--json"],
        ["seal", "/"],
        ["seal", "/", "-o", "oci:x", "--key", "k", "--signer", "s"],
        ["seal", "/", "-o", "oci:x", "--format", "v0"],
        ["verify-seal"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, *argv)


def test_a_usage_error_points_to_the_help_of_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "composefsctl deploy --help" in refused(capsys, "deploy")


def test_help_knows_every_verb_and_every_verb_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    verbs = set(HELP.findall(capsys.readouterr().out))
    assert verbs == {*VERBS, *OFFLINE}


@pytest.mark.parametrize("verb", [*VERBS, *OFFLINE])
def test_the_examples_of_a_verb_parse(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([verb, "--help"])
    _, _, examples = capsys.readouterr().out.partition("examples:\n")
    for line in examples.partition("\n\n")[0].splitlines():
        words = shlex.split(line.partition("<")[0])
        assert parse(words[1:]).verb == verb


def test_defaults_of_compute_id_are_those_of_cfsctl() -> None:
    args = parse(["compute-id", "/srv"])
    assert (args.format, args.hash, args.xattrs) == ("v1", "sha512", "allowlist-only")
    assert (args.bootable, args.as_is, args.dumpfile, args.karg) == (False, False, False, False)


@pytest.mark.parametrize("verb", [*VERBS, *OFFLINE])
def test_the_help_of_a_verb_tells_the_keys_of_its_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([verb, "--help"])
    assert "with --json: " in capsys.readouterr().out


def test_keys_of_records_are_told_with_their_types() -> None:
    lines = describe("images").splitlines()
    assert lines[0] == "with --json: array of objects"
    assert "  names                 array of strings" in lines
    assert "  created               integer or null" in lines
    assert "  digests               array of objects" in lines
    assert "    block_size          integer or null" in lines
