"""JSON of records and of a job's `Result`: the names of the bus with underscores, structs as objects."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Final

from composefsd.client.properties import Properties, Value

_ARRAYS: Final = {
    "plan": ("action", "path", "bytes"),
    "findings": ("severity", "code", "subject", "message"),
    "repaired": ("code", "subject", "how"),
}
_STRUCTS: Final = {"space": ("free_before", "needed", "free_after")}
_FACTS: Final = "finding-facts"
"""A dictionary for each of `findings`; in JSON it is a member of the finding."""

_DELETE: Final = "\x7f"  # the only control character that json.dumps lets through


def to_json(value: object) -> str:
    """JSON of records, sequences and plain values: ASCII, indented, no control characters but newlines."""
    return json.dumps(_plain(value), indent=2).replace(_DELETE, "\\u007f")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def result_json(job: int, values: Mapping[str, Value]) -> dict[str, Value]:
    """A job that succeeded, with what it brought.  Raises AnswerError if a known member is of another form."""
    reader = Properties(values)
    found: dict[str, Value] = {"job": job, "state": "succeeded", **reader.without(*_ARRAYS, *_STRUCTS, _FACTS)}
    for name, members in _ARRAYS.items():
        if name in values:
            rows = [row.without() for row in reader.structs(name, *members)]
            if name == "findings":
                for row, facts in zip(rows, reader.dictionaries(_FACTS), strict=False):
                    row["facts"] = facts.without()
            found[name] = list(rows)
    for name, members in _STRUCTS.items():
        if struct := reader.struct(name, *members):
            found[name] = struct.without()
    return found
