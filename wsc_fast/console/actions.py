"""The actions of operators on this hub: disconnect and send, each with a line in the log."""

from __future__ import annotations

from typing import assert_never

from wsc_fast.console import questions as ask
from wsc_fast.console.needs import WatchedHub
from wsc_fast.errors import (
    BusError,
    ClientNotFoundError,
    HubStateError,
    RoomNotFoundError,
    SendError,
    ValidationError,
)
from wsc_fast.log import log, quoted
from wsc_fast.messages import HubMessage
from wsc_fast.upgrade.limits import Buckets

# Actions a second of one operator, each of which writes a line.
RATE = 10.0
# The type of messages to users.
MESSAGE_TYPE = "operator"
# The errors of an action, which its operator is told.
_FAILURES = (
    BusError,
    ClientNotFoundError,
    HubStateError,
    RoomNotFoundError,
    SendError,
    ValidationError,
)


class RefusedError(Exception):
    """An action that was not done; the text says why."""


class Actions:
    """The actions on one hub.

    Args:
        hub: on which.

    Thread-safety: the loop's thread.
    """

    def __init__(self, hub: WatchedHub) -> None:
        self._hub = hub
        self._rates = Buckets(RATE)

    def check_rate(self, operator: str) -> None:
        """Raises RefusedError where an operator acts too often."""
        if not self._rates.take(operator):
            raise RefusedError(f"an operator may act {RATE:g} times a second")

    async def do(self, action: ask.Action) -> ask.Done:
        """Does it, and writes who has done it.

        Raises:
            RefusedError: it was not done.
        """
        try:
            done = await self._do(action)
        except _FAILURES as error:
            tell(action, f"failed: {error}")
            raise RefusedError(str(error)) from None
        tell(action, done)
        return ask.Done(done)

    async def _do(self, action: ask.Action) -> str:
        hub = self._hub
        match action:
            case ask.DisconnectClient():
                client = hub.get_client_by_id(action.id)
                if client is None:
                    raise ClientNotFoundError(f"no client of this hub has the id {action.id!a}")
                client.disconnect(action.code, action.reason)
                return f"closed with {action.code}"
            case ask.SendToClient():
                client = hub.get_client_by_id(action.id)
                if client is None:
                    raise ClientNotFoundError(f"no client of this hub has the id {action.id!a}")
                client.send(action.text)
                return "the message is queued"
            case ask.DisconnectUser():
                count = await hub.cluster.disconnect_user(action.id, action.code, action.reason)
                return f"closed {count} clients with {action.code}"
            case ask.SendToUser():
                message = HubMessage(type=MESSAGE_TYPE, to=action.id, content=action.text)
                count = await hub.cluster.send_to_user(action.id, message)
                return f"the message is queued on {count} hubs"
            case ask.SendToRoom():
                count = hub.broadcast_to_room(action.id, action.text)
                return f"the message is queued for {count} members here, and went to other hubs"
            case _:
                assert_never(action)


def tell(action: ask.Action, outcome: str) -> None:
    """Writes an action to the log: who, what, to whom, and what came of it. Not the text."""
    operator = action.operator
    assert operator is not None
    # Another hub may have told these: none of them can end the line, or steer a terminal.
    address, hub, outcome = map(_escaped, (operator.address, operator.hub, outcome))
    name = str(type(action).__struct_config__.tag)
    kind = name.rpartition("_")[2]
    target = {"client": "client_id", "user": "user_id", "room": "room"}[kind]
    log.audit(
        "console: %s at %s, by hub %s: %s %s: %s",
        quoted(operator.name),
        address or "an unknown address",
        hub,
        name,
        quoted(action.id),
        outcome,
        extra={
            "event": "console_action",
            "operator": operator.name,
            "address": address,
            "hub": hub,
            "action": name,
            target: action.id,
            "outcome": outcome,
        },
    )


def _escaped(text: str) -> str:
    return quoted(text)[1:-1]
