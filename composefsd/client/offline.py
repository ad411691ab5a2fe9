"""`compute-id`: the digest of a source that no repository needs to know, without a daemon."""

import signal
import sys
from argparse import Namespace

from composefsd.client.exits import ClientError, Exit
from composefsd.client.results import to_json
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, InvalidArgumentsError
from composefsd.operations.compute_id import Question, compute, karg, write_dumpfile
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile


def run(args: Namespace) -> Exit:
    """Print the digest, or the dumpfile.  Raises ClientError."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a scratch repository is removed then, too
    question = Question(
        source=args.source,
        bootable=args.bootable,
        version=FormatVersion.from_label(args.format),
        algorithm=Algorithm(args.hash),
        xattrs=XattrMode(args.xattrs),
        as_is=args.as_is,
        profile=Profile(args.profile or Profile.CURRENT),
    )
    _check(question)
    try:
        _answer(question, args)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ClientError(f"{error.filename or 'compute-id'}: {error.strerror}") from error
    except ComposefsdError as error:
        raise ClientError(error.message) from error
    return Exit.DONE


def _check(question: Question) -> None:
    try:
        question.check()
    except InvalidArgumentsError as error:
        raise ClientError(error.message, Exit.USAGE) from error
    except ComposefsdError as error:
        raise ClientError(error.message) from error


def _answer(question: Question, args: Namespace) -> None:
    if args.dumpfile:
        write_dumpfile(question, sys.stdout.buffer)
        return
    digest = compute(question)
    argument = karg(digest, question.version)
    facts = {"digest": digest.hex, "hash": args.hash, "format": args.format, "karg": argument}
    text = argument if args.karg else digest.hex
    sys.stdout.write(f"{to_json(facts) if args.json else text}\n")
