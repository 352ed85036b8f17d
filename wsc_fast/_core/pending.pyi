import asyncio
from collections import deque
from collections.abc import Generator
from typing import Any, final

from typing_extensions import disjoint_base

from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.timers import Timers
from wsc_fast.messages import ACKMessage, AckStatus

@disjoint_base
class PendingACK:
    """A message on its way to an acknowledgement (go-wsc `PendingACK`).

    `await pending` gives AckStatus.CONFIRMED once it is acknowledged, and raises AckFailedError
    with the client's text, AckTimeoutError after the last retransmission, AckDroppedError when the
    hub gave it up, OfflineStoreError where it could not be stored, ValidationError where the
    offline store holds another message under its id, or HubStoppedError when the hub stops. It may
    be awaited more than once, and need not be. While the user is away it waits for the user, and
    for the store as `accepted` does: `asyncio.timeout` around it ends the waiting alone.

    Attributes:
        id: of the message.
        message: the ACKMessage, as it was when it was sent.
        user_id: whose acknowledgement counts.
        status: AckStatus.
        attempts: how often it was sent so far; with ACKConfig(per="device") to the device to which
            it was sent most often.

    Thread-safety: may be awaited on any loop; attributes are best read in the hub's thread.
    """

    status: AckStatus
    _priority: int
    _stored: bool
    _storing: asyncio.Future[Any] | None
    _mailbox: str
    _origin: str | None
    _group: Any
    _error: Exception | None
    _children: list[PendingACK] | None

    @property
    def id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def attempts(self) -> int: ...
    @property
    def message(self) -> ACKMessage: ...
    @property
    def _client_id(self) -> str | None: ...
    @property
    def _data(self) -> bytes: ...
    @property
    def _slot(self) -> int: ...
    @property
    def _timeout(self) -> float: ...
    @property
    def _own_timeout(self) -> float | None: ...
    @property
    def _retransmissions(self) -> int: ...
    def done(self) -> bool:
        """Whether the outcome is known. Thread-safety: any thread."""
    def _is_open(self) -> bool: ...
    def _hold_by_waiters(self) -> None: ...
    def _tell_later(self, waiter: asyncio.Future[Any]) -> None: ...
    def __await__(self) -> Generator[Any, None, AckStatus]: ...
    async def accepted(self) -> None: ...

