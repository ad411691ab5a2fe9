"""EFI variables, in a directory that stands in for efivarfs: this machine may have none."""

from pathlib import Path

import pytest

from composefsd.errors import ComposefsdError, FormatError, UnsupportedError
from composefsd.linux.efivars import GLOBAL, LOADER, Variables


def test_what_was_written_is_read_back_with_the_attributes_of_a_lasting_variable(tmp_path: Path) -> None:
    variables = Variables(tmp_path)
    variables.write("LoaderSystemToken", b"\1\2\3")
    assert variables.read("LoaderSystemToken") == b"\1\2\3"
    assert (tmp_path / f"LoaderSystemToken-{LOADER}").read_bytes() == b"\7\0\0\0\1\2\3"


def test_text_is_utf_16_with_a_nul(tmp_path: Path) -> None:
    variables = Variables(tmp_path)
    variables.write_text("LoaderEntryOneShot", "ä.conf")
    assert variables.text("LoaderEntryOneShot") == "ä.conf"
    assert variables.read("LoaderEntryOneShot") == "ä.conf\0".encode("utf-16-le")


def test_a_variable_belongs_to_its_vendor(tmp_path: Path) -> None:
    variables = Variables(tmp_path)
    variables.write("BootOrder", b"\0\0", GLOBAL)
    assert variables.read("BootOrder") is None
    assert variables.read("BootOrder", GLOBAL) == b"\0\0"


def test_removing_tells_whether_there_was_one(tmp_path: Path) -> None:
    variables = Variables(tmp_path)
    variables.write("LoaderEntryDefault", b"x")
    assert variables.remove("LoaderEntryDefault")
    assert not variables.remove("LoaderEntryDefault")


@pytest.mark.parametrize("data", [b"", b"\7\0\0", b"\7\0\0\0" + b"x" * (1 << 16), b"\7\0\0\0\0\xd8"])
def test_what_is_no_text_is_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / f"LoaderInfo-{LOADER}").write_bytes(data)
    assert Variables(tmp_path).text("LoaderInfo") is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / f"LoaderEntryDefault-{LOADER}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ComposefsdError, match="LoaderEntryDefault"):
        Variables(tmp_path).write("LoaderEntryDefault", b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_machine_without_variables_says_so(tmp_path: Path) -> None:
    variables = Variables(tmp_path / "none")
    assert variables.text("LoaderInfo") is None
    with pytest.raises(UnsupportedError, match="no EFI variables"):
        variables.write("LoaderInfo", b"")


def test_text_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="NUL"):
        Variables(tmp_path).write_text("LoaderEntryDefault", "a\0b")
