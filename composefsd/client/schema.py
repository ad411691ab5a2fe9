"""The keys of `--json`, as the help of each verb tells them.

Those of records are read from the records themselves; what jobs bring is in the API only, so it stands here.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Final, get_args, get_origin

from composefsd.client.records import Deployment, Image, Job, Status

RECORDS: Final[dict[str, type]] = {
    "status": Status,
    "images": list[Image],
    "inspect": Image,
    "deployments": list[Deployment],
    "jobs": list[Job],
}
"""What the verbs answer that only read."""

ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "tag": ("image", "name"),
    "untag": ("name",),
    "remove": ("names",),
    "cancel": ("job",),
    "explain": ("object", "kept", "reasons"),
    "compute-id": ("digest", "hash", "format", "karg"),
    "seal": ("manifest_digest", "boot_digest", "karg", "uki", "kernel_version", "signed", "unchanged"),
    "verify-seal": ("right", "manifest_digest", "problems", "ukis", "computed"),
    "diff": ("equal", "a", "b", "differences", "differences_total", "unstored_total", "reasons"),
}
"""Keys of the verbs that do something at once."""

RESULTS: Final[dict[str, tuple[str, ...]]] = {
    "pull": (
        "manifest_digest", "image", "normative_digest", "boot_digest",
        "bytes_fetched", "bytes_reused", "objects_added", "expected_digests",
    ),
    "generate": ("normative_digest", "boot_digest", "expected_digests"),
    "compute": ("normative_digest", "boot_digest", "expected_digests"),
    "deploy": ("deployment", "boot_digest", "plan", "space", "kernel_arguments", "objections"),
    "undeploy": ("freed_bytes",),
    "gc": (
        "freed_bytes", "objects_removed", "images_pruned", "streams_pruned", "unlisted",
        "stays", "goes",
    ),
    "enable-verity": ("already_secure", "objects_checked", "objects_enabled", "bytes_checked"),
    "fsck": ("findings", "findings_total", "objects_checked", "repaired"),
}  # fmt: skip
"""Keys of what jobs bring, beside `job` and `state`; those that do not apply are left out."""

_WORDS: Final = {str: "string", int: "integer", bool: "true or false", float: "number", dict: "object"}


def describe(verb: str) -> str:
    """Lines for the help of a verb."""
    if verb in RECORDS:
        kind = RECORDS[verb]
        lines = [f"with --json: {_word(kind)}", *_fields(kind, "  ")]
    else:
        keys = ACTIONS.get(verb) or ("job", "state", *RESULTS[verb])
        lines = ["with --json: object", *(f"  {key}" for key in keys)]
        lines += ["with --json and --no-wait: object", "  job", "  path"] if verb in RESULTS else []
    return "\n".join(lines) + "\n"


def _word(kind: Any) -> str:  # a type, or a form of `typing`
    """What JSON calls a type."""
    if get_origin(kind) is types.UnionType:
        return " or ".join("null" if part is types.NoneType else _word(part) for part in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return f"array of {_word(get_args(kind)[0])}s"
    return _WORDS.get(get_origin(kind) or kind, "object")


def _fields(kind: Any, indent: str) -> Iterator[str]:
    """A line for each field of a record, and of the records in it."""
    record = get_args(kind)[0] if get_origin(kind) in (list, tuple) else kind
    if not dataclasses.is_dataclass(record):
        return
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        yield f"{indent}{field.name:<{24 - len(indent)}}{_word(hints[field.name])}"
        yield from _fields(hints[field.name], indent + "  ")
