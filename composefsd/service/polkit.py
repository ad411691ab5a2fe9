"""Asking polkit whether a caller may do something.

One action per verb; the details carry the arguments, so that rules can decide on them and the question that a person
sees can name them.  A yes is for one call and never remembered here: that is what `auth_admin_keep` is for.  Root,
and the user that the daemon runs as, need not be asked: they could do the same without us.
"""

import asyncio
import logging
import os
from contextlib import suppress
from enum import StrEnum
from itertools import count
from typing import Any, Final

from dbus_next import DBusError

from composefsd.errors import AccessDeniedError, InteractiveAuthorizationRequiredError
from composefsd.service import names
from composefsd.service.caller import Caller
from composefsd.service.connection import BusError, Connection
from composefsd.service.owner import is_owner
from composefsd.service.wire import safe_text, variant

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 120.0
"""How long a person may take to type a password."""

_NAME: Final = "org.freedesktop.PolicyKit1"
_PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE: Final = "org.freedesktop.PolicyKit1.Authority"
_CANCEL_SECONDS: Final = 5.0
_ALLOW_USER_INTERACTION: Final = 1
_DETAIL_CHARACTERS: Final = 1000


class Action(StrEnum):
    """The verbs of `dbus/org.composefs.Composefs1.policy`."""

    PULL = "pull"
    GENERATE = "generate"
    COMPUTE = "compute"
    TAG = "tag"
    REMOVE = "remove"
    CANCEL = "cancel"
    COLLECT = "gc"
    CHECK = "fsck"
    REPAIR = "repair"
    ENABLE_VERITY = "enable-verity"
    DEPLOY = "deploy"

    @property
    def action_id(self) -> str:
        return f"{names.BUS_NAME}.{self.value}"


class Polkit:
    """The authority on the bus."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = count(1)

    async def require(self, action: Action, caller: Caller, details: dict[str, str], message: str = "") -> None:
        """Go on if the caller may do this; `message` replaces the question of the policy.

        Raises InteractiveAuthorizationRequiredError if a person would have to be asked and must not be,
        AccessDeniedError otherwise.
        """
        if is_owner(caller.uid):
            return
        facts = {name: safe_text(text)[:_DETAIL_CHARACTERS] for name, text in details.items()}
        if message:
            facts["polkit.message"] = message
        authorized, challenge, answer = await self._check(action, caller, facts)
        if authorized:
            return
        log.info("refused %s to uid %d", action, caller.uid, extra={"COMPOSEFSD_UID": caller.uid})
        if challenge:
            raise InteractiveAuthorizationRequiredError(f"{action.action_id} needs interactive authentication")
        dismissed = " (dismissed)" if "polkit.dismissed" in answer else ""
        raise AccessDeniedError(f"not authorized for {action.action_id}{dismissed}")

    async def _check(
        self, action: Action, caller: Caller, details: dict[str, str]
    ) -> tuple[bool, bool, dict[str, str]]:
        """Polkit's answer: authorized, whether asking a person could change that, and details."""
        cancellation = f"composefsd-{os.getpid()}-{next(self._numbers)}"
        subject = ["system-bus-name", {"name": variant("s", caller.client.sender)}]
        flags = _ALLOW_USER_INTERACTION if caller.is_interactive else 0
        body: list[Any] = [subject, action.action_id, details, flags, cancellation]
        try:
            with caller.client.while_present():
                (answer,) = await self._connection.call(
                    _NAME, _PATH, _INTERFACE, "CheckAuthorization", "(sa{sv})sa{ss}us", body, seconds=ANSWER_SECONDS
                )
        except TimeoutError as error:
            await self._cancel(cancellation)
            raise AccessDeniedError(f"nobody authenticated for {action.action_id} in time") from error
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(cancellation))
            raise
        except DBusError as error:
            log.warning("polkit does not answer: %s", error.text)
            raise AccessDeniedError(f"not authorized for {action.action_id}: polkit does not answer") from error
        authorized, challenge, facts = answer
        return bool(authorized), bool(challenge), dict(facts)

    async def _cancel(self, cancellation: str) -> None:
        with suppress(DBusError, TimeoutError, BusError):
            await self._connection.call(
                _NAME, _PATH, _INTERFACE, "CancelCheckAuthorization", "s", [cancellation], seconds=_CANCEL_SECONDS
            )
