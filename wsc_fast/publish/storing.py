"""Messages with acknowledgement: a publisher puts them into the offline store of the hubs.

Each goes to the mailbox of its user, or of each device of his that the hubs have noted; then the
hubs that have him are told to look. The bus knows for a minute that a message was acknowledged, so
that the same message again is not delivered again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wsc_fast.bus.base import Outcome
from wsc_fast.bus.base import Word as Envelope
from wsc_fast.bus.redis.calls import new_tag, note_outcomes, number_of_server, tell_hubs
from wsc_fast.bus.redis.commands import Names, decode, encode, script
from wsc_fast.delivery.entries import pack, unpack
from wsc_fast.errors import BusError, OfflineStoreError, OfflineStoreFullError, ValidationError
from wsc_fast.publish.users import Stored, Told, is_same, look, sent_again

# Messages, and bytes of them, that are stored in one call; a further one is not taken beyond these.
AT_ONCE, AT_ONCE_BYTES = 64, 1 << 18
# Seconds beyond the timeout of a publisher for which the reply to a call is kept.
REPLY_LONGER = 5
# Between the ids of a user and of a device in the key of a mailbox; before the id of a user it is
# the key of the devices.
BETWEEN = "\x1f"
# The server of a list that has the offline store.
STORE = 0
# The outcomes with which a message is not sent again.
_ENDED = (b"confirmed ", b"failed ")

Steps = Generator[Any, Any, Any]


class Asking(Protocol):
    """The interface that this needs of a publisher's work."""

    names: Names
    timeout: float
    offline_limit: int

    @property
    def servers(self) -> int:
        """How many there are."""

    def ask_all(
        self, server: int, commands: Sequence[Sequence[bytes]], text: bytes | None = None
    ) -> Steps:
        """Has commands answered that may be done twice; returns the answers.

        `text` is that of the script which they call.
        """


@dataclass(slots=True)
class Copy:
    """A message in one mailbox.

    Attributes:
        message: of the publisher.
        mailbox: its key.
        is_new: it was not there before.
        ended: it was acknowledged before.
        error: the reason why it is not stored.
    """

    message: Stored
    mailbox: str
    is_new: bool = True
    ended: bool = False
    error: Exception | None = None


def store(bus: Asking, messages: Sequence[Stored]) -> Steps:
    """Stores messages; each has its result in the end."""
    for part in _parts(messages):
        try:
            yield from _store(bus, part)
        except (BusError, OfflineStoreError) as error:
            for each in part:
                each.result = type(error)(str(error))


def _parts(messages: Sequence[Stored]) -> Iterator[list[Stored]]:
    part: list[Stored] = []
    size = 0
    for each in messages:
        if part and (len(part) == AT_ONCE or size > AT_ONCE_BYTES):
            yield part
            part, size = [], 0
        part.append(each)
        size += len(each.entry)
    if part:
        yield part


def _store(bus: Asking, messages: Sequence[Stored]) -> Steps:
    copies = yield from _copies(bus, messages)
    yield from _look_up(bus, copies)
    yield from _append(bus, [each for each in copies if not each.ended])
    hubs: dict[str, int] = {}
    there = [each for each in copies if not each.ended and each.error is None]
    try:
        yield from _send_again(bus, [each for each in there if not each.is_new])
        hubs = yield from _tell(bus, there)
    except BusError:
        pass  # each hub looks at the store once a second without a word, too
    for message in messages:
        own = [each for each in copies if each.message is message]
        error = own[0].error
        if all(each.error is not None for each in own):
            message.result = error
        else:
            is_new = any(each.is_new and each.error is None for each in own)
            message.result = Told(hubs.get(message.user, 0), True, not is_new)


def _copies(bus: Asking, messages: Sequence[Stored]) -> Steps:
    """Finds the mailboxes of each message: those of the user's devices, or that of the user."""
    users = list(dict.fromkeys(each.user for each in messages))
    prefix = bus.names.offline()
    asked = [[b"HKEYS", prefix + b"messages:" + encode(BETWEEN + user)] for user in users]
    answers = yield from bus.ask_all(STORE, asked)
    devices = dict(zip(users, answers, strict=True))
    return [
        Copy(each, mailbox)
        for each in messages
        for mailbox in [f"{each.user}{BETWEEN}{decode(device)}" for device in devices[each.user]]
        or [each.user]
    ]


