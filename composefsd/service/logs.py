"""Where log records go: to systemd's journal with structured fields, or as lines to standard error.

Fields come through `extra=`: MESSAGE_ID and COMPOSEFSD_JOB, _TYPE, _UID, _REQUEST_ID of a job's start and end,
COMPOSEFSD_ERROR where something failed.  journald takes upper-case names only.
"""

import logging
import os
import sys
from typing import Final

from systemd.journal import JournalHandler

_IDENTIFIER: Final = "composefsd"
_OTHERS_LEVEL: Final = logging.WARNING


class _PlainJournalHandler(JournalHandler):  # type: ignore[misc] # systemd-python is not typed
    """A JournalHandler that sends the formatted message alone: the arguments would go along uncut otherwise."""

    def emit(self, record: logging.LogRecord) -> None:
        sent = logging.makeLogRecord(record.__dict__)
        sent.msg, sent.args = record.getMessage(), None
        super().emit(sent)


def set_up(level: int = logging.INFO) -> None:
    """Send everything of `level` and above of ours, and warnings of others."""
    handler: logging.Handler
    if _stderr_is_journal():
        handler = _PlainJournalHandler(SYSLOG_IDENTIFIER=_IDENTIFIER)
        handler.setFormatter(logging.Formatter("%(message)s"))  # the rest are fields
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{_IDENTIFIER}: %(levelname)s: %(message)s"))
    logging.basicConfig(level=_OTHERS_LEVEL, handlers=[handler], force=True)
    logging.getLogger("composefsd").setLevel(level)


def _stderr_is_journal() -> bool:
    """Whether systemd connected us to the journal: JOURNAL_STREAM has device and inode of that socket."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        about = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return (device, inode) == (str(about.st_dev), str(about.st_ino))
