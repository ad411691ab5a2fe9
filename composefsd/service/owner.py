"""Whose daemon this is: root's, and on a session bus the user's that runs it."""

import os


def is_owner(uid: int) -> bool:
    """Whether a user could do everything that the daemon can without it, so that no limit or question protects."""
    return uid in (0, os.geteuid())