def _by_server(bus: Asking, copies: Sequence[Copy]) -> dict[int, list[Copy]]:
    """The copies by the server that knows their user."""
    parts: dict[int, list[Copy]] = {}
    for each in copies:
        parts.setdefault(number_of_server(each.message.user, bus.servers), []).append(each)
    return parts


def _look_up(bus: Asking, copies: Sequence[Copy]) -> Steps:
    """Finds those that were acknowledged before."""
    for server, part in _by_server(bus, copies).items():
        keys = [bus.names.outcome(each.mailbox, each.message.id) for each in part]
        (outcomes,) = yield from bus.ask_all(server, [[b"MGET", *keys]])
        for each, outcome in zip(part, outcomes, strict=True):
            if outcome is not None and outcome.startswith(_ENDED):
                each.ended, each.is_new = True, False


def _append(bus: Asking, copies: Sequence[Copy]) -> Steps:
    """Appends each to its mailbox; what the script cannot do, or has done before, is noted."""
    from wsc_fast.stores.redis.scripts import load  # a publisher is to be imported fast
    from wsc_fast.stores.redis.writes import NewMessage, appends

    write = load().write
    prefix = bus.names.offline()
    while copies:
        new = [
            NewMessage(encode(each.mailbox), encode(each.message.id), _entry(each.message))
            for each in copies
        ]
        reply, seconds = prefix + b"reply:" + new_tag(), int(bus.timeout) + REPLY_LONGER
        arguments = appends(prefix, new, bus.offline_limit, reply, seconds)
        command = [b"EVALSHA", write.sha.encode(), *arguments]
        ((_, done, said),) = yield from bus.ask_all(STORE, [command], write.text.encode())
        for place, kind, value, *_ in said:
            _note(copies[place - 1], kind, value, bus.offline_limit)
        # The rest has to come again: the reply had no room for it.
        copies = copies[done:]


def _entry(message: Stored) -> bytes:
    return pack(message.entry, "", None)  # no hub waits for its end


def _note(copy: Copy, kind: bytes, value: Any, limit: int) -> None:
    user, message_id = copy.message.user, copy.message.id
    if kind == b"exists":
        copy.is_new = False
        if not is_same(unpack(value).data, copy.message.entry):
            copy.error = ValidationError(
                f"another message with the id {message_id!a} is stored for user {user!a}"
            )
    elif kind == b"full":
        copy.error = OfflineStoreFullError(
            f"the offline store holds {value} messages for user {user!a}, and offline_limit is "
            f"{limit}"
        )
    else:
        reason = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
        copy.error = OfflineStoreError(
            f"the offline store does not take a message for user {user!a}: {reason}"
        )


def _send_again(bus: Asking, copies: Sequence[Copy]) -> Steps:
    """Has hubs send those once more that were there and have timed out."""
    for server, part in _by_server(bus, copies).items():
        outcomes = [
            Outcome(
                Envelope(
                    each.message.user, sent_again(each.message.user, each.mailbox, each.message.id)
                ),
                each.mailbox,
                each.message.id,
                b"again %b " % new_tag(),
                False,
                "",
            )
            for each in part
        ]
        text = script("users").text
        yield from bus.ask_all(server, [note_outcomes(bus.names, "", outcomes)], text)


def _tell(bus: Asking, copies: Sequence[Copy]) -> Steps:
    """Has the hubs of each user look; returns how many these are."""
    hubs: dict[str, int] = {}
    for server, part in _by_server(bus, copies).items():
        mailboxes = dict.fromkeys((each.message.user, each.mailbox) for each in part)
        words = [Envelope(user, look(user, mailbox)) for user, mailbox in mailboxes]
        text = script("users").text
        (counts,) = yield from bus.ask_all(server, [tell_hubs(bus.names, "", words)], text)
        for (user, _), count in zip(mailboxes, counts, strict=True):
            hubs[user] = max(count, hubs.get(user, 0))
    return hubs
