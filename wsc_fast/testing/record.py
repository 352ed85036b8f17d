"""A record of what an application has sent, to whom, and what came of it.

A Record stands between the application and the sends of its hub, and notes each call: whether a
client is there to get it or not. `Client.send` and `Hub.cluster.send_to_user` are not noted: the
client that gets an answer expects it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from wsc_fast import ACKMessage, AckStatus, Hub, HubMessage, PendingACK
from wsc_fast.testing.expected import Expected, Message, matches, payload_of, shown

Kind = Literal["all", "client", "user", "room"]

# The calls of a hub that send, whom each is for, and the name of its argument that has the message.
_CALLS: dict[str, tuple[Kind, str]] = {
    "broadcast": ("all", "message"),
    "broadcast_text": ("all", "text"),
    "broadcast_to_room": ("room", "message"),
    "publish": ("room", "message"),
    "send_ack_message": ("client", "message"),
    "send_ack_message_to_user": ("user", "message"),
    "send_text_to_client": ("client", "text"),
    "send_to_client": ("client", "message"),
    "send_to_user": ("user", "message"),
    "send_to_user_with_retry": ("user", "message"),
}


@dataclass(eq=False)
class Sent:
    """One call of the application that sends.

    Attributes:
        call: the name of the hub's method.
        kind: whom it was for: "all", "client", "user" or "room".
        to: the id of that; "" for all.
        message: as it was given.
        options: further arguments by name, such as `exclude` and `key`.
        result: what the call returned: how many got it, a SendResult, a PendingACK; None before
            an async call has ended.
        error: what it raised instead.
    """

    call: str
    kind: Kind
    to: str
    message: Message | HubMessage | ACKMessage
    options: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: BaseException | None = None

    @property
    def acknowledged(self) -> bool | None:
        """Whether the user has acknowledged it; None for a call without acknowledgement."""
        if isinstance(self.result, PendingACK):
            return self.result.status is AckStatus.CONFIRMED
        return None if "ack" not in self.call else False

    @property
    def payload(self) -> Message:
        """The message as a client gets it: str or bytes; a HubMessage as its JSON."""
        return payload_of(self.message)

    def __str__(self) -> str:
        whom = "all" if self.kind == "all" else f"{self.kind} {self.to!r}"
        end = f", raised {self.error!r}" if self.error is not None else ""
        if self.acknowledged is not None:
            end += ", acknowledged" if self.acknowledged else ", not acknowledged"
        return f"{self.call} to {whom}: {shown(self.message)}{end}"


class Record:
    """All that the application sends by a hub from now on, in the order of the calls.

    Args:
        hub: whose sends are noted, until `close`.

    Attributes:
        sent: all of them.

    Thread-safety: any thread.
    """

    def __init__(self, hub: Hub) -> None:
        self.sent: list[Sent] = []
        self._hub = hub
        for name in _CALLS:
            setattr(hub, name, self._noting(name, getattr(hub, name)))

    def _noting(self, name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(send):

            @functools.wraps(send)
            async def sending(*args: Any, **kwargs: Any) -> Any:
                sent = self._note(name, args, kwargs)
                try:
                    sent.result = await send(*args, **kwargs)
                except BaseException as error:
                    sent.error = error
                    raise
                return sent.result

            return sending

        def noting(*args: Any, **kwargs: Any) -> Any:
            sent = self._note(name, args, kwargs)
            try:
                sent.result = send(*args, **kwargs)
            except BaseException as error:
                sent.error = error
                raise
            return sent.result

        return noting

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sent:
        kind, argument = _CALLS[name]
        given = dict(kwargs)
        names = [argument] if kind == "all" else [f"{kind}_id", argument]
        for each, value in zip(names, args, strict=False):
            given[each] = value
        to = "" if kind == "all" else str(given.pop(names[0], ""))
        sent = Sent(name, kind, to, given.pop(argument, ""), given)
        self.sent.append(sent)
        return sent

    def __iter__(self) -> Iterator[Sent]:
        return iter(list(self.sent))

    def __len__(self) -> int:
        return len(self.sent)

    def to_all(self) -> list[Sent]:
        """The broadcasts."""
        return [each for each in self if each.kind == "all"]

    def to_client(self, client_id: str) -> list[Sent]:
        """The sends to one client by its id."""
        return [each for each in self if (each.kind, each.to) == ("client", client_id)]

    def to_user(self, user_id: str) -> list[Sent]:
        """The sends to a user."""
        return [each for each in self if (each.kind, each.to) == ("user", user_id)]

    def to_room(self, room_id: str) -> list[Sent]:
        """The sends to a room."""
        return [each for each in self if (each.kind, each.to) == ("room", room_id)]

    def expect(
        self,
        expected: Expected = None,
        *,
        user: str | None = None,
        room: str | None = None,
        client: str | None = None,
        acknowledged: bool | None = None,
    ) -> Sent:
        """Asserts that such a message was sent.

        Args:
            expected: see `matches`; None for any message.
            user, room, client: whom it was for; None for anybody.
            acknowledged: whether it has to be; None for either.

        Returns:
            the newest one that matches.

        Raises:
            AssertionError: there is none; the text shows what was sent.
        """
        wanted = [("user", user), ("room", room), ("client", client)]
        for sent in reversed(self.sent):
            if any(to is not None and (sent.kind, sent.to) != (kind, to) for kind, to in wanted):
                continue
            if acknowledged is not None and sent.acknowledged is not acknowledged:
                continue
            if matches(sent.payload, expected):
                return sent
        whom = "".join(f" to {kind} {to!r}" for kind, to in wanted if to is not None)
        lines = "\n".join(f"  {each}" for each in self.sent[-10:]) or "  nothing"
        raise AssertionError(f"expected {shown(expected)}{whom}; the application sent\n{lines}")

    def clear(self) -> None:
        """Forgets what was sent."""
        self.sent.clear()

    def close(self) -> None:
        """Notes nothing from now on."""
        for name in _CALLS:
            vars(self._hub).pop(name, None)