@disjoint_base
class Mailbox:
    """The messages that one user, or one device, has not acknowledged (internal)."""

    unstored: deque[PendingACK] | None
    unstored_stale: bool

    @property
    def key(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def pending(self) -> dict[str | tuple[str, str], PendingACK]: ...
    @property
    def directed(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def replays(self) -> dict[Client, Any]: ...
    @property
    def lapsed(self) -> dict[str, str | None]:
        """Messages of the store that have timed out, and may be acknowledged: id -> origin."""

class TableOwner:
    """The owner of a table, as the table sees it: Acks (delivery/acks.py); internal."""
    def key_of(self, client: Client) -> str:
        """The mailbox of a client, where each device has one of its own."""
    def send_to_devices(self, user_id: str, message: ACKMessage) -> PendingACK:
        """`start` for a user, where each device has a mailbox of its own; returns PendingACK."""
    def device_ended(self, pending: PendingACK) -> None:
        """A delivery to one device has come to its end."""
    def parked(self, mailbox: str, message_id: str) -> PendingACK | None:
        """The message with this id that waits for its user in the store; None if there is none."""
    def check_waiting(self) -> None:
        """Raises PendingFullError where too much waits for the store to open already."""
    def park(self, mailbox: Mailbox) -> None:
        """Moves a mailbox to the store: its user is away."""
    def delete(
        self, mailbox: str, message_id: str, origin: str | None, error: Exception | None
    ) -> None:
        """Removes an acknowledged message from the store.

        Args:
            mailbox: the key of its mailbox.
            message_id: its id.
            origin: the other hub that has sent it; None: this one has.
            error: of a client that has refused it; None: it was confirmed.
        """
    def delete_once_stored(self, pending: PendingACK) -> None:
        """A message was acknowledged while it was being stored: no page may bring it any more."""
    def spread(self, mailbox: Mailbox) -> None:
        """Has the clients of other hubs get what is pending in a mailbox."""
    def catch_up(self, mailbox: Mailbox, client: Client, line: list[PendingACK]) -> None:
        """Has a client catch up, with these messages besides what it is catching up with."""
    def report(self, pending: PendingACK, error: Exception) -> None:
        """Tells the failure handlers that a message was not delivered."""
    async def accepted(self, pending: PendingACK) -> None: ...

class CatchUp:
    """A client that catches up, as the table sees it: a Replay (delivery/replay.py); internal."""
    def put(self, pending: PendingACK) -> None:
        """A message was sent: it goes out when its turn comes."""
    def has_sent(self, pending: PendingACK) -> bool:
        """Whether the client has got a message that is pending still."""
    def acknowledged(self, message_id: str) -> None:
        """A message is acknowledged that was no longer pending."""
    def settled(self, pending: PendingACK, answered: bool) -> None:
        """A message has come to its end; `answered`: the client has confirmed or refused it."""
    def wake(self) -> None:
        """There may be room."""

@final
class AckTable:
    """The pending messages of one hub (internal).

    Args:
        engine: whose clients they are for.
        config: ACKConfig.
        has_store: whether the messages of users who are away are kept.
        counters: AckCounters.
        owner: does the work that is not every message's.

    Thread-safety: the loop's thread.
    """

    counters: Any
    loop: asyncio.AbstractEventLoop | None
    stopped: bool
    elsewhere: set[str] | None

    def __init__(
        self, engine: Engine, config: Any, has_store: bool, counters: Any, owner: TableOwner
    ) -> None: ...
    @property
    def owner(self) -> TableOwner: ...
    @property
    def has_store(self) -> bool: ...
    @property
    def per_device(self) -> bool: ...
    @property
    def mailboxes(self) -> dict[str, Mailbox]: ...
    @property
    def replaying(self) -> set[str]: ...
    @property
    def starved(self) -> set[Any]: ...
    @property
    def timers(self) -> Timers[PendingACK]: ...
    @property
    def count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Runs on this loop from now on, or on none.

        The timers are new ones: those of a loop that was closed went with it.
        """
    def clear_timers(self) -> None:
        """Nothing is sent again any more, and nothing times out."""
    def forget(self) -> None:
        """Nothing is pending any more; nobody is told."""
    def mailbox_of(self, key: str, user_id: str) -> Mailbox:
        """The mailbox of this key, made where there is none."""
    def is_here(self, user_id: str) -> bool:
        """Whether a user has a connected client."""
    def await_empty(self, client: Client) -> None:
        """Has `ran_empty` be called, once, when the outbox of a client has run empty."""
    def found(
        self,
        mailbox: Mailbox,
        message_id: str,
        data: bytes,
        origin: str | None,
        timeout: float | None,
    ) -> PendingACK:
        """A message that was read from the store, of which nobody knew.

        Args:
            mailbox, message_id, data: of it.
            origin: the other hub that has sent it; None: this one has, or it is not known.
            timeout: as it was given to that hub, in seconds; None: ACKConfig.timeout.
        """
    def start(self, recipient: str, message: ACKMessage, to_client: bool) -> PendingACK:
        """Sends a message to a client or a user until it is acknowledged."""
    def key_of(self, client: Client) -> str:
        """The key of the mailbox that a client gets its messages from."""
    def clients_of(self, mailbox: str, user_id: str) -> list[Client]:
        """The connected clients of a mailbox."""
    def encoded(self, user_id: str, message: ACKMessage) -> bytes:
        """The HubMessage that an ACKMessage goes out as, as JSON; checks what is given."""
    def send_to_mailbox(
        self, key: str, user_id: str, client: Client | None, message: ACKMessage, data: bytes
    ) -> PendingACK:
        """Sends an encoded message to all clients of a mailbox, or to one of them."""
    def has_clients(self, mailbox: str, user_id: str) -> bool:
        """Whether a mailbox has a connected client."""
    def unlisted(self, key: str, user_id: str, message: ACKMessage, data: bytes) -> PendingACK:
        """A message that is in no mailbox."""
    def of_id(self, mailbox: Mailbox, message_id: str) -> list[PendingACK]:
        """The pending messages of a mailbox with this id: mostly one or none."""
    def check_same(self, pending: PendingACK, data: bytes) -> int:
        """ValidationError for other content under the id of a message."""
    def enlist(self, mailbox: Mailbox, pending: PendingACK) -> int:
        """Makes a message pending, behind all others of its mailbox."""
    def delist(self, mailbox: Mailbox, pending: PendingACK) -> int:
        """Takes a message out of its mailbox, which need not be its end."""
    def counts_from(self, pending: PendingACK, client: Client) -> bool:
        """Whether a message is for this client, and an acknowledgement of this client counts."""
    def send_live(self, mailbox: Mailbox, pending: PendingACK) -> int:
        """Sends a message to all clients that it is for; to one that catches up, in its turn."""
    def send_now(self, pending: PendingACK, client: Client) -> bool:
        """Sends a message to one client; whether its outbox took it."""
    def send_plain(self, client: Client, data: bytes, priority: int) -> Exception | None:
        """Sends a HubMessage without acknowledgement to one client: None, or what says why not."""
    def renew(self, pending: PendingACK) -> None:
        """Its time begins again with the next attempt to send it."""
    def take(self, client: Client, text: str) -> int:
        """An incoming text that may be an acknowledgement: SETTLED, IGNORED, or NO_ACK."""
    def has_memory(self) -> bool:
        """Whether the bytes that are pending leave room for more."""
    def settle(self, pending: PendingACK, status: AckStatus, error: BaseException | None) -> int:
        """The end of a message: out of its mailbox, and its waiters told."""
    def follow(self, pending: PendingACK, follower: PendingACK) -> None:
        """Has a message end as another one of the same id does, which it keeps alive."""
    def give_up(self, pending: PendingACK, error: Exception) -> int:
        """A message ends undelivered: it has timed out, or was dropped for this error."""
    def release(self, mailbox: Mailbox) -> int:
        """A mailbox that holds nothing is not kept."""
