"""The failure handlers: which failure calls which of them and with what, and that they harm nobody.

The rows are those of the table in docs/delivery.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.acks import FullStore, acknowledge, received
from tests.support import join, known, named, run_apart, stall, times_logged
from wsc_fast import (
    ACKConfig,
    AckDroppedError,
    AckFailedError,
    ACKMessage,
    AckTimeoutError,
    Client,
    ClientDisconnectedError,
    ClientNotFoundError,
    Hub,
    HubConfig,
    HubMessage,
    HubStoppedError,
    LoopBusyError,
    MemoryOfflineStore,
    OfflineStoreError,
    OfflineStoreFullError,
    PendingFullError,
    PermissionDeniedError,
    QueueFullError,
    SendFailureReason,
    SendTimeoutError,
    UserOfflineError,
    ValidationError,
    WSCError,
)
from wsc_fast._core.connection import abort
from wsc_fast.delivery import failures, handler_queue
from wsc_fast.messages import to_hub_message
from wsc_fast.testing import TEXT, RawClient, eventually, running

pytestmark = pytest.mark.usefixtures("closing_sockets")

KINDS = ("send_failure", "queue_full", "user_offline", "connection_error", "timeout")


class Heard:
    """All five handlers in one object, plain methods; notes each call and its thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def _note(self, *call: Any) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(call)

    def handle_send_failure(self, *arguments: Any) -> None:
        self._note("send_failure", *arguments)

    def handle_queue_full(self, *arguments: Any) -> None:
        self._note("queue_full", *arguments)

    def handle_user_offline(self, *arguments: Any) -> None:
        self._note("user_offline", *arguments)

    def handle_connection_error(self, *arguments: Any) -> None:
        self._note("connection_error", *arguments)

    def handle_timeout(self, *arguments: Any) -> None:
        self._note("timeout", *arguments)

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == kind]

    def messages(self) -> list[Any]:
        """The message that was sent, of each failure."""
        return [sent(call[0]) for call in self.of("send_failure")]


class AsyncHeard:
    """The same with async methods."""

    def __init__(self) -> None:
        self.heard = Heard()

    def __getattr__(self, name: str) -> Any:
        note = getattr(self.heard, name)

        async def call(*arguments: Any) -> None:
            await asyncio.sleep(0)
            note(*arguments)

        return call


def listen(hub: Hub, handler: Any) -> Any:
    """Adds a handler as each of the five kinds."""
    for kind in KINDS:
        getattr(hub, f"add_{kind}_handler")(handler)
    return handler


