"""The command line of composefsctl: verbs, options, help with examples.

The options of the whole program may stand before the verb or after it.
"""

import argparse
from collections.abc import Sequence
from typing import Final, NoReturn

from composefsd import VERSION

PROGRAM: Final = "composefsctl"

_EPILOG: Final = """\
exit status:
  0  done
  1  failed, or bad input
  2  wrong usage
  3  cancelled or interrupted
  4  not authorized
  5  no daemon, or no bus

examples:
  composefsctl pull oci:/srv/images/os:stable --name os
  composefsctl deploy os --dry-run
  composefsctl deploy os
  composefsctl status
  composefsctl images --json | jq -r '.[].manifest_digest'

`composefsctl VERB --help` tells more about a verb.
"""

_FORMATS: Final = ("v1", "v2")
_ALL_FORMATS: Final = ("v0", *_FORMATS)
_HASHES: Final = ("sha256", "sha512")
_XATTRS: Final = ("allowlist-only", "keep-user-xattrs")
_PROFILES: Final = ("current", "0.9.2", "0.7.0")
_MAX_U32: Final = 2**32 - 1
_MAX_U64: Final = 2**64 - 1


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr, and which takes no abbreviations: units are written to last."""

    verb = ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {' '.join(message.split())} (see {self.prog} --help)\n")

    def format_help(self) -> str:
        """With the keys of the verb's JSON."""
        text = super().format_help()
        if not self.verb:
            return text
        from composefsd.client.schema import describe  # only for help: it loads the records

        return f"{text}\n{describe(self.verb)}"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; `verb` says which.  Raises SystemExit with 2 for wrong usage, with 0 after help and version."""
    args = _parser().parse_args(argv)
    if args.verb == "compute-id" and args.json and args.dumpfile:
        _parser().error("--dumpfile is text: it cannot be had with --json")
    if args.verb == "inspect" and args.json and args.document == "dumpfile":
        _parser().error("a dumpfile is text: it cannot be had with --json")
    if args.verb == "seal" and args.signer is not None and args.key is not None:
        _parser().error("--signer signs instead of --key: only one of them can be given")
    if args.verb == "inspect" and args.kind and args.document != "dumpfile":
        _parser().error("--kind is for --document dumpfile")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Pull OCI images into the composefs repository of this host, and boot them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    parser.set_defaults(bus="system", json=False)
    _add_common(parser)
    verbs = _Verbs(parser)
    _add_reading(verbs)
    _add_images(verbs)
    _add_deploying(verbs)
    _add_upkeep(verbs)
    _add_compute_id(verbs)
    _add_diff(verbs)
    _add_sealing(verbs)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("for every verb")
    which = group.add_mutually_exclusive_group()
    # Without SUPPRESS a verb's parser would reset what stood before the verb.
    which.add_argument(
        "--user",
        dest="bus",
        action="store_const",
        const="session",
        default=argparse.SUPPRESS,
        help="talk to the daemon on the session bus instead of the system bus",
    )
    which.add_argument("--bus", metavar="ADDRESS", default=argparse.SUPPRESS, help="talk to the daemon on this bus")
    group.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON; the help of a verb tells its keys"
    )


class _Verbs:
    """Adds verbs to the program."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._verbs: argparse._SubParsersAction[_Parser] = parser.add_subparsers(
            dest="verb", metavar="VERB", required=True, title="verbs", parser_class=_Parser
        )

    def add(self, name: str, summary: str, *examples: str) -> _Parser:
        """A verb; the examples are the rest of command lines."""
        lines = [f"  {PROGRAM} {name} {example}".rstrip() for example in examples]
        verb = self._verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="\n".join(["examples:", *lines]) if lines else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.verb = name
        _add_common(verb)
        return verb

    def add_job(self, name: str, summary: str, *examples: str) -> _Parser:
        """A verb that starts a job and waits for it."""
        verb = self.add(name, summary, *examples)
        group = verb.add_argument_group("waiting for the job")
        group.add_argument("--no-wait", action="store_true", help="print the job's id and leave it to the daemon")
        group.add_argument("-q", "--quiet", action="store_true", help="do not show progress")
        group.add_argument(
            "--request-id",
            metavar="ID",
            help="an id of your choice: asking again with it within a day gives the same job, not another one",
        )
        return verb


