"""Signatures of sealed images: by a key through ukify, and by commands, right ones and wrong ones."""

from pathlib import Path

import pytest
from real import ukify
from real.sealing import UKI, assert_leaves_nothing, run, script, seal, verify
from real.ukify import Key, Tools


def test_a_key_signs_and_sealing_again_leaves_the_signature(
    tools: Tools, root: Path, key: Key, tmp_path: Path
) -> None:
    where = f"oci:{tmp_path / 'out'}:os"
    signing = (f"--key={key.private}", f"--certificate={key.certificate}")
    answer = seal(tools, root, where, *signing)
    (signature,) = verify(tools, where, f"--certificate={key.certificate}")["ukis"][0]["signatures"]
    assert (signature["state"], signature["subject"]) == ("good", "CN=test key")
    assert answer["signed"]
    assert seal(tools, root, where, *signing) == answer | {"unchanged": True}
    other = ukify.make_key(tmp_path, "other key")
    report = verify(tools, where, f"--certificate={other.certificate}")
    assert report["problems"] == [f"/{UKI}: it is not signed by the key of the wanted certificate"]
    resealed = seal(tools, root, where, f"--key={other.private}", f"--certificate={other.certificate}")
    assert resealed["manifest_digest"] != answer["manifest_digest"]
    assert verify(tools, where, f"--certificate={other.certificate}")["right"]


def test_a_command_signs_and_gets_its_own_arguments_first(tools: Tools, root: Path, key: Key, tmp_path: Path) -> None:
    sbsign = f'exec {tools.bin}/sbsign --key "{key.private}" --cert "{key.certificate}"'
    text = f'test "$1" = "two words" && {sbsign} "$2" --output "$3"'
    command = f"{script(tmp_path / 'sign', text)} 'two words'"
    answer = seal(tools, root, f"oci:{tmp_path / 'out'}:os", f"--signer={command}")
    assert answer["signed"]
    assert verify(tools, f"oci:{tmp_path / 'out'}:os", f"--certificate={key.certificate}")["right"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('mkfifo "$2"', "wrote no signed UKI"),
        ('cp "$1" "$2"; truncate -s 1T "$2"', "bytes larger; 1048576 are allowed"),
        ("echo 'no token' >&2; exit 3", "exit status 3: no token"),
        ("exit 0", "wrote no signed UKI"),
        ('cp "$1" "$2"', "has no signature after it was signed"),
        ('head -c 100 "$1" > "$2"', "PE"),
        ("kill -9 $$", "signal 9"),
    ],
)
def test_a_signer_that_does_not_sign_is_no_reason_to_leave_anything(
    text: str, says: str, tools: Tools, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = script(tmp_path / "sign", text)
    done = run(tools, "seal", root, "-o", f"oci:{out}:os", f"--stub={tools.stub}", f"--signer={command}")
    assert done.returncode == 1
    assert says in done.stderr
    assert_leaves_nothing(out)


def test_a_signer_that_changes_the_uki_is_found_out(tools: Tools, root: Path, key: Key, tmp_path: Path) -> None:
    text = (
        f'sed "s/rw quiet/rw shell/" "$1" > "$2.in" && exec {tools.bin}/sbsign --key "{key.private}" '
        f'--cert "{key.certificate}" "$2.in" --output "$2"'
    )
    command = script(tmp_path / "sign", text)
    out = tmp_path / "out"
    done = run(
        tools, "seal", root, "-o", f"oci:{out}", f"--stub={tools.stub}", "--cmdline=rw quiet", f"--signer={command}"
    )
    assert (done.returncode, "signing changed the section .cmdline" in done.stderr) == (1, True)
    assert_leaves_nothing(out)


def test_a_signer_that_changes_what_it_was_given_is_found_out(
    tools: Tools, root: Path, key: Key, tmp_path: Path
) -> None:
    sbsign = f'exec {tools.bin}/sbsign --key "{key.private}" --cert "{key.certificate}"'
    command = script(tmp_path / "sign", f'sed -i "s/rw quiet/rw shell/" "$1" && {sbsign} "$1" --output "$2"')
    out = tmp_path / "out"
    arguments = ("seal", root, "-o", f"oci:{out}", f"--stub={tools.stub}", "--cmdline=rw quiet")
    done = run(tools, *arguments, f"--signer={command}")
    assert (done.returncode, "signing changed the section .cmdline" in done.stderr) == (1, True)
    assert_leaves_nothing(out)
