"""`diff`: why two digests differ, as differences of the trees that they are of.

All but `image:NAME` is read by this process; of an image of the daemon's repository the daemon hands out the
dumpfile.  The exit status is that of diff(1).
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from composefsd.client.exits import ClientError, Exit, discard_output
from composefsd.client.render import Colour, Screen
from composefsd.client.results import to_json
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, InvalidArgumentsError
from composefsd.operations.difference import Loaded, Pair, Reason, Subject, SubjectKind, Wanted, choose, load
from composefsd.operations.difference_lines import Row, line, record, rows
from composefsd.operations.sources import STDIN, Reading, Source, SourceKind, opened
from composefsd.tree.difference import Only, Side
from composefsd.tree.dumpfile import quote
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

STORED: Final = "image:"
"""What a source starts with that is an image of the daemon's repository."""

_COLOURS: Final = {Side.A: Colour.RED, Side.B: Colour.GREEN}


def run(args: Namespace) -> Exit:
    """Compare, and tell.  Raises ClientError."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a scratch repository is removed then, too
    try:
        with ExitStack() as stack:
            pair = _load(args, stack)
        status = _tell(pair, args)
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output has had enough of it
        discard_output()
        return Exit.TROUBLE
    except ClientError as error:
        raise ClientError(error.message, max(error.status, Exit.TROUBLE)) from error
    except OSError as error:
        raise ClientError(f"{error.filename or 'diff'}: {error.strerror}", Exit.TROUBLE) from error
    except ComposefsdError as error:
        raise ClientError(error.message, Exit.TROUBLE) from error
    return status


# Reading


def _load(args: Namespace, stack: ExitStack) -> Pair:
    wanted = Wanted(
        bootable=args.bootable,
        version=None if args.format is None else FormatVersion.from_label(args.format),
        algorithm=None if args.hash is None else Algorithm(args.hash),
        xattrs=XattrMode(args.xattrs),
        as_is=args.as_is,
        profile=Profile(args.profile or Profile.CURRENT),
    )
    if args.a == args.b == STDIN:
        raise InvalidArgumentsError("only one side can be standard input")
    subjects = [_open(text, wanted, stack) for text in (args.a, args.b)]
    if any(one.kind is SubjectKind.STORED for one in subjects):
        subjects, reading, version = _fetch(args, subjects, wanted)
    else:
        reading, version = choose(subjects, wanted)
    for one in subjects:
        if one.file is not None and one.text != STDIN:
            stack.enter_context(one.file)
    a, b = (load(one, reading, version) for one in subjects)
    return Pair(a, b)


def _open(text: str, wanted: Wanted, stack: ExitStack) -> Subject:
    if text.startswith(STORED):
        if wanted.as_is:
            raise InvalidArgumentsError("an image of the repository has its form from the layers: it is no directory")
        return Subject(text, SubjectKind.STORED)
    source = Source.parse(text)
    if source.kind is SourceKind.FILE:  # taken as it is, whatever is wanted of the other side
        return Subject.of_file(text, stack.enter_context(opened(text)), wanted.algorithm)
    return Subject.of_source(source, wanted)


def _fetch(
    args: Namespace, subjects: Sequence[Subject], wanted: Wanted
) -> tuple[list[Subject], Reading, FormatVersion]:
    # Imported here since nothing else needs asyncio and D-Bus.
    from composefsd.client.diff_stored import fetch
    from composefsd.client.online import in_session

    return in_session(args, lambda session: fetch(session.proxy, subjects, wanted))


# Telling


@dataclass(slots=True)
class _Tally:
    """Takes rows and hands on the first ones; stored counts what the images' formats store, unstored the rest."""

    emit: Callable[[Row, bool], None]
    limit: int
    stored: int = 0
    unstored: int = 0
    told: int = 0
    left_out: int = 0

    def add(self, row: Row, *, is_stored: bool, shown: bool) -> None:
        """Count a row, and hand it on if it is to be shown and there were not too many."""
        self.stored += is_stored
        self.unstored += not is_stored
        if shown and (self.told < self.limit or not self.limit):
            self.told += 1
            self.emit(row, is_stored)
        else:
            self.left_out += shown


@dataclass(slots=True)
class _Records:
    """Rows for JSON."""

    found: list[object] = field(default_factory=list)

    def add(self, row: Row, is_stored: bool) -> None:  # noqa: FBT001 - the form of `_Tally.emit`
        self.found.append(record(row, is_stored=is_stored))


def _tell(pair: Pair, args: Namespace) -> Exit:
    if args.json:
        _tell_json(pair, args)
    else:
        _tell_people(pair, args, Screen.of(sys.stdout))
    return Exit.DONE if pair.equal else Exit.DIFFERENT


def _count(pair: Pair, args: Namespace, emit: Callable[[Row, bool], None]) -> _Tally:
    tally = _Tally(emit, args.limit)
    for difference in pair.differences(expand=args.verbose):
        for row in rows(difference):
            is_stored = isinstance(row, Only) or pair.is_stored(row[1])
            tally.add(row, is_stored=is_stored, shown=is_stored or args.verbose)
    return tally


def _tell_json(pair: Pair, args: Namespace) -> None:
    records = _Records()
    tally = _count(pair, args, records.add)
    answer = {
        "equal": pair.equal,
        "a": _side_record(pair.a),
        "b": _side_record(pair.b),
        "differences": records.found,
        "differences_total": tally.stored,
        "unstored_total": tally.unstored,
        "reasons": [_reason_record(one) for one in pair.reasons(tally.stored, tally.unstored)],
    }
    sys.stdout.write(to_json(answer) + "\n")


def _side_record(side: Loaded) -> dict[str, str]:
    return {
        "source": side.text,
        "kind": side.kind.value,
        "digest": side.digest.hex,
        "hash": side.digest.algorithm.value,
        "format": side.version.label,
    }


def _reason_record(reason: Reason) -> dict[str, str | int | None]:
    spot = reason.spot
    return {
        "code": reason.code.value,
        "message": reason.message,
        "side": None if reason.side is None else reason.side.value,
        "offset": None if spot is None else spot.offset,
        "part": None if spot is None else spot.part.value,
        "path": None if spot is None or spot.path is None else quote(spot.path),
    }


def _tell_people(pair: Pair, args: Namespace, screen: Screen) -> None:
    for name, side in (("A", pair.a), ("B", pair.b)):
        screen.line(f"{name}  {side.digest}  {side.version.label} {side.kind.value} {side.text}")

    def show(row: Row, is_stored: bool) -> None:  # noqa: FBT001 - the form of `_Tally.emit`
        colour = _COLOURS[row.side] if isinstance(row, Only) else None
        screen.line(line(row) + ("" if is_stored else " (not stored)"), colour)

    tally = _count(pair, args, show)
    if tally.left_out:
        screen.line(f"and {tally.left_out:,} more; --limit 0 shows all")
    for reason in pair.reasons(tally.stored, tally.unstored):
        screen.line(reason.message)
    if pair.equal and not tally.stored:
        screen.line("the digests are equal")
