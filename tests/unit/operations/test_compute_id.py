"""Digests for image builders; that they are those of composefs-rs is shown by tests/interop/test_compute_id.py."""

import io
from pathlib import Path

import pytest

from composefsd.boot.cmdline import ComposefsArgument
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import compute_id
from composefsd.errors import InvalidArgumentsError
from composefsd.operations.compute_id import Question, compute, karg, write_dumpfile
from composefsd.operations.sources import Reading, Source, read

EMPTY = b"/ 0 40755 2 0 0 0 0.0 - - -\n"


@pytest.fixture
def dump(tmp_path: Path) -> str:
    path = tmp_path / "dump"
    path.write_bytes(EMPTY)
    return str(path)


@pytest.mark.parametrize("version", FormatVersion)
@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_digest_of_a_dumpfile_is_that_of_its_image(
    dump: str, version: FormatVersion, algorithm: Algorithm
) -> None:
    found = compute(Question(dump, version=version, algorithm=algorithm))
    assert found == compute_id(read(Source.parse(dump), Reading(algorithm)), version)
    assert found.algorithm is algorithm


def test_a_dumpfile_comes_out_as_it_went_in(dump: str) -> None:
    out = io.BytesIO()
    write_dumpfile(Question(dump), out)
    assert out.getvalue() == EMPTY


def test_a_dumpfile_cannot_become_a_boot_image(dump: str) -> None:
    for ask in (lambda question: question.check(), compute, lambda question: write_dumpfile(question, io.BytesIO())):
        with pytest.raises(InvalidArgumentsError, match="--bootable needs"):
            ask(Question(dump, bootable=True))


@pytest.mark.parametrize(
    ("version", "beginning"),
    [
        (FormatVersion.V0, "composefs.digest=v1-sha256-12:"),
        (FormatVersion.V1, "composefs.digest=v1-sha256-12:"),
        (FormatVersion.V2, "composefs="),
    ],
)
def test_the_argument_of_a_command_line_is_read_back(version: FormatVersion, beginning: str) -> None:
    digest = ObjectId(bytes(range(32)))
    argument = karg(digest, version)
    assert argument == beginning + digest.hex
    parsed = ComposefsArgument.parse(argument)
    assert parsed is not None
    assert parsed.digest == digest