def _add_reading(verbs: _Verbs) -> None:
    verbs.add("status", "show daemon, repository, boot partition, deployments and running jobs", "", "--json")
    verbs.add("images", "list the OCI images of the repository", "", "--json")

    inspect = verbs.add("inspect", "show everything about an image", "os", "os --document config")
    _add_image(inspect)
    inspect.add_argument(
        "--document",
        choices=("manifest", "config", "dumpfile", "expected-digests"),
        help="print this document instead",
    )
    inspect.add_argument(
        "--kind",
        choices=("normative", "boot"),
        help="of which composefs image to print the dumpfile (default: normative)",
    )

    verbs.add("deployments", "list the deployments in boot order", "", "--json")

    jobs = verbs.add("jobs", "list the jobs that run or ended a short while ago", "", "--state running")
    jobs.add_argument("--type", metavar="TYPE", help="only jobs of this type, such as pull")
    jobs.add_argument("--state", metavar="STATE", help="only jobs in this state, such as running or failed")


def _add_images(verbs: _Verbs) -> None:
    pull = verbs.add_job(
        "pull",
        "fetch an OCI image and generate its composefs images, or fetch an OCI artifact",
        "oci:/srv/images/os:stable --name os",
        "oci-archive:os.tar --require-digest sha256:…",
    )
    pull.add_argument("reference", metavar="REFERENCE", help="oci:PATH[:TAG] or oci-archive:PATH[:TAG]")
    pull.add_argument("--name", metavar="NAME", help="tag the image so (default: the reference)")
    pull.add_argument("--replace", action="store_true", help="move the tag if another image has it")
    pull.add_argument("--platform", metavar="OS/ARCH", help="choose this from an index (default: this host's)")
    pull.add_argument("--require-digest", metavar="DIGEST", help="fail unless the manifest has this digest")
    pull.add_argument(
        "--generate",
        choices=("all", "normative", "boot", "none"),
        help="which composefs images to build (default: all)",
    )
    pull.add_argument("--format", choices=_FORMATS, help="format of the composefs images (default: the repository's)")

    tag = verbs.add("tag", "give an image a name, which keeps it", "os os-tested", "os stable --replace")
    _add_image(tag)
    tag.add_argument("name", metavar="NAME")
    tag.add_argument("--replace", action="store_true", help="move the name if another image has it")

    untag = verbs.add("untag", "take a name away; gc then removes an image without one", "os-tested")
    untag.add_argument("name", metavar="NAME")
    untag.add_argument("--missing-ok", action="store_true", help="do not fail if there is no such name")

    remove = verbs.add("remove", "remove an image and its names", "os", "sha256:… --force")
    _add_image(remove)
    remove.add_argument("--force", action="store_true", help="also if it has several names")

    generate = verbs.add_job("generate", "build composefs images of an image that was pulled", "os --kind boot")
    _add_image(generate)
    _add_build(generate)

    compute = verbs.add_job("compute", "compute digests of composefs images, storing nothing", "os --kind boot")
    _add_image(compute)
    _add_build(compute)


def _add_deploying(verbs: _Verbs) -> None:
    deploy = verbs.add_job(
        "deploy",
        "put an image on the boot partition as a boot entry",
        "os --dry-run",
        "os --verity deferred",
        "os --type type1 --kargs 'quiet console=ttyS0'",
    )
    _add_image(deploy)
    deploy.add_argument(
        "--dry-run", action="store_true", help="only tell what would be done, and what speaks against it"
    )
    deploy.add_argument(
        "--verity",
        choices=("require", "deferred", "optional"),
        help="what to demand of fs-verity: deferred if the disk is sealed later (default: require)",
    )
    deploy.add_argument(
        "--type", choices=("auto", "uki", "type1"), help="boot a UKI, or kernel and initrd (default: auto)"
    )
    deploy.add_argument(
        "--payload",
        metavar="NAME",
        help="what to boot, if the image has several things: a path that `inspect` shows, or the last name in it, or "
        "the version of a kernel",
    )
    deploy.add_argument("--uki", metavar="NAME", help="the same for UKIs alone")
    deploy.add_argument(
        "--kargs",
        metavar="ARGUMENTS",
        action="append",
        default=[],
        help="kernel arguments to add to a type 1 entry; may be given several times",
    )
    deploy.add_argument(
        "--kargs-delete",
        metavar="ARGUMENTS",
        action="append",
        default=[],
        help="kernel arguments of the image to leave out of a type 1 entry: KEY=VALUE, or KEY whatever its value is",
    )
    deploy.add_argument(
        "--karg-form",
        choices=("auto", "legacy", "described"),
        help="name the image by `composefs=` (legacy, all that the initrd of bootc 1.16 knows), by "
        "`composefs.digest=`, or as composefs-rs does for its format (default: auto)",
    )

    undeploy = verbs.add_job(
        "undeploy", "remove a deployment from the boot partition", "3f2a9c01d2e4", "rollback --state"
    )
    undeploy.add_argument("deployment", metavar="DEPLOYMENT", help="an id as `deployments` shows it, or a prefix")
    undeploy.add_argument("--state", action="store_true", help="also remove its /etc and /var")


