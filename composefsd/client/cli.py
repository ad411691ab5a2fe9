"""composefsctl: the entry point.

Only argparse is loaded before it is known what to do: `--help` and a mistyped verb answer at once.
"""

import io
import os
import sys
from collections.abc import Sequence

from composefsd.client.exits import ClientError, Exit, discard_output
from composefsd.client.options import PROGRAM, parse
from composefsd.client.text import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    _open_streams()
    try:
        status = _run(argv)
        sys.stdout.flush()
    except ClientError as error:
        return _fail(error.message, error.status)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.CANCELLED)
    except BrokenPipeError:  # who read our output has had enough of it
        discard_output()
        return Exit.FAILED
    except OSError as error:
        discard_output()
        return _fail(f"cannot write: {error.strerror}", Exit.FAILED)
    return status


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = parse(argv)
    except SystemExit as stop:  # argparse has said what there is to say
        return int(stop.code or 0)
    # Imported here to keep start-up short: one side brings asyncio and D-Bus, the other one every codec.
    if args.verb == "compute-id":
        from composefsd.client.offline import run
    elif args.verb == "diff":
        from composefsd.client.diff import run
    elif args.verb in ("seal", "verify-seal"):
        from composefsd.client.seal import run
    else:
        from composefsd.client.online import run
    return run(args)


def _open_streams() -> None:
    """Have streams that take any text, also where the caller closed them or the locale is poor."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, status: Exit) -> Exit:
    """Tell why on one line of stderr."""
    sys.stderr.write(f"{PROGRAM}: {one_line(message)}\n")
    return status
