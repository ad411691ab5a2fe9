"""The whole way once, to watch: an OCI image becomes two composefs images and a boot entry, asked for over D-Bus."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from real import image
from real.stage import Stage, StageError

_UKI_DIGEST: Final = re.compile(rb"composefs\.digest=\??v1-sha512-12:([0-9a-f]{128})")
_SERVICE: Final = "org.composefs.Composefs1"
_OBJECT: Final = "/org/composefs/Composefs1"


class DemoError(Exception):
    """The demo shows something that it should not."""


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


def heading(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def shown(stage: Stage, *arguments: str) -> None:
    """Run composefsctl for people to see.  Raises DemoError if it fails."""
    say(f"$ composefsctl {shlex.join(arguments)}")
    if subprocess.run(stage.command(*arguments), check=False).returncode != 0:
        raise DemoError(
            f"composefsctl {arguments[0]} failed; the daemon's log ends:\n{stage.log.read_text()[-3000:]}"
        )


def tree(folder: Path, indent: str = "") -> Iterator[str]:
    """A folder's names and sizes, as lines."""
    entries = sorted(folder.iterdir())
    for entry in entries:
        last = entry is entries[-1]
        size = "" if entry.is_dir() else f"  ({entry.stat().st_size:,} bytes)"
        yield f"{indent}{'└── ' if last else '├── '}{entry.name}{size}"
        if entry.is_dir():
            yield from tree(entry, indent + ("    " if last else "│   "))


def named_by_uki(esp: Path) -> str:
    """The digest on the command line of the one UKI on the ESP.  Raises DemoError unless there is one of each."""
    ukis = list(esp.rglob("*.efi"))
    found = {match[1].decode() for uki in ukis for match in _UKI_DIGEST.finditer(uki.read_bytes())}
    if len(ukis) != 1 or len(found) != 1:
        raise DemoError(f"expected one UKI that names one digest on the ESP, found {len(ukis)} naming {len(found)}")
    return found.pop()


def show_digests(stage: Stage, wanted: str) -> None:
    """Print both digests.  Raises DemoError unless the boot image is what the UKI names, here and on the ESP."""
    digests, named = stage.digests("demo"), named_by_uki(stage.esp)
    say(f"normative image   {digests['normative']}")
    say(f"boot image        {digests['boot']}")
    say(f"named by the UKI  {named}")
    if not digests["boot"] == named == wanted:
        raise DemoError("the UKI on the ESP does not name the boot image")
    say("The boot image is the one that the UKI names.")


def busctl_calls(reference: str) -> list[list[str]]:
    """The D-Bus calls behind what was shown, as busctl takes them."""
    call = ["busctl", "call", _SERVICE, _OBJECT]
    manager, boot = f"{_SERVICE}.Manager", f"{_SERVICE}.Boot"
    return [
        ["busctl", "introspect", _SERVICE, _OBJECT],
        [*call, manager, "Pull", "sa{sv}", reference, "1", "name", "s", "demo"],
        [*call, manager, "ListImages", "a{sv}", "1", "names-only", "b", "true"],
        [*call, boot, "Deploy", "sa{sv}", "demo", "1", "verity", "s", "deferred"],
        [*call, manager, "WaitJob", "tt", "4", "0"],
        [*call, boot, "ListDeployments", "a{sv}", "0"],
    ]


def show_calls(stage: Stage, reference: str) -> None:
    """Print the calls, and run the one that lists the images, so that they are known to work."""
    calls = busctl_calls(reference)
    say(f"export DBUS_SYSTEM_BUS_ADDRESS={stage.address}")
    say(f"export DEMO_IMAGE={shlex.quote(reference)}")
    for command in calls:
        say(shlex.join(command))
    if shutil.which("busctl"):
        say("\nListImages answers:")
        environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": stage.address}
        if subprocess.run(calls[2], env=environment, check=False).returncode != 0:
            raise DemoError("busctl failed")


def play(stage: Stage, demo: image.DemoImage) -> None:
    """The acts of the demo.  Raises DemoError as soon as one does not go as it should."""
    heading("Pull: verify the layers, store their files as objects, make the two images")
    shown(stage, "pull", demo.reference(), "--name=demo")
    heading("Images")
    shown(stage, "images")
    heading("Deploy: put the UKI on the ESP (this disk would be sealed with fs-verity later, hence `deferred`)")
    shown(stage, "deploy", "demo", "--verity=deferred")
    heading("The two digests")
    show_digests(stage, demo.digests["sha512"])
    heading("The ESP")
    say("\n".join(("esp", *tree(stage.esp))))
    heading("Status")
    shown(stage, "status")
    heading("The same by busctl")
    show_calls(stage, demo.reference())


def stay(stage: Stage) -> None:
    """Leave the daemon running until Ctrl-C."""
    say(f"\nThe daemon runs until Ctrl-C; its folder is {stage.folder}. Elsewhere:")
    say(shlex.join(stage.command("status")))
    signal.pause()


def run(*, keep: bool) -> None:
    demo = image.demo_image()
    if demo.missing:
        say(f"No Debian 13 can be built here: {demo.missing}")
        say("The demo goes on with a hand-made image of a few files, in which nothing runs.")
    with tempfile.TemporaryDirectory(prefix="composefs-demo-") as folder, Stage(Path(folder)) as stage:
        play(stage, demo)
        if keep:
            stay(stage)
    say("\nDaemon, bus, repository and ESP of the demo are gone again (DEMO_FLAGS=--keep leaves them running).")


def interrupted(_signal: int, _frame: object) -> NoReturn:
    """What a signal to end does: the same as Ctrl-C."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the daemon running at the end, until Ctrl-C")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    try:
        run(keep=arguments.keep)
    except KeyboardInterrupt:
        say("\nStopped; nothing is left of the demo.")
        return 0 if arguments.keep else 130
    except (DemoError, StageError, subprocess.CalledProcessError) as error:
        say(f"\nThe demo failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