def _add_upkeep(verbs: _Verbs) -> None:
    gc = verbs.add_job("gc", "remove what no image, name or deployment needs", "--dry-run", "")
    gc.add_argument("--dry-run", action="store_true", help="only tell what would be removed, and why the rest stays")
    gc.add_argument("--verbose", action="store_true", help="list everything that goes, one by one")

    explain = verbs.add(
        "explain",
        "tell what keeps an object, stream or image; exit status 1 if gc would take it",
        "sha512:3f2a9c01…",
        "oci-layer-sha256:…",
        "os",
    )
    explain.add_argument(
        "object",
        metavar="OBJECT",
        help="the digest of an object, a stream's name, the digest of a manifest, config or layer, or a name",
    )

    fsck = verbs.add_job(
        "fsck",
        "check the repository, and repair it; fails if it is damaged, or if anything is left after a repair",
        "--depth metadata",
        "--depth full --repair",
    )
    fsck.add_argument("--depth", choices=("metadata", "quick", "full"), help="how much to read of it")
    fsck.add_argument(
        "--repair",
        action="store_true",
        help="mend what can be mended, also by fetching it again from where an image was pulled from",
    )
    fsck.add_argument("--image", metavar="IMAGE", help="only what this image needs")
    fsck.add_argument("--max-findings", metavar="COUNT", type=_count, help="list no more than these (default: 1000)")

    verbs.add_job("enable-verity", "make an insecure repository secure: fs-verity for all that it holds", "")

    cancel = verbs.add("cancel", "ask a job to stop", "41")
    cancel.add_argument("job", metavar="JOB", type=_job_id, help="its number, as `jobs` shows it")


def _add_compute_id(verbs: _Verbs) -> None:
    compute = verbs.add(
        "compute-id",
        "print the digest of a composefs image; needs no daemon and no repository",
        "/srv/rootfs --bootable",
        "oci:./layout:stable --bootable",
        "/srv/rootfs --bootable --karg",
        "- < tree.dump",
    )
    compute.add_argument(
        "source",
        metavar="SOURCE",
        help="a directory, oci:PATH[:TAG], oci-archive:PATH[:TAG], or a dumpfile (- is standard input)",
    )
    compute.add_argument("--format", choices=_ALL_FORMATS, default="v1", help="(default: v1)")
    compute.add_argument("--hash", choices=_HASHES, default="sha512", help="(default: sha512)")
    _add_tree(compute)
    instead = compute.add_mutually_exclusive_group()
    instead.add_argument("--dumpfile", action="store_true", help="print the tree as a dumpfile instead of its digest")
    instead.add_argument(
        "--karg", action="store_true", help="print the argument for the command line of a UKI instead"
    )


