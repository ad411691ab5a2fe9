from pathlib import Path

import pytest

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import InvalidArgumentsError
from composefsd.service import config
from composefsd.service.config import Setting, load, parse, settings_of

EXAMPLE = Path(__file__).parents[3] / "systemd" / "composefsd.conf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "composefsd.conf"


def test_lines_are_read_in_systemds_manner() -> None:
    text = "# comment\n; too\n\n[Daemon]\nA = 1 \nB=2 \\\n  3\n[Other]\nA=\n"
    assert list(parse(text, "f")) == [
        Setting("Daemon", "A", "1", "f:5"),
        Setting("Daemon", "B", "2  3", "f:6"),
        Setting("Other", "A", "", "f:9"),
    ]


def test_a_line_that_is_no_setting_is_told_with_its_number() -> None:
    with pytest.raises(InvalidArgumentsError, match="f:2: 'nonsense'"):
        list(parse("[Daemon]\nnonsense\n", "f"))


def test_every_key_is_understood(file: Path) -> None:
    file.write_text(
        "[Daemon]\nRepository=/r\nSysroot=/s/../t\nESP=/e\nXBOOTLDR=/x\nState=/v\n"
        "Algorithm=sha256\nFormats=v2 v1\nInsecure=Yes\nEFIVariables=/v/ars\n"
    )
    settings = settings_of(load(file), {})
    assert settings.repository == Path("/r")
    assert settings.sysroot == Path("/t")
    assert (settings.esp, settings.xbootldr, settings.state) == (Path("/e"), Path("/x"), Path("/v"))
    assert settings.algorithm is Algorithm.SHA256
    assert settings.formats == (FormatVersion.V2, FormatVersion.V1)
    assert settings.insecure
    assert settings.efivars == Path("/v/ars")


def test_the_shipped_example_shows_every_key_and_its_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    shown = [line.removeprefix("#") for line in EXAMPLE.read_text().splitlines() if line[:1] == "#" and "=" in line]
    assert {line.partition("=")[0] for line in shown} >= set(config._KEYS)
    keys = tuple(f"{key}=" for key in config._KEYS)
    file.write_text("\n".join(["[Daemon]", *(line for line in shown if line.startswith(keys))]))
    assert settings_of(load(file), {}) == settings_of({}, {})
    assert load(EXAMPLE) == {}


def test_later_settings_override_and_empty_ones_reset(file: Path) -> None:
    file.write_text("[Daemon]\nRepository=/a\nRepository=/b\nESP=/e\nESP=\n")
    assert load(file) == {"Repository": Path("/b")}


def test_drop_ins_override_the_file_in_the_order_of_their_names(file: Path) -> None:
    file.write_text("[Daemon]\nRepository=/file\n")
    folder = file.with_name("composefsd.conf.d")
    folder.mkdir()
    for name in ("20-b.conf", "10-a.conf", "30-ignored.txt"):
        (folder / name).write_text(f"[Daemon]\nRepository=/{name}\n")
    assert load(file) == {"Repository": Path("/20-b.conf")}


def test_the_command_line_overrides_the_file(file: Path) -> None:
    file.write_text("[Daemon]\nSysroot=/file\nESP=/esp\n")
    settings = settings_of(load(file), {"Sysroot": Path("/line"), "ESP": None})
    assert (settings.sysroot, settings.esp) == (Path("/line"), Path("/esp"))
    assert settings.repository == Path("/line/composefs")


def test_unknown_keys_are_warned_about_with_file_and_line(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("[Daemon]\nColour=blue\n")
    assert load(file) == {}
    assert f"{file}:2: unknown key Colour" in caplog.text


@pytest.mark.parametrize(
    "line", ["Repository=relative", "Insecure=perhaps", "Algorithm=md5", "Formats=v0", "Formats=v1 v9", "ESP=/a\0b"]
)
def test_a_bad_value_is_told_with_file_line_and_key(file: Path, line: str) -> None:
    file.write_text(f"[Daemon]\n{line}\n")
    with pytest.raises(InvalidArgumentsError, match=f":2: {line.partition('=')[0]}="):
        load(file)


def test_a_file_that_was_asked_for_has_to_be_there(file: Path) -> None:
    with pytest.raises(InvalidArgumentsError, match="cannot read"):
        load(file)


def test_the_efi_variables_are_those_of_the_running_system_or_nobodys() -> None:
    assert settings_of({}, {}).efivars == config.DEFAULT_EFIVARS
    assert settings_of({"Sysroot": Path("/mnt")}, {}).efivars is None
    given = {"Sysroot": Path("/mnt"), "EFIVariables": Path("/given")}
    assert settings_of(given, {}).efivars == Path("/given")


def test_the_state_directory_is_systemds_or_belongs_to_the_sysroot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/given:/other")
    assert settings_of({}, {}).state == Path("/given")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert settings_of({}, {}).state == config.DEFAULT_STATE
    assert settings_of({"Sysroot": Path("/mnt")}, {}).state == Path("/mnt/state/composefsd/daemon")