class General:
    """A handler of every failure, made of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.handle_send_failure = function


def hub_of(config: HubConfig | None = None, **ack: Any) -> tuple[Hub, Heard]:
    """A hub whose failures are heard; with acknowledgements where there are settings for them."""
    hub = Hub(config, authenticate=named)
    if ack:
        store = ack.pop("store", None)
        hub.enable_ack(ACKConfig(enable_offline_messages=store is not None, **ack), store=store)
    return hub, listen(hub, Heard())


async def stalled(hub: Hub, name: str = "a&user=ann", **options: Any) -> tuple[RawClient, Client]:
    """A client that does not read; its outbox holds exactly what is sent from here on."""
    raw, client = await join(hub, name, rcvbuf=4096, **options)
    if "headers" not in options:
        await stall(client, 1 << 22)
        return raw, client
    client.send(os.urandom(1 << 22))  # zeros would be compressed to nothing
    assert client.conn is not None
    transport = client.conn.underlying_transport
    await eventually(lambda: transport.get_write_buffer_size() > 0)
    await eventually(lambda: client.queued_messages == 0)
    return raw, client


def sent(told: Any) -> Any:
    """The message that was sent, from the HubMessage that a handler was given."""
    assert type(told) is HubMessage
    if told.type != "raw":
        return told
    if told.data is None:
        return told.content
    assert told.content == ""
    assert list(told.data) == ["bytes"]
    return told.data["bytes"]


def assert_told(told: Any, message: Any, user: str) -> None:
    """A handler was given what stands for a message, with the user in it."""
    assert type(told) is HubMessage
    assert told.to == user
    assert told.create_at.utcoffset() is not None
    if isinstance(message, ACKMessage):
        assert told == to_hub_message(message, user)
    elif isinstance(message, HubMessage):
        assert told == msgspec.structs.replace(message, to=user)
    else:
        assert sent(told) == message
        assert 0 < len(told.id) <= 256


async def expect(
    heard: Heard,
    reason: SendFailureReason,
    special: str | None,
    kind: str | None,
    error: type[Exception],
    message: Any,
    recipient: str,
    *,
    user: str = "ann",
) -> float:
    """Waits for exactly one failure and checks both of its calls; returns the duration."""
    await eventually(lambda: len(heard.calls) >= (1 if special is None else 2))
    ((given, to, why, general),) = heard.of("send_failure")
    assert type(why) is SendFailureReason
    assert_told(given, message, user)
    assert (to, why) == (recipient, reason)
    assert type(general) is error
    assert str(general)
    if special is None:
        assert {call[0] for call in heard.calls} == {"send_failure"}
        return 0.0
    assert Counter(call[0] for call in heard.calls) == {"send_failure": 1, special: 1}
    ((again, to, *middle, special_error),) = heard.of(special)
    assert (again, to) == (given, recipient)
    assert special_error is general
    if special == "timeout":
        timeout_type, duration = middle
        assert timeout_type == kind
        assert type(duration) is float
        return duration
    assert middle == ([] if kind is None else [kind])
    return 0.0


# --- the rows of the table ---


@pytest.mark.parametrize("send", ["client", "to_client", "to_user"])
async def test_a_direct_send_finds_the_outbox_full(send: str) -> None:
    hub, heard = hub_of(HubConfig(outbox_messages=1))
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("fills it")
        message: Any = HubMessage(id="m") if send == "to_user" else "text"
        with pytest.raises(QueueFullError, match="full"):
            {
                "client": lambda: client.send(message),
                "to_client": lambda: hub.send_to_client("a", message),
                "to_user": lambda: hub.send_to_user("ann", message),
            }[send]()
        recipient = "ann" if send == "to_user" else "a"
        await expect(
            heard,
            SendFailureReason.QUEUE_FULL,
            "queue_full",
            "outbox",
            QueueFullError,
            message,
            recipient,
        )
        raw.reset()


@pytest.mark.parametrize("message", ["text", b"\xff\0", HubMessage(id="m")], ids=["s", "b", "hub"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "deflate"])
async def test_a_message_is_dropped_to_make_room(message: Any, compressed: bool) -> None:
    config = HubConfig(
        outbox_messages=1,
        overflow="drop_oldest",
        enable_compression=compressed,
        compression_threshold=0,
    )
    hub, heard = hub_of(config)
    async with running(hub):
        raw, client = await stalled(hub, **({"headers": DEFLATE} if compressed else {}))
        put(hub, client, message)
        client.send("newer")
        await expect(
            heard,
            SendFailureReason.QUEUE_FULL,
            "queue_full",
            "outbox",
            QueueFullError,
            message,
            "ann" if isinstance(message, HubMessage) else "a",
        )
        raw.reset()


DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


def put(hub: Hub, client: Client, message: Any) -> None:
    if isinstance(message, HubMessage):
        hub.send_to_user(client.user_id, message)
    else:
        client.send(message)


async def test_one_of_two_clients_of_a_user_has_no_room() -> None:
    hub, heard = hub_of(HubConfig(outbox_messages=1))
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("fills it")
        other, _ = await join(hub, "b&user=ann")
        message = HubMessage(id="m")
        assert hub.send_to_user("ann", message) == 1
        assert (await received(other))["id"] == "m"
        await expect(
            heard,
            SendFailureReason.QUEUE_FULL,
            "queue_full",
            "outbox",
            QueueFullError,
            message,
            "ann",
        )
        raw.reset()
        other.close()


@pytest.mark.parametrize("to_room", [False, True], ids=["all", "room"])
async def test_a_broadcast_finds_the_outbox_full(to_room: bool) -> None:
    hub, heard = hub_of(HubConfig(outbox_messages=1, overflow="drop_newest"))
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("fills it")
        if to_room:
            hub.create_room("r")
            hub.join_room("a", "r")
            assert hub.broadcast_to_room("r", b"news") == 0
        else:
            assert hub.broadcast(b"news") == 0
        await expect(
            heard,
            SendFailureReason.BROADCAST_FULL,
            "queue_full",
            "broadcast",
            QueueFullError,
            b"news",
            "a",
        )
        raw.reset()


async def test_a_slow_consumer_is_closed() -> None:
    hub, heard = hub_of(HubConfig(outbox_messages=2, overflow="disconnect"))
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("1")
        client.send(b"2")
        hub.broadcast("3")
        await eventually(lambda: len(heard.calls) == 6)
        assert [(sent(call[0]), call[2]) for call in heard.of("send_failure")] == [
            ("1", "queue_full"),
            (b"2", "queue_full"),
            ("3", "broadcast_full"),
        ]
        assert [(sent(call[0]), call[2]) for call in heard.of("queue_full")] == [
            ("1", "outbox"),
            (b"2", "outbox"),
            ("3", "broadcast"),
        ]
        raw.reset()
        await eventually(lambda: hub.connections == 0)
    assert len(heard.calls) == 6


async def test_too_many_messages_are_pending() -> None:
    hub, heard = hub_of(max_pending=1)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        hub.send_ack_message("a", ACKMessage())
        message = ACKMessage(id="m")
        with pytest.raises(PendingFullError):
            hub.send_ack_message("a", message)
        await expect(
            heard,
            SendFailureReason.PENDING_FULL,
            "queue_full",
            "pending",
            PendingFullError,
            message,
            "a",
        )
        raw.close()


@pytest.mark.parametrize("overflow", ["drop_oldest", "refuse"])
async def test_too_many_messages_are_stored(overflow: str) -> None:
    hub, heard = hub_of(store=MemoryOfflineStore(), offline_limit=1, offline_overflow=overflow)
    async with running(hub):
        first, second = ACKMessage(id="1"), ACKMessage(id="2")
        kept = [hub.send_ack_message_to_user("ann", each) for each in (first, second)]
        await expect(
            heard,
            SendFailureReason.PENDING_FULL,
            "queue_full",
            "pending",
            AckDroppedError if overflow == "drop_oldest" else OfflineStoreFullError,
            first if overflow == "drop_oldest" else second,
            "ann",
        )
        assert [each.done() for each in kept] == [
            overflow == "drop_oldest",
            overflow == "refuse",
        ]


async def test_too_much_is_held_back_behind_a_replay() -> None:
    hub, heard = hub_of(HubConfig(outbox_messages=2), store=MemoryOfflineStore())
    async with running(hub):
        raw, client = await stalled(hub)
        await eventually(
            lambda: not hub._delivery.acks.replaying
        )  # of what the store holds: nothing
        client.send("no room for a replay")
        hub.send_ack_message_to_user("ann", ACKMessage())
        with contextlib.suppress(QueueFullError):
            hub.send_to_user("ann", HubMessage())
        hub.send_ack_message_to_user("ann", ACKMessage())  # begins the replay
        assert hub.send_to_user("ann", HubMessage()) == 1
        assert hub.send_to_user("ann", HubMessage()) == 1
        heard.calls.clear()
        message = HubMessage(id="m")
        with pytest.raises(PendingFullError, match="behind its backlog"):
            hub.send_to_user("ann", message)
        await eventually(lambda: sum(call[1].id == "m" for call in heard.calls) == 2)
        told = [call[1:4] for call in heard.calls if call[1].id == "m"]
        assert [call[1:] for call in told] == [("ann", "pending_full"), ("ann", "pending")]
        for call in told:
            assert_told(call[0], message, "ann")
        raw.reset()


@pytest.mark.parametrize("ack", [False, True], ids=["plain", "ack"])
async def test_the_user_is_offline(ack: bool) -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        message: Any = ACKMessage() if ack else HubMessage()
        with pytest.raises(UserOfflineError):
            (hub.send_ack_message_to_user if ack else hub.send_to_user)("ann", message)
        await expect(
            heard,
            SendFailureReason.USER_OFFLINE,
            "user_offline",
            None,
            UserOfflineError,
            message,
            "ann",
        )


@pytest.mark.parametrize(
    "send",
    [
        "to_user",
        "ack",
        "to_client",
        "client",
        "broadcast",
    ],
)
async def test_a_call_from_another_thread_finds_the_loop_blocked(send: str) -> None:
    hub, heard = hub_of(HubConfig(thread_call_timeout=0.1), max_retries=1)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann")
        message: Any = {"to_user": HubMessage(), "ack": ACKMessage()}.get(send, "text")
        call = {
            "to_user": lambda: hub.send_to_user("ann", message),
            "ack": lambda: hub.send_ack_message("a", message),
            "to_client": lambda: hub.send_to_client("a", message),
            "client": lambda: client.send(message),
            "broadcast": lambda: hub.broadcast(message),
        }[send]
        outcome: list[BaseException] = []

        def elsewhere() -> None:
            try:
                call()
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(10)  # blocks the loop until the call has given up
        assert [type(each) for each in outcome] == [LoopBusyError]
        await asyncio.sleep(0)
        if send in ("to_user", "ack"):
            duration = await expect(
                heard,
                SendFailureReason.TIMEOUT,
                "timeout",
                "call",
                LoopBusyError,
                message,
                "ann" if send == "to_user" else "a",
            )
            assert duration == 0.1
        else:
            await eventually(lambda: heard.of("timeout"))
            assert heard.of("timeout")[0][2] == "call"
        raw.close()


async def test_a_stored_message_gets_too_old() -> None:
    hub, heard = hub_of(store=MemoryOfflineStore(), offline_max_age=0.1)
    async with running(hub):
        message = ACKMessage(id="m")
        hub.send_ack_message_to_user("ann", message)
        duration = await expect(
            heard,
            SendFailureReason.TIMEOUT,
            "timeout",
            "offline",
            AckDroppedError,
            message,
            "ann",
        )
        assert 0.1 <= duration < 10


async def test_a_closing_client_does_not_read_its_backlog() -> None:
    hub, heard = hub_of(HubConfig(close_timeout=0.2))
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("unread")
        client.disconnect()
        duration = await expect(
            heard,
            SendFailureReason.SEND_TIMEOUT,
            "timeout",
            "send",
            SendTimeoutError,
            "unread",
            "a",
        )
        assert duration == 0.2
        raw.close()


@pytest.mark.parametrize("to_user", [False, True], ids=["client", "user"])
async def test_no_acknowledgement_comes(to_user: bool) -> None:
    hub, heard = hub_of(timeout=0.1)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        message = ACKMessage(id="m")
        if to_user:
            hub.send_ack_message_to_user("ann", message)
        else:
            hub.send_ack_message("a", message)
        duration = await expect(
            heard,
            SendFailureReason.ACK_TIMEOUT,
            "timeout",
            "ack",
            AckTimeoutError,
            message,
            "ann" if to_user else "a",
        )
        assert duration == 0.1
        raw.close()


@pytest.mark.parametrize("send", ["to_client", "client", "ack"])
async def test_the_client_is_not_connected(send: str) -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        raw, client = await join(hub, "a")
        raw.reset()
        await eventually(lambda: hub.connections == 0)
        message: Any = ACKMessage() if send == "ack" else "text"
        with pytest.raises((ClientNotFoundError, ClientDisconnectedError)) as failure:
            {
                "to_client": lambda: hub.send_to_client("a", message),
                "client": lambda: client.send(message),
                "ack": lambda: hub.send_ack_message("a", message),
            }[send]()
        await expect(
            heard,
            SendFailureReason.CONN_CLOSED,
            "connection_error",
            None,
            type(failure.value),
            message,
            "a",
            user="a",
        )


async def test_the_connection_is_closed_before_the_message_is_sent() -> None:
    hub, heard = hub_of()
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("unsent")
        abort(client)
        await expect(
            heard,
            SendFailureReason.CONN_CLOSED,
            "connection_error",
            None,
            ClientDisconnectedError,
            "unsent",
            "a",
        )
        raw.close()


async def test_the_connection_breaks_before_the_message_is_sent() -> None:
    hub, heard = hub_of()
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("unsent")
        raw.reset()
        await expect(
            heard,
            SendFailureReason.CONN_ERROR,
            "connection_error",
            None,
            ClientDisconnectedError,
            "unsent",
            "a",
        )


async def test_the_hub_stops_before_a_message_is_acknowledged() -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        message = ACKMessage(id="m")
        hub.send_ack_message_to_user("ann", message)
        await received(raw)
        raw.close()
    await expect(
        heard,
        SendFailureReason.CHANNEL_CLOSED,
        "connection_error",
        None,
        HubStoppedError,
        message,
        "ann",
    )


async def test_the_hub_stops_before_a_message_is_sent() -> None:
    hub, heard = hub_of()
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("unsent")
        stopping = asyncio.create_task(hub.stop(2.0))
        await eventually(lambda: hub.get_connected_clients() == 0)
        abort(client)
        await stopping
    await expect(
        heard,
        SendFailureReason.CHANNEL_CLOSED,
        "connection_error",
        None,
        HubStoppedError,
        "unsent",
        "a",
    )
    raw.close()


async def test_the_stop_leaves_time_to_hear_of_what_it_lost() -> None:
    hub, heard = hub_of()

    async def slowly(*call: Any) -> None:
        await asyncio.sleep(0.05)
        heard._note("slowly", *call)

    hub.add_send_failure_handler(General(slowly))
    async with running(hub):
        raw, client = await stalled(hub)
        for n in range(5):
            client.send(str(n))
        await hub.stop(0.2)
        raw.close()
    assert len(heard.of("slowly")) == 5
    assert len(heard.of("send_failure")) == 5


@pytest.mark.parametrize("ack", [False, True], ids=["plain", "ack"])
async def test_a_stopped_hub_only_counts(ack: bool) -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        pass
    with pytest.raises(HubStoppedError):
        (hub.send_ack_message_to_user if ack else hub.send_to_user)(
            "ann",
            (ACKMessage if ack else HubMessage)(),  # type: ignore[arg-type]
        )
    stats = hub.get_stats()
    assert (stats.send_failures, stats.unreported_failures) == (1, 1)
    assert heard.calls == []


async def test_the_client_acknowledges_that_it_failed() -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        raw, _ = await join(hub, "a")
        message = ACKMessage(id="m")
        hub.send_ack_message("a", message)
        await acknowledge(raw, "m", status="failed", error="disk full")
        await expect(
            heard, SendFailureReason.UNKNOWN, None, None, AckFailedError, message, "a", user="a"
        )
        assert str(heard.calls[0][4]) == "disk full"
        raw.close()


async def test_the_store_has_trouble() -> None:
    hub, heard = hub_of(store=FullStore())
    async with running(hub):
        message = ACKMessage(id="m")
        pending = hub.send_ack_message_to_user("ann", message)
        with pytest.raises(OfflineStoreError, match="no disk"):
            await pending
        await expect(
            heard, SendFailureReason.UNKNOWN, None, None, OfflineStoreError, message, "ann"
        )


@pytest.mark.parametrize("message", [HubMessage(id=""), ACKMessage(id="x" * 257)], ids=["hub", "a"])
async def test_the_message_cannot_be_sent(message: Any) -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        ack = isinstance(message, ACKMessage)
        with pytest.raises(ValidationError):
            (hub.send_ack_message_to_user if ack else hub.send_to_user)("ann", message)
        await expect(
            heard, SendFailureReason.VALIDATION, None, None, ValidationError, message, "ann"
        )
        raw.close()


@pytest.mark.parametrize("send", ["to_client", "client", "broadcast"])
async def test_a_raw_message_cannot_be_sent(send: str) -> None:
    hub, heard = hub_of()
    async with running(hub):
        raw, client = await join(hub, "a")
        with pytest.raises(ValidationError):
            {
                "to_client": lambda: hub.send_to_client("a", "\ud800"),
                "client": lambda: client.send("\ud800"),
                "broadcast": lambda: hub.broadcast("\ud800"),
            }[send]()
        raw.close()
    assert [call[2] for call in heard.of("send_failure")] == ["validation"]


async def test_a_clients_message_is_not_allowed() -> None:
    hub = Hub(authenticate=named, authorize_publish=lambda client, message: message != "secret")
    heard = listen(hub, Heard())
    seen: list[Any] = []
    hub.on_message_received(lambda client, message: seen.append(message))
    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send(TEXT, b"secret")
        await raw.send(TEXT, b"open")
        reason = SendFailureReason.PERMISSION
        await expect(heard, reason, None, None, PermissionDeniedError, "secret", "a", user="a")
        await eventually(lambda: seen == ["open"])
        raw.close()


def test_the_table_of_the_page_is_what_the_code_does() -> None:
    page = (Path(__file__).parents[1] / "docs/delivery.md").read_text()
    table = page.partition("| what happened |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {}
    for line in table:
        _, _, reason, method, kind, _ = (cell.strip(" `") for cell in line.split("|"))
        rows[reason, kind] = None if method == "none" else (method, kind or None)
    # Every reason of the contract can happen.
    assert {reason for reason, _ in rows} == set(SendFailureReason)
    for (reason, kind), special in rows.items():
        failure = failures.Failure(
            "m", "a", SendFailureReason(reason), WSCError(), kind=kind or None
        )
        general, *more = failures.calls_of(failure)
        assert general[0] == "handle_send_failure"
        if special is None:
            assert more == []
            continue
        ((method, arguments),) = more
        assert method == special[0]
        if special[1] is not None:
            assert arguments[2] == special[1]
    # The type of a row is that of its reason, but where a reason has two.
    for reason, (method, kind) in failures.SPECIAL.items():
        assert rows[reason, kind or ""] == (method, kind)
    assert len(rows) == len(SendFailureReason) + 1


# --- a backlog is lost with its client: each message exactly once ---


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
@pytest.mark.parametrize("end", ["reset", "close_timeout", "stop", "replaced"])
async def test_each_message_of_a_lost_backlog_is_told_once(
    overflow: Any, end: str, compressed: bool
) -> None:
    config = HubConfig(
        outbox_messages=30,
        overflow=overflow,
        close_timeout=0.1,
        enable_compression=compressed,
        compression_threshold=0,
    )
    hub, heard = hub_of(config)
    async with running(hub):
        raw, client = await stalled(hub, **({"headers": DEFLATE} if compressed else {}))
        given: list[Any] = []
        refused = 0
        for n in range(0, 45, 3):
            for message in (f"text {n}", b"bytes %d" % n, HubMessage(id=f"id {n}")):
                given.append(message)
                try:
                    put(hub, client, message)
                except QueueFullError:
                    refused += 1
        assert refused == (0 if overflow == "drop_oldest" else 15)
        assert client.queued_messages == 30
        if end == "reset":
            raw.reset()
        elif end == "stop":
            stopping = asyncio.create_task(hub.stop(2.0))
            await eventually(lambda: hub.get_connected_clients() == 0)
            abort(client)
            await stopping
        elif end == "replaced":
            newer, _ = await join(hub, "a&user=ann")
            newer.close()
        else:
            client.disconnect()
        await eventually(lambda: len(heard.of("send_failure")) >= 45)
        told = [message for message in heard.messages() if isinstance(message, (str, bytes))]
        assert Counter(told) == Counter(each for each in given if isinstance(each, (str, bytes)))
        hub_messages = [each for each in heard.messages() if isinstance(each, HubMessage)]
        assert sorted(hub_messages, key=lambda each: int(each.id[3:])) == [
            msgspec.structs.replace(each, to="ann")
            for each in given
            if isinstance(each, HubMessage)
        ]
        reasons = Counter(str(call[2]) for call in heard.of("send_failure"))
        assert reasons == {"queue_full": 15, LOST_BY[end]: 30}
        if end != "reset":
            raw.close()
    assert len(heard.of("send_failure")) == 45
    assert hub.get_stats().unreported_failures == 0


LOST_BY = {
    "reset": "conn_error",
    "close_timeout": "send_timeout",
    "stop": "channel_closed",
    "replaced": "send_timeout",
}


async def test_pings_pongs_and_the_close_frame_are_no_messages() -> None:
    hub, heard = hub_of(HubConfig(close_timeout=0.1))
    async with running(hub):
        raw, client = await stalled(hub)
        await raw.send(9, b"ping")
        await eventually(lambda: client.queued_bytes > 0)
        client.disconnect()
        await eventually(lambda: hub.connections == 0)
        raw.close()
    assert heard.calls == []


@pytest.mark.parametrize("end", ["confirmed", "timed out"])
async def test_copies_of_a_settled_message_are_no_losses(end: str) -> None:
    hub, heard = hub_of(timeout=0.3, retry_interval=0.05)
    async with running(hub):
        raw, _ = await stalled(hub)
        other, _ = await join(hub, "b&user=ann")
        pending = hub.send_ack_message_to_user("ann", ACKMessage(id="m"))
        await received(other)
        if end == "confirmed":
            await acknowledge(other, "m")
            await pending
        else:
            with pytest.raises(AckTimeoutError):
                await pending
        raw.reset()
        await eventually(lambda: hub.get_connected_clients() == 1)
        other.close()
    assert len(heard.of("send_failure")) == (0 if end == "confirmed" else 1)


async def test_a_backlog_that_cannot_be_told_does_not_keep_its_client() -> None:
    hub, _ = hub_of()
    gone: list[str] = []
    hub.on_client_disconnected(lambda client: gone.append(client.id))
    async with running(hub):
        raw, client = await stalled(hub)
        client.send('{"id":"m","x":' + "[" * 3000 + "]" * 3000 + "}")
        raw.reset()
        await eventually(lambda: hub.connections == 0)
        assert gone == ["a"]


# --- adding and removing ---


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_is_removed_by_identity(kind: str) -> None:
    class Equal(Heard):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    hub = Hub(HubConfig(outbox_messages=1, close_timeout=0.1), authenticate=named)
    hub.enable_ack(ACKConfig(timeout=0.05))
    add, remove = getattr(hub, f"add_{kind}_handler"), getattr(hub, f"remove_{kind}_handler")
    one, two = Equal(), Equal()
    remove(one)  # nothing happens
    add(one)
    add(two)
    add(two)
    remove(one)
    remove(one)
    remove(two)
    async with running(hub):
        raw, client = await stalled(hub)
        client.send("fills it")
        reader, _ = await join(hub, "reads")
        await provoke(hub, kind)
        await eventually(lambda: two.calls)
        assert {call[0] for call in two.calls} == {kind}
        count = len(two.calls)
        remove(two)
        await provoke(hub, kind)
        raw.reset()
        reader.close()
    assert one.calls == []
    assert len(two.calls) == count == 1


async def provoke(hub: Hub, kind: str) -> None:
    """A failure of which the handlers of this kind hear."""
    if kind == "queue_full":
        with pytest.raises(QueueFullError):
            hub.send_to_client("a", "x")
    elif kind == "connection_error":
        with pytest.raises(ClientNotFoundError):
            hub.send_to_client("nobody", "x")
    elif kind == "timeout":
        with pytest.raises(AckTimeoutError):
            await hub.send_ack_message("reads", ACKMessage())
    else:
        with pytest.raises(UserOfflineError):
            hub.send_to_user("nobody", HubMessage())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, 1, object()], ids=["nothing", "number", "object"])
def test_a_handler_needs_its_method(kind: str, value: Any) -> None:
    class Wrong:
        pass

    wrong = Wrong()
    if value is not None:
        setattr(wrong, f"handle_{kind}", value)
    hub = Hub()
    with pytest.raises(ValidationError, match=f"handle_{kind}, which Wrong has not"):
        getattr(hub, f"add_{kind}_handler")(wrong)
    assert not hub._delivery.failures.active


# --- handlers harm nobody ---


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_plain_methods_run_in_a_thread_and_async_ones_on_the_loop(
    kind: str, any_loop: str
) -> None:
    hub = Hub(authenticate=named)
    handler: Any = listen(hub, Heard() if kind == "plain" else AsyncHeard())
    heard = handler if kind == "plain" else handler.heard
    async with running(hub):
        for n in range(3):
            with pytest.raises(UserOfflineError):
                hub.send_to_user(f"user {n}", HubMessage())
        await eventually(lambda: len(heard.calls) == 6)
        assert [call[1] for call in heard.of("user_offline")] == ["user 0", "user 1", "user 2"]
        assert len(heard.threads) == 1
        assert (threading.get_ident() in heard.threads) is (kind == "async")


def raises(error: BaseException) -> Callable[..., Any]:
    def handle(*_: Any) -> None:
        raise copy(error)  # one that is kept would keep the hub with its traceback

    return handle


def raises_async(error: BaseException) -> Callable[..., Any]:
    async def handle(*_: Any) -> None:
        raise copy(error)

    return handle


async def wrong_arguments(*args: Any) -> None:
    """An async handler that calls something as that cannot be called."""
    int(*args)


@pytest.mark.parametrize(
    "handle",
    [
        raises(RuntimeError("x")),
        raises_async(RuntimeError("x")),
        lambda *args: int(*args),
        wrong_arguments,
        raises(asyncio.CancelledError()),
    ],
    ids=["plain", "async", "wrong arguments", "async wrong arguments", "plain cancelled"],
)
async def test_a_handler_that_raises(
    handle: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(authenticate=named)
    hub.add_send_failure_handler(General(handle))
    heard = listen(hub, Heard())
    async with running(hub):
        raw, _ = await join(hub, "a")
        for _ in range(3):
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
        await eventually(lambda: len(heard.calls) == 6, 2.0)
        hub.broadcast("still")
        assert (await raw.recv()).payload == b"still"
        await eventually(lambda: hub.get_stats().handler_errors == 3)
        stats = hub.get_stats()
        assert stats.send_failures == 3
        assert stats.unreported_failures == 0
        raw.close()
    assert times_logged(caplog, "a failure handler raised") == 3


@pytest.mark.parametrize("handle", [raises, raises_async], ids=["plain", "async"])
def test_a_handler_that_exits(handle: Callable[..., Any]) -> None:
    async def scenario() -> None:
        hub = Hub(authenticate=named)
        hub.add_send_failure_handler(General(handle(SystemExit(3))))
        async with running(hub):
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
            await eventually(lambda: hub.get_stats().handler_errors == 1, 2.0)

    run_apart(scenario)


async def test_a_handler_that_blocks_holds_nobody() -> None:
    hub = Hub(authenticate=named)
    entered, let_go = threading.Event(), threading.Event()

    def block(*_: Any) -> None:
        entered.set()
        assert let_go.wait(20)

    hub.add_send_failure_handler(General(block))
    async with running(hub):
        raw, _ = await join(hub, "a")
        with pytest.raises(UserOfflineError):
            hub.send_to_user("nobody", HubMessage())
        await eventually(entered.is_set)
        times = []
        for n in range(200):
            start = time.perf_counter()
            hub.broadcast(str(n))
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
            assert (await raw.recv()).payload == str(n).encode()
            times.append(time.perf_counter() - start)
        assert sorted(times)[100] < 0.05
        let_go.set()
        raw.close()
    assert hub.get_stats().unreported_failures == 0


async def test_a_bounded_number_runs_at_once() -> None:
    hub = Hub(authenticate=named)
    let_go = asyncio.Event()
    started: list[int] = []
    most = 0

    async def wait(*_: Any) -> None:
        nonlocal most
        started.append(1)
        most = max(most, len(started) - len(ended))
        await let_go.wait()
        ended.append(1)

    ended: list[int] = []
    hub.add_send_failure_handler(General(wait))
    async with running(hub):
        for _ in range(300):
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
        await eventually(lambda: len(started) == handler_queue.MAX_RUNNING)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(started) == handler_queue.MAX_RUNNING
        let_go.set()
        await eventually(lambda: len(ended) == 300)
        assert most == handler_queue.MAX_RUNNING
        assert hub.get_stats().unreported_failures == 0


async def test_overload_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_queue, "MAX_WAITING", 10)
    hub, heard = hub_of()
    async with running(hub):
        for n in range(25):
            with pytest.raises(UserOfflineError):
                hub.send_to_user(f"nobody {n}", HubMessage())
        await eventually(lambda: len(heard.calls) == 20)
        stats = hub.get_stats()
        assert stats.send_failures == 25
        assert stats.unreported_failures == 15
        with pytest.raises(UserOfflineError):
            hub.send_to_user("nobody", HubMessage())
        await eventually(lambda: len(heard.calls) == 22)
        hub.reset_stats()
        assert hub.get_stats().send_failures == hub.get_stats().unreported_failures == 0


@pytest.mark.fault(number="G19")
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_handler_that_sends_to_the_same_absent_user_does_not_call_itself(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(authenticate=named)
    calls: list[str] = []

    def again(message: Any, recipient: str, *_: Any) -> None:
        calls.append(recipient)
        with pytest.raises(UserOfflineError):
            hub.send_to_user(recipient, message)

    async def again_async(*arguments: Any) -> None:
        await asyncio.sleep(0)
        again(*arguments)
        await asyncio.create_task(later(*arguments))  # also from a task of its own

    async def later(*arguments: Any) -> None:
        again(*arguments)

    hub.add_send_failure_handler(General(again if kind == "plain" else again_async))
    async with running(hub):
        for _ in range(20):
            with pytest.raises(UserOfflineError):
                hub.send_to_user("ann", HubMessage())
        own = 20 if kind == "plain" else 40
        await eventually(lambda: hub.get_stats().send_failures == 20 + own)
        assert len(calls) == own
        assert hub.get_stats().unreported_failures == own
        # Others still hear.
        with pytest.raises(UserOfflineError):
            hub.send_to_user("bob", HubMessage())
        await eventually(lambda: "bob" in calls)
    assert caplog.text.count("a failure handler's own message failed") == 1


@pytest.mark.fault(number="G19")
async def test_messages_of_a_handler_do_not_hide_the_failures_of_others() -> None:
    hub, heard = hub_of(timeout=0.2, max_retries=0)
    warned: list[Any] = []

    async def tell_the_admin(message: Any, recipient: str, *_: Any) -> None:
        if recipient == "nobody":
            warned.append(hub.send_ack_message("admin", ACKMessage(content=f"{recipient} misses")))

    hub.add_send_failure_handler(General(tell_the_admin))
    async with running(hub):
        raw, _ = await join(hub, "admin")
        with pytest.raises(UserOfflineError):
            hub.send_to_user("nobody", HubMessage())
        await eventually(lambda: warned)
        for n in range(3):
            with pytest.raises(AckTimeoutError):
                await hub.send_ack_message("admin", ACKMessage(id=f"m{n}"))
        raw.close()
    told = [each.id for each in heard.messages()]
    assert {"m0", "m1", "m2"} <= set(told)


async def test_stop_lets_the_handlers_hear_what_waits() -> None:
    hub = Hub(authenticate=named)
    calls: list[Any] = []

    def slow(*call: Any) -> None:
        time.sleep(0.005)
        calls.append(call)

    hub.add_send_failure_handler(General(slow))
    async with running(hub):
        for _ in range(50):
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
        await hub.stop(10.0)
    assert len(calls) == 50
    assert hub.get_stats().unreported_failures == 0


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_stop_gives_up_on_handlers_that_do_not_end(kind: str) -> None:
    hub = Hub(authenticate=named)
    let_go = threading.Event()
    calls: list[Any] = []

    def block(*call: Any) -> None:
        calls.append(call)
        let_go.wait(20)

    async def block_async(*call: Any) -> None:
        calls.append(call)
        await asyncio.Event().wait()

    hub.add_send_failure_handler(General(block if kind == "plain" else block_async))
    try:
        async with running(hub):
            for _ in range(100):
                with pytest.raises(UserOfflineError):
                    hub.send_to_user("nobody", HubMessage())
            begun = 1 if kind == "plain" else handler_queue.MAX_RUNNING
            await eventually(lambda: len(calls) == begun)
            start = time.monotonic()
            await hub.stop(0.1)
            assert time.monotonic() - start < 3
        assert hub.get_stats().send_failures == 100
        assert hub.get_stats().unreported_failures == 100 - begun
        # A hub that is started again has handlers again.
        let_go.set()
        heard = listen(hub, Heard())
        async with running(hub):
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
            if kind == "plain":
                await eventually(lambda: len(heard.calls) == 2)
            else:
                await eventually(lambda: heard.of("user_offline"))
    finally:
        let_go.set()


async def test_calls_from_other_threads_are_heard_too() -> None:
    hub, heard = hub_of(max_retries=1)
    async with running(hub):
        loop = asyncio.get_running_loop()

        def elsewhere(n: int) -> None:
            for send, message in (
                (hub.send_to_user, HubMessage(id=f"plain {n}")),
                (hub.send_ack_message_to_user, ACKMessage(id=f"ack {n}")),
            ):
                with pytest.raises(UserOfflineError):
                    send("nobody", message)  # type: ignore[operator]
            with pytest.raises(ClientNotFoundError):
                hub.send_to_client("nobody", f"raw {n}")

        await asyncio.gather(*(loop.run_in_executor(None, elsewhere, n) for n in range(40)))
        await eventually(lambda: len(heard.of("send_failure")) == 120)
        await eventually(lambda: len(heard.calls) == 240)
        told = [each if isinstance(each, str) else each.id for each in heard.messages()]
        assert sorted(told) == sorted(
            f"{kind} {n}" for kind in ("plain", "ack", "raw") for n in range(40)
        )


async def test_without_a_handler_nothing_is_kept_and_all_is_the_same() -> None:
    outcomes = []
    for with_handler in (False, True):
        hub = Hub(HubConfig(outbox_messages=5, overflow="drop_oldest"), authenticate=named)
        heard = Heard()
        if with_handler:
            listen(hub, heard)
        async with running(hub):
            raw, client = await stalled(hub)
            for n in range(20):
                hub.broadcast(str(n))
            with pytest.raises(UserOfflineError):
                hub.send_to_user("nobody", HubMessage())
            with pytest.raises(ClientNotFoundError):
                hub.send_to_client("nobody", "x")
            raw.reset()
            await eventually(lambda: hub.connections == 0)  # noqa: B023
            stats = hub.get_stats()
            outcomes.append((stats.dropped, stats.refused, client.dropped_messages))
            if not with_handler:
                assert not hub._delivery.failures.active
                assert hub._delivery.failures._queues == ()
            else:
                await eventually(lambda: len(heard.of("send_failure")) == 22)  # noqa: B023
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][2] == 20


async def test_a_handler_may_send_what_was_not_delivered_to_somebody_else() -> None:
    hub = Hub(authenticate=named)

    class Forward:
        async def handle_user_offline(self, message: Any, user_id: str, error: Exception) -> None:
            hub.send_to_user("deputy", message)

    hub.add_user_offline_handler(Forward())
    async with running(hub):
        raw, _ = await join(hub, "deputy")
        with pytest.raises(UserOfflineError):
            hub.send_to_user("ann", HubMessage(id="m"))
        frame = await raw.recv()
        assert frame.opcode == TEXT
        assert json.loads(frame.payload)["id"] == "m"
        assert known(hub, "deputy").dropped_messages == 0
        raw.close()