def _add_sealing(verbs: _Verbs) -> None:
    seal = verbs.add(
        "seal",
        "make an OCI image whose UKI names the digest of its own boot image; needs no daemon, but ukify",
        "/srv/rootfs -o oci:./sealed:stable --key db.key --certificate db.crt",
        "oci:./layout:stable -o oci:./sealed:stable --cmdline 'rw quiet' --signer /usr/local/bin/sign-uki",
    )
    seal.add_argument("source", metavar="SOURCE", help="a root directory, oci:PATH[:TAG] or oci-archive:PATH[:TAG]")
    seal.add_argument("-o", "--output", metavar="oci:PATH[:TAG]", required=True, help="the layout to write it into")
    uki = seal.add_argument_group("the UKI")
    uki.add_argument("--cmdline", metavar="TEXT", default="", help="kernel arguments beside the one that is added")
    uki.add_argument("--kernel", metavar="VERSION", help="which kernel, if the image has several")
    uki.add_argument("--uki-name", metavar="NAME", help="its name, without .efi (default: the kernel's version)")
    uki.add_argument(
        "--karg-form",
        choices=("auto", "legacy", "described"),
        default="auto",
        help="name the image by `composefs=` (legacy, all that the initrd of bootc 1.16 knows), by "
        "`composefs.digest=`, or as composefs-rs does for its format (default: auto)",
    )
    uki.add_argument("--ukify", metavar="PATH", help="the ukify to run (default: that on PATH)")
    uki.add_argument("--stub", metavar="FILE", help="the UKI's stub (default: ukify's)")
    signing = seal.add_argument_group("signing")
    signing.add_argument("--key", metavar="FILE", help="sign the UKI with this key, through ukify")
    signing.add_argument("--certificate", metavar="FILE", help="the certificate that belongs to the key")
    signing.add_argument(
        "--signer",
        metavar="COMMAND",
        help="have this command sign the UKI instead: it gets the paths of the unsigned one and of that to write",
    )
    image = seal.add_argument_group("the image")
    image.add_argument("--format", choices=_FORMATS, default="v1", help="of the boot image (default: v1)")
    image.add_argument("--hash", choices=_HASHES, default="sha512", help="that of the hosts (default: sha512)")
    image.add_argument("--xattrs", choices=_XATTRS, default="allowlist-only", help="(default: allowlist-only)")
    image.add_argument("--remove-kernel", action="store_true", help="leave the kernel in the UKI alone")
    image.add_argument("--dumpfile", action="store_true", help="put the dumpfile of the boot image beside the UKI")
    image.add_argument("--annotate", action="store_true", help="claim the digests in the manifest's annotations, too")
    image.add_argument("--platform", metavar="OS/ARCH", help="choose this from an index (default: this host's)")

    verify = verbs.add(
        "verify-seal",
        "tell whether the UKIs of an image name its boot image: exit status 0 if so, 1 if not; needs no daemon",
        "oci:./sealed:stable",
        "oci-archive:os.tar --json",
    )
    verify.add_argument("source", metavar="SOURCE", help="oci:PATH[:TAG] or oci-archive:PATH[:TAG]")
    verify.add_argument("--certificate", metavar="FILE", help="demand that its key has signed every UKI")
    verify.add_argument("--platform", metavar="OS/ARCH", help="choose this from an index (default: this host's)")


def _add_diff(verbs: _Verbs) -> None:
    diff = verbs.add(
        "diff",
        "tell why the digests of two images differ; exit status 0 if they do not, 1 if they do, else trouble",
        "/srv/rootfs oci:./layout:stable --bootable",
        "image:os image:os-tested --bootable",
        "old.erofs new.erofs --limit 0",
    )
    what = "as compute-id takes it, an EROFS image file, or image:IMAGE for an image of the daemon's repository"
    diff.add_argument("a", metavar="A", help=what)
    diff.add_argument("b", metavar="B", help="likewise; sides that are no image files become images by these options")
    diff.add_argument("--format", choices=_ALL_FORMATS, help="(default: that of an image on one side, else v1)")
    diff.add_argument("--hash", choices=_HASHES, help="(default: that of an image on one side, else sha512)")
    _add_tree(diff)
    diff.add_argument(
        "--limit", metavar="N", type=_count, default=100, help="tell N differences (default: 100; 0 for all)"
    )
    diff.add_argument(
        "--verbose",
        action="store_true",
        help="tell each name in a directory that only one side has, and what images of the format do not store",
    )


def _add_tree(verb: argparse.ArgumentParser) -> None:
    """How a tree is made of a source."""
    _add_profile(verb)
    verb.add_argument("--bootable", action="store_true", help="of the boot image instead of the normative one")
    verb.add_argument("--xattrs", choices=_XATTRS, default="allowlist-only", help="(default: allowlist-only)")
    verb.add_argument(
        "--no-propagate-usr-to-root",
        dest="as_is",
        action="store_true",
        help="take a directory as it is: leave the root's metadata, /run and all extended attributes alone",
    )


def _add_image(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("image", metavar="IMAGE", help="a name, a digest, or at least 12 digits of one")


def _add_build(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--kind", choices=("all", "normative", "boot"), default="all", help="which composefs image (default: all)"
    )
    verb.add_argument("--format", choices=_FORMATS, help="(default: the repository's)")
    verb.add_argument("--hash", choices=_HASHES, help="(default: the repository's)")
    verb.add_argument("--xattrs", choices=_XATTRS, help="which extended attributes to keep (default: allowlist-only)")
    _add_profile(verb)
    verb.add_argument(
        "--expect",
        metavar="DIGEST",
        help="find the variant that has this digest, by whatever format, attributes and profile; fail if none has it",
    )


def _add_profile(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--profile",
        choices=_PROFILES,
        help="make the boot image by the rules of composefs-rs up to 0.9.2, or of 0.7.0 (default: current)",
    )


def _job_id(text: str) -> int:
    return _number(text, _MAX_U64)


def _count(text: str) -> int:
    return _number(text, _MAX_U32)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= most):
        raise argparse.ArgumentTypeError(f"not a number up to {most}: {text!r}")
    return int(text)
