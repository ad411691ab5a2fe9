"""Kernel command lines."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import cmdline
from composefsd.boot.cmdline import ComposefsArgument, Spelling
from composefsd.digests import Algorithm, ObjectId
from composefsd.errors import FormatError, NotBootableError

A = ObjectId(bytes(range(32)))
B = ObjectId(bytes(32))
LONG = ObjectId(bytes(range(64)))

DIGESTS = st.sampled_from([A, B, LONG])
ARGUMENTS = st.builds(ComposefsArgument, DIGESTS, st.sampled_from([None, 1, 2]), st.booleans())
LINES = st.text("ab=?\"' \t\n\f\r\v\xa0composefs.digest=v12-sha256:0", max_size=60)


def _split_by_characters(line: str) -> list[str]:
    """As upstream writes it."""
    tokens, quoted = [""], False
    for char in line:
        quoted ^= char == '"'
        if not quoted and char in " \t\n\f\r":
            tokens.append("")
        else:
            tokens[-1] += char
    return [token for token in tokens if token]


@given(LINES)
def test_a_line_is_cut_at_white_space_outside_quotes(line: str) -> None:
    assert cmdline.split(line) == _split_by_characters(line)


@given(ARGUMENTS)
def test_an_argument_survives_its_text(argument: ComposefsArgument) -> None:
    assert ComposefsArgument.parse(str(argument)) == argument
    assert cmdline.find_all(f"quiet {argument} rw") == (argument,)


def test_both_spellings_are_those_of_upstream() -> None:
    assert str(ComposefsArgument(A)) == f"composefs={A.hex}"
    assert str(ComposefsArgument(A, None, insecure=True)) == f"composefs=?{A.hex}"
    assert str(ComposefsArgument(A, 1)) == f"composefs.digest=v1-sha256-12:{A.hex}"
    assert str(ComposefsArgument(LONG, 2, insecure=True)) == f"composefs.digest=?v2-sha512-12:{LONG.hex}"


@given(LINES)
def test_hostile_lines_raise_nothing_but_format_error(line: str) -> None:
    for algorithm in Algorithm:
        with suppress(FormatError):
            cmdline.find(line, algorithm)
        with suppress(FormatError):
            cmdline.find_all(line)
        with suppress(NotBootableError):
            cmdline.check(line, {A}, algorithm)
    with suppress(FormatError):
        assert cmdline.find_all(cmdline.with_argument(line, ComposefsArgument(B))) == (ComposefsArgument(B),)


@pytest.mark.parametrize(
    "token",
    [
        "composefs=",
        "composefs=?",
        f"composefs={A.hex.upper()}",
        f"composefs={A.hex}0",
        f'composefs="{A.hex}"',
        f"composefs.digest={A.hex}",
        f"composefs.digest=v3-sha256-12:{A.hex}",
        f"composefs.digest=v1-sha256-16:{A.hex}",
        f"composefs.digest=v1-sha512-12:{A.hex}",
        f"composefs.digest=v1-sha256-12:{A.hex.upper()}",
        f"composefs.digest=v1-sha256-12:??{A.hex}",
    ],
)
def test_malformed_arguments_are_refused(token: str) -> None:
    with pytest.raises(FormatError):
        ComposefsArgument.parse(token)


@pytest.mark.parametrize("token", ["composefs", "composefs.digest", "composefs.digestx=1", "rd.composefs=1", "a=b"])
def test_other_tokens_are_no_arguments(token: str) -> None:
    assert ComposefsArgument.parse(token) is None


def test_the_tools_take_a_described_digest_of_their_algorithm_over_a_legacy_one() -> None:
    line = f"composefs={B.hex} composefs.digest=v1-sha512-12:{LONG.hex} composefs.digest=v2-sha256-12:{A.hex}"
    assert cmdline.find(line, Algorithm.SHA256) == ComposefsArgument(A, 2)
    assert cmdline.find(line, Algorithm.SHA512) == ComposefsArgument(LONG, 1)
    assert cmdline.find(f"composefs={B.hex} composefs={A.hex}", Algorithm.SHA256) == ComposefsArgument(B)
    assert cmdline.find("quiet", Algorithm.SHA256) is None


def test_the_tools_refuse_a_legacy_digest_of_the_other_algorithm_and_a_malformed_one_in_front() -> None:
    with pytest.raises(FormatError, match="sha512"):
        cmdline.find(f"composefs={A.hex}", Algorithm.SHA512)
    with pytest.raises(FormatError, match="malformed"):
        cmdline.find(f"composefs.digest=v9-x composefs.digest=v1-sha256-12:{A.hex}", Algorithm.SHA256)


_OF_UPSTREAM = [
    # a line, and what composefs-boot 0.9.4 takes in it for SHA-256: an argument, nothing, or an error
    ("", None),
    ("quiet rw", None),
    ("composefs", None),
    ("composefs.digest", None),
    (f"xcomposefs={A.hex}", None),
    (f"composefs.digest.x={A.hex}", None),
    (f"composefs={A.hex}", ComposefsArgument(A)),
    (f"composefs=?{A.hex}", ComposefsArgument(A, None, insecure=True)),
    (f"composefs.digest=v1-sha256-12:{A.hex}", ComposefsArgument(A, 1)),
    (f"composefs.digest=?v1-sha256-12:{A.hex}", ComposefsArgument(A, 1, insecure=True)),
    (f"composefs.digest=v2-sha256-12:{A.hex}", ComposefsArgument(A, 2)),
    (f"composefs.digest=?v2-sha256-12:{A.hex}", ComposefsArgument(A, 2, insecure=True)),
    (f"a\tcomposefs={A.hex}\nb", ComposefsArgument(A)),
    (f"a\fcomposefs={A.hex}\rb", ComposefsArgument(A)),
    (f'x="a b" composefs={A.hex}', ComposefsArgument(A)),
    (f'x="a composefs={B.hex}" composefs={A.hex}', ComposefsArgument(A)),
    (f'x="a composefs={B.hex} composefs={A.hex}', None),
    (f"composefs={A.hex} composefs={B.hex}", ComposefsArgument(A)),
    (f"composefs={A.hex} composefs=rubbish", ComposefsArgument(A)),
    (f"composefs={A.hex} composefs.digest=v1-sha256-12:{B.hex}", ComposefsArgument(B, 1)),
    (f"composefs.digest=v2-sha256-12:{A.hex} composefs.digest=v1-sha256-12:{B.hex}", ComposefsArgument(A, 2)),
    (f"composefs.digest=v1-sha512-12:{LONG.hex}", None),
    (f"composefs.digest=v1-sha512-12:{LONG.hex} composefs.digest=v1-sha256-12:{A.hex}", ComposefsArgument(A, 1)),
    (f"composefs.digest=v1-sha512-12:{LONG.hex} composefs={A.hex}", ComposefsArgument(A)),
    (f"composefs.digest=v1-sha512-12:rubbish composefs={A.hex}", ComposefsArgument(A)),
    (f"composefs.digest=v1-sha512-12: composefs={A.hex}", ComposefsArgument(A)),
    (f"composefs.digest=v1-sha256-12:{A.hex} composefs=rubbish", ComposefsArgument(A, 1)),
    (f"composefs.digest=v1-sha256-12:{A.hex} composefs.digest=rubbish", ComposefsArgument(A, 1)),
    (f"composefs={LONG.hex}", FormatError),
    (f"composefs={LONG.hex} composefs={A.hex}", FormatError),
    ("composefs=", FormatError),
    ("composefs=?", FormatError),
    (f"composefs=??{A.hex}", FormatError),
    (f'composefs="{A.hex}"', FormatError),
    (f"composefs.digest={A.hex}", FormatError),
    (f"composefs.digest=v3-sha256-12:{A.hex}", FormatError),
    (f"composefs.digest=v3-sha512-12:{LONG.hex} composefs={A.hex}", FormatError),
    (f"composefs.digest=v1-sha1-12:{A.hex} composefs={A.hex}", FormatError),
    (f"composefs.digest=v1-sha256-16:{A.hex}", FormatError),
    (f"composefs.digest=v1-sha512-16:{LONG.hex} composefs={A.hex}", FormatError),
    (f"composefs.digest=v1-sha256:{A.hex}", FormatError),
    (f"composefs.digest=v1-sha256-12:{LONG.hex}", FormatError),
    (f"composefs.digest=v1?-sha256-12:{A.hex}", FormatError),
    (f"composefs={A.hex} composefs.digest=rubbish", FormatError),
]


@pytest.mark.parametrize(("line", "expected"), _OF_UPSTREAM)
def test_the_tools_of_composefs_rs_take_of_a_line_what_its_parser_takes(line: str, expected: object) -> None:
    if expected is FormatError:
        with pytest.raises(FormatError):
            cmdline.find(line, Algorithm.SHA256)
    else:
        assert cmdline.find(line, Algorithm.SHA256) == expected


@pytest.mark.parametrize(
    ("erofs_format", "spelling", "expected"),
    [
        (0, Spelling.AUTO, f"composefs.digest=v1-sha256-12:{A.hex}"),
        (1, Spelling.AUTO, f"composefs.digest=v1-sha256-12:{A.hex}"),
        (2, Spelling.AUTO, f"composefs={A.hex}"),
        (1, Spelling.LEGACY, f"composefs={A.hex}"),
        (2, Spelling.LEGACY, f"composefs={A.hex}"),
        (0, Spelling.DESCRIBED, f"composefs.digest=v1-sha256-12:{A.hex}"),
        (2, Spelling.DESCRIBED, f"composefs.digest=v2-sha256-12:{A.hex}"),
    ],
)
def test_an_image_is_named_as_its_format_or_the_caller_has_it(
    erofs_format: int, spelling: Spelling, expected: str
) -> None:
    for insecure in (False, True):
        argument = ComposefsArgument.of(A, erofs_format, spelling, insecure=insecure)
        assert str(argument) == (expected.replace("=", "=?") if insecure else expected)
        assert ComposefsArgument.parse(str(argument)) == argument


def test_quoted_white_space_does_not_start_a_token() -> None:
    assert cmdline.find_all(f'x="a composefs={A.hex} b"') == ()


def test_a_line_that_names_only_acceptable_images_passes_and_gives_its_arguments_in_order() -> None:
    line = f"rw composefs.digest=v1-sha256-12:{A.hex} composefs={B.hex}"
    assert cmdline.check(line, {A, B}, Algorithm.SHA256) == (ComposefsArgument(A, 1), ComposefsArgument(B))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("quiet", "names no composefs image"),
        (f"composefs={A.hex} composefs={B.hex}", "names another image"),
        (f"composefs={LONG.hex} composefs={A.hex}", "by sha512 first"),
        (f"composefs={A.hex} composefs={A.hex.upper()}", "not an fs-verity digest"),
        (f'"composefs={A.hex}" composefs={A.hex}', "quoted"),
        (f'com"pose"fs={A.hex} composefs={A.hex}', "quoted"),
        (f'composefs="{A.hex}"', "quoted"),
    ],
)
def test_what_could_boot_another_image_is_refused(line: str, reason: str) -> None:
    with pytest.raises(NotBootableError, match=reason):
        cmdline.check(line, {A, LONG}, Algorithm.SHA256)


def test_all_reasons_are_told_once_each() -> None:
    with pytest.raises(NotBootableError) as error:
        cmdline.check(f"composefs={B.hex} composefs=x composefs={B.hex}", {A}, Algorithm.SHA256)
    assert len(str(error.value).split("\n")) == 2


def test_editing_removes_both_spellings_and_keeps_the_rest_verbatim() -> None:
    options = f'root=LABEL="a  b" composefs={B.hex}  composefs.digest=x "composefs=1" rw'
    edited = cmdline.with_argument(options, ComposefsArgument(A, 1))
    assert edited == f'root=LABEL="a  b" rw composefs.digest=v1-sha256-12:{A.hex}'
    assert cmdline.with_argument("", ComposefsArgument(A)) == f"composefs={A.hex}"


def test_nothing_is_appended_inside_an_open_quote() -> None:
    with pytest.raises(FormatError, match="open quote"):
        cmdline.with_argument('x="a b', ComposefsArgument(A))
