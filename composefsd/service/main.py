"""The command `composefsd`: options, configuration, logging, and the daemon until it is told to stop.

Exit status: 0 after SIGTERM, SIGINT or idleness, 1 if it cannot start or the bus goes away, 2 for wrong usage.
"""

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from composefsd import VERSION
from composefsd.errors import ComposefsdError
from composefsd.service import config, logs
from composefsd.service.connection import address_of
from composefsd.service.daemon import Daemon

log = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="composefsd", description="The daemon that owns the composefs object repository of a host."
    )
    parser.add_argument("--config", metavar="FILE", type=_absolute, help=f"default: {config.DEFAULT_FILE}")
    parser.add_argument("--repository", metavar="DIR", type=_absolute, help="default: composefs below the sysroot")
    parser.add_argument("--sysroot", metavar="DIR", type=_absolute, help=f"default: {config.DEFAULT_SYSROOT}")
    parser.add_argument("--esp", metavar="DIR", type=_absolute, help="default: the one that is mounted")
    parser.add_argument("--xbootldr", metavar="DIR", type=_absolute, help="default: the one that is mounted")
    parser.add_argument(
        "--state", metavar="DIR", type=_absolute, help="what the daemon remembers; default: $STATE_DIRECTORY"
    )
    parser.add_argument(
        "--bus", metavar="BUS", default="system", help="system (the default), session, or the address of a bus"
    )
    parser.add_argument("--no-idle-exit", action="store_true", help="stay, also when there is nothing to do")
    parser.add_argument("--debug", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"composefsd {VERSION}")
    return parser


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(text))  # noqa: PTH100 - the path is not to be resolved: the repository may be a link


def _overrides(arguments: argparse.Namespace) -> dict[str, Path | None]:
    return {
        "Repository": arguments.repository,
        "Sysroot": arguments.sysroot,
        "ESP": arguments.esp,
        "XBOOTLDR": arguments.xbootldr,
        "State": arguments.state,
    }


async def _run(arguments: argparse.Namespace) -> None:
    settings = config.settings_of(config.load(arguments.config), _overrides(arguments))
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in _STOPPING:
        loop.add_signal_handler(number, stop.set)
    daemon = await Daemon.start(address_of(arguments.bus), settings)
    try:
        await daemon.run(stop, exits_when_idle=not arguments.no_idle_exit)
    finally:
        await daemon.stop()
        for number in _STOPPING:  # asked again while the interpreter leaves: it is on its way
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; the exit status."""
    arguments = _parser().parse_args(argv)
    faulthandler.enable()  # the watchdog's SIGABRT puts all stacks into the journal
    os.umask(0o077)
    logs.set_up(logging.DEBUG if arguments.debug else logging.INFO)
    try:
        asyncio.run(_run(arguments))
    except ComposefsdError as error:
        log.error("%s", error.message)  # noqa: TRY400 - one line for a person; it is no bug
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
