"""`seal` and `verify-seal`: for image builders, without a daemon."""

import dataclasses
import json
import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path
from types import FrameType

from composefsd.client.exits import ClientError, Exit
from composefsd.client.render import Colour, Screen
from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError, InvalidArgumentsError, InvalidReferenceError
from composefsd.operations import seal, verify_seal
from composefsd.operations.sealing.request import SealRequest
from composefsd.operations.sealing.tools import Signing
from composefsd.tree.normative import XattrMode


def run(args: Namespace) -> Exit:
    """Do what the verb says.  Raises ClientError."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        return _seal(args) if args.verb == "seal" else _verify(args)
    except (InvalidArgumentsError, InvalidReferenceError) as error:
        raise ClientError(error.message, Exit.USAGE) from error
    except ComposefsdError as error:
        raise ClientError(error.message) from error


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """So that scratch files are removed; asyncio would have SIGINT wait until a program that we run has ended."""
    raise KeyboardInterrupt


def _seal(args: Namespace) -> Exit:
    request = SealRequest(
        source=args.source,
        output=args.output,
        signing=Signing(_path(args.key), _path(args.certificate), _command(args.signer)),
        cmdline=args.cmdline,
        version=FormatVersion.from_label(args.format),
        algorithm=Algorithm(args.hash),
        xattrs=XattrMode(args.xattrs),
        kernel=args.kernel,
        uki_name=args.uki_name,
        ukify=_path(args.ukify),
        stub=_path(args.stub),
        platform=args.platform,
        spelling=args.karg_form,
        dumpfile=args.dumpfile,
        annotate=args.annotate,
        remove_kernel=args.remove_kernel,
    )
    sealed = seal.seal(request)
    facts = {
        "manifest_digest": str(sealed.manifest_digest),
        "boot_digest": str(sealed.boot_digest),
        "karg": sealed.argument,
        "uki": sealed.uki,
        "kernel_version": sealed.kernel_version,
        "signed": sealed.signed,
        "unchanged": sealed.unchanged,
    }
    if args.json:
        sys.stdout.write(f"{json.dumps(facts)}\n")
        return Exit.DONE
    screen = Screen.of(sys.stdout)
    screen.line(f"{request.output}: {'sealed so already' if sealed.unchanged else 'sealed'}")
    screen.line(f"  manifest    {screen.digest(str(sealed.manifest_digest))}")
    screen.line(f"  boot image  {screen.digest(str(sealed.boot_digest))}")
    screen.line(f"  UKI         {sealed.uki}, {'signed' if sealed.signed else 'not signed'}")
    return Exit.DONE


def _verify(args: Namespace) -> Exit:
    report = verify_seal.verify(args.source, args.platform, _path(args.certificate))
    if args.json:
        facts = dataclasses.asdict(report) | {
            "manifest_digest": str(report.manifest_digest),
            "computed": [{"variant": words, "digest": digest} for words, digest in report.computed],
            "right": report.right,
        }
        sys.stdout.write(f"{json.dumps(facts)}\n")
    else:
        _show(Screen.of(sys.stdout), report)
    return Exit.DONE if report.right else Exit.FAILED


def _show(screen: Screen, report: verify_seal.SealReport) -> None:
    for uki in report.ukis:
        screen.line(uki.path)
        if not uki.signatures:
            screen.line("  not signed")
        for signature in uki.signatures:
            told = f": {signature.problem}" if signature.problem else ""
            screen.line(f"  signed by   {signature.subject or 'nobody that can be told'}{told}")
            screen.line(f"    certificate {screen.digest(f'sha256:{signature.certificate}')}")
        for line in uki.command_lines:
            told = f"profile {', '.join(line.profiles)}: " if line.profiles else ""
            screen.line(f"  boots with  {told}{line.text}")
            for image in line.images:
                found = f"is the image {image.variant}" if image.variant else "is no image of this tree"
                screen.line(f"    {screen.digest(image.digest)} {found}")
    if report.computed and not all(image.variant for image in _named(report)):
        screen.line("images of this tree")
        for words, digest in report.computed:
            screen.line(f"  {screen.digest(digest)} {words}")
    for problem in report.problems:
        screen.line(problem, Colour.RED)
    if report.right:
        screen.line("sealed, and right", Colour.GREEN)


def _named(report: verify_seal.SealReport) -> list[verify_seal.NamedImage]:
    return [image for uki in report.ukis for line in uki.command_lines for image in line.images]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _command(text: str | None) -> tuple[str, ...]:
    """A command and its arguments, by the quoting rules of a shell, which has no part in it."""
    if text is None:
        return ()
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidArgumentsError(f"--signer: {error}") from error
    if not words:
        raise InvalidArgumentsError("--signer is empty")
    return words
