"""How failure handlers are told: one kind of message, a queue for each, bounds, and the end.

test_failures.py tests which failure calls which handler.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import os
import signal
import sys
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from tests.script import Script
from tests.support import MEASURES, TOO_DEEP, join, named, stall
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    ClientDisconnectedError,
    ClientNotFoundError,
    Hub,
    HubConfig,
    HubMessage,
    LimitError,
    LoopBusyError,
    PermissionDeniedError,
    QueueFullError,
    SendFailureReason,
    UserOfflineError,
    ValidationError,
    WSCError,
)
from wsc_fast._core.frames import encode_frame
from wsc_fast.delivery import batches, handler_queue, reporter
from wsc_fast.delivery.failures import REFUSED_EXCERPT, Failure
from wsc_fast.log import log
from wsc_fast.messages import (
    encode_hub_message,
    message_of,
    requires_ack,
)
from wsc_fast.testing import TEXT, RawClient, deflated, encode, eventually, running, wait_until

pytestmark = pytest.mark.usefixtures("closing_sockets")


class Heard:
    """Notes every failure, and whether two calls of it ever ran at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.inside = 0
        self.most = 0

    def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
    ) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.calls.append((msg, recipient, reason, error))
        self.inside -= 1

    def messages(self) -> list[HubMessage]:
        return [call[0] for call in self.calls]


class Blocked:
    """Hangs in its first call until it is let go; notes the recipient of each call."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.heard: list[str] = []

    def handle_send_failure(self, msg: HubMessage, *_: Any) -> None:
        self.entered.set()
        assert self.let_go.wait(30)
        self.heard.append(msg.to)


class Offline:
    """Notes messages for absent users."""

    def __init__(self) -> None:
        self.heard: list[HubMessage] = []

    def handle_user_offline(self, msg: HubMessage, user_id: str, error: Exception) -> None:
        assert msg.to == user_id
        self.heard.append(msg)


def miss(hub: Hub, user: str = "nobody", **fields: Any) -> None:
    """A failure: the user is absent."""
    with pytest.raises(UserOfflineError):
        hub.send_to_user(user, HubMessage(**fields))


async def blocked(hub: Hub) -> Blocked:
    """A handler that hangs in the call of one failure, with nothing that waits behind it."""
    handler = Blocked()
    hub.add_send_failure_handler(handler)
    miss(hub, "first")
    await eventually(handler.entered.is_set)
    return handler


def threads() -> int:
    return sum(each.name == "wsc_fast failure handler" for each in threading.enumerate())


# --- one kind of message, and the user in it ---


class Contract:
    """All five handlers as the contract shows them: they use the fields of a HubMessage."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def _keep(self, handler: str, msg: HubMessage, recipient: str) -> None:
        text = msgspec.json.encode(msg)
        assert msgspec.json.decode(text, type=HubMessage).id == msg.id
        self.rows.append((handler, msg.to, recipient, msg.content, msg.data))

    def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: str, error: Exception
    ) -> None:
        self._keep("send_failure", msg, recipient)

    def handle_queue_full(
        self, msg: HubMessage, recipient: str, queue_type: str, error: Exception
    ) -> None:
        self._keep("queue_full", msg, recipient)

    def handle_user_offline(self, msg: HubMessage, user_id: str, error: Exception) -> None:
        self._keep("user_offline", msg, user_id)

    def handle_connection_error(self, msg: HubMessage, client_id: str, error: Exception) -> None:
        self._keep("connection_error", msg, client_id)

    def handle_timeout(
        self, msg: HubMessage, recipient: str, timeout_type: str, duration: float, error: Exception
    ) -> None:
        self._keep("timeout", msg, recipient)

    def add_to(self, hub: Hub) -> None:
        hub.add_send_failure_handler(self)
        hub.add_queue_full_handler(self)
        hub.add_user_offline_handler(self)
        hub.add_connection_error_handler(self)
        hub.add_timeout_handler(self)


async def lose_one(hub: Hub, message: Any) -> None:
    """A message waits in the outbox of client "phone" of ann when its connection breaks."""
    raw, client = await join(hub, "phone&user=ann", rcvbuf=4096)
    await stall(client, 1 << 22)
    if isinstance(message, HubMessage):
        assert hub.send_to_user("ann", message) == 1
    else:
        client.send(message)
    raw.reset()
    await eventually(lambda: hub.connections == 0)


@pytest.mark.parametrize(
    ("message", "recipient", "content", "data"),
    [
        ("text", "phone", "text", None),
        (b"\xff\0", "phone", "", {"bytes": b"\xff\0"}),
        (bytearray(b"\xff"), "phone", "", {"bytes": b"\xff"}),
        (HubMessage(content="hub", data={"n": [1]}), "ann", "hub", {"n": [1]}),
        (HubMessage(content="to a group", to="group"), "ann", "to a group", None),
    ],
    ids=["text", "bytes", "bytearray", "hub message", "with to"],
)
async def test_a_handler_of_the_contract_can_store_a_lost_message_for_its_user(
    message: Any, recipient: str, content: str, data: Any
) -> None:
    hub = Hub(authenticate=named)
    contract = Contract()
    contract.add_to(hub)
    async with running(hub):
        await lose_one(hub, message)
        await eventually(lambda: len(contract.rows) == 2)
    assert contract.rows == [
        ("send_failure", "ann", recipient, content, data),
        ("connection_error", "ann", "phone", content, data),
    ]
    assert hub.get_stats().handler_errors == 0


async def test_each_kind_of_message_comes_as_a_hub_message() -> None:
    hub = Hub(HubConfig(outbox_messages=1), authenticate=named)
    hub.enable_ack(ACKConfig(max_pending=1))
    contract = Contract()
    contract.add_to(hub)
    async with running(hub):
        raw, client = await join(hub, "phone&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        client.send("fills it")
        with pytest.raises(QueueFullError):
            hub.send_to_user("ann", HubMessage(content="0"))
        hub.send_ack_message("phone", ACKMessage(content="pending"))
        for send in (
            lambda: hub.send_to_client("phone", "1"),
            lambda: client.send(bytearray(b"2")),
            lambda: hub.send_ack_message("phone", ACKMessage(content="4", data={"n": 4})),
            lambda: hub.send_ack_message_to_user("ann", ACKMessage(content="5")),
            lambda: hub.send_to_user("bob", HubMessage(content="6")),
            lambda: hub.send_ack_message_to_user("bob", ACKMessage(content="7")),
            lambda: hub.send_to_client("nobody", "8"),
            lambda: hub.send_ack_message("nobody", ACKMessage(content="9")),
            lambda: hub.broadcast(5),  # type: ignore[arg-type]
        ):
            with pytest.raises(WSCError):
                send()
        await eventually(lambda: len(contract.rows) == 19)
        general = [row[1:] for row in contract.rows if row[0] == "send_failure"]
        raw.reset()
    assert general == [
        ("ann", "ann", "0", None),
        ("ann", "phone", "1", None),
        ("ann", "phone", "", {"bytes": b"2"}),
        ("ann", "phone", "4", {"n": 4}),
        ("ann", "ann", "5", None),
        ("bob", "bob", "6", None),
        ("bob", "bob", "7", None),
        ("nobody", "nobody", "8", None),
        ("nobody", "nobody", "9", None),
        ("", "", "<int>", None),
    ]


async def test_the_user_of_a_client_that_has_gone_is_known() -> None:
    hub = Hub(authenticate=named)
    heard = Heard()
    hub.add_send_failure_handler(heard)
    async with running(hub):
        raw, client = await join(hub, "phone&user=ann")
        raw.reset()
        await eventually(lambda: hub.connections == 0)
        with pytest.raises(ClientDisconnectedError):
            client.send("late")
        await eventually(lambda: heard.calls)
    assert heard.calls[0][0].to == "ann"
    assert heard.calls[0][1] == "phone"


@pytest.mark.parametrize("kind", ["client", "to_client", "room", "all", "user", "ack"])
async def test_a_call_from_another_thread_tells_the_user_too(kind: str) -> None:
    hub = Hub(HubConfig(thread_call_timeout=0.05), authenticate=named)
    hub.enable_ack()
    heard = Heard()
    hub.add_send_failure_handler(heard)
    message = HubMessage(id="m", content="as sent")
    with_ack = ACKMessage(id="m", content="as sent")
    async with running(hub):
        raw, client = await join(hub, "phone&user=ann")
        hub.create_room("lobby")
        call: dict[str, Callable[[], Any]] = {
            "client": lambda: client.send("as sent"),
            "to_client": lambda: hub.send_to_client("phone", "as sent"),
            "room": lambda: hub.broadcast_to_room("lobby", "as sent"),
            "all": lambda: hub.broadcast("as sent"),
            "user": lambda: hub.send_to_user("ann", message),
            "ack": lambda: hub.send_ack_message("phone", with_ack),
        }

        def elsewhere() -> None:
            with pytest.raises(LoopBusyError):
                call[kind]()
            message.content = with_ack.content = "changed"

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(10)  # blocks the loop until the call has given up
        await eventually(lambda: len(heard.calls) >= 1)
        told, recipient, reason, _ = heard.calls[0]
        assert told.content == "as sent"
        assert told.to == ("" if kind in ("room", "all") else "ann")
        assert recipient == {"room": "lobby", "all": "", "user": "ann"}.get(kind, "phone")
        assert reason == "timeout"
        raw.close()


async def test_all_handlers_know_a_raw_message_by_the_same_id() -> None:
    hub = Hub(authenticate=named)
    one, two = Heard(), Heard()
    hub.add_send_failure_handler(one)
    hub.add_send_failure_handler(two)
    async with running(hub):
        for n in range(3):
            with pytest.raises(ClientNotFoundError):
                hub.send_to_client("nobody", str(n))
        await lose_one(hub, "lost")
        await eventually(lambda: len(one.calls) == len(two.calls) == 4)
    assert one.messages() == two.messages()
    assert len({each.id for each in one.messages()}) == 4
    assert all(one.messages()[n] is not two.messages()[n] for n in range(4))


async def test_the_handlers_cannot_change_each_others_messages() -> None:
    hub = Hub(authenticate=named)
    seen: list[Any] = []

    class Changes:
        async def handle_send_failure(self, msg: HubMessage, *_: Any) -> None:
            seen.append((msg.content, msgspec.json.encode(msg.data)))
            msg.content = "changed"
            assert msg.data is not None
            msg.data["list"].append("changed")

    hub.add_send_failure_handler(Changes())
    hub.add_send_failure_handler(Changes())
    bad: Any = HubMessage(content="m", data={"list": [], "n": float("nan")})
    async with running(hub):
        miss(hub, content="m", data={"list": []})
        await eventually(lambda: len(seen) == 2)
        with pytest.raises(ValidationError):
            hub.send_to_user("ann", bad)
        await eventually(lambda: len(seen) == 4)
    assert seen[:2] == [("m", b'{"list":[]}')] * 2
    assert {content for content, _ in seen} == {"m"}
    assert bad.content == "m"


@pytest.mark.parametrize("kind", ["user", "ack", "retry"])
async def test_a_message_that_is_used_again_is_told_as_it_was_sent(kind: str) -> None:
    hub = Hub(authenticate=named)
    hub.enable_ack()
    async with running(hub):
        slow = await blocked(hub)
        heard = Heard()
        hub.add_send_failure_handler(heard)
        slow_too = await blocked_async(hub)
        message: Any = (ACKMessage if kind == "ack" else HubMessage)(data={"list": [0]})
        for n in range(3):
            message.content = str(n)
            message.data["list"][0] = n
            if kind == "retry":
                assert not (await hub.send_to_user_with_retry("ann", message)).success
                continue
            with pytest.raises(UserOfflineError):
                {"user": hub.send_to_user, "ack": hub.send_ack_message_to_user}[kind](
                    "ann", message
                )
        message.content = "after"
        slow.let_go.set()
        slow_too.set()
        await eventually(lambda: len(heard.calls) == 3)
    assert [(each.content, each.data) for each in heard.messages()] == [
        (str(n), {"list": [n]}) for n in range(3)
    ]


async def blocked_async(hub: Hub) -> asyncio.Event:
    """A handler whose calls wait for an event."""
    let_go = asyncio.Event()

    class Waits:
        async def handle_send_failure(self, *_: Any) -> None:
            await let_go.wait()

    hub.add_send_failure_handler(Waits())
    return let_go


@pytest.mark.parametrize(
    ("user", "message", "content"),
    [
        (5, HubMessage(content="m"), "m"),
        ([], HubMessage(content="m"), "m"),
        ("ann", "text", "text"),
        ("ann", {"a": "dict"}, "<dict>"),
        ("ann", HubMessage(seq_no=1 << 70, content="m"), "m"),
    ],
)
async def test_a_misuse_raises_its_own_error_and_is_told(
    user: Any, message: Any, content: str
) -> None:
    hub = Hub(authenticate=named)
    heard = Heard()
    hub.add_send_failure_handler(heard)
    async with running(hub):
        with pytest.raises(ValidationError):
            hub.send_to_user(user, message)
        await eventually(lambda: heard.calls)
    told, recipient, reason, _ = heard.calls[0]
    assert (told.content, reason) == (content, "validation")
    assert told.to == recipient == (user if isinstance(user, str) else f"<{type(user).__name__}>")


async def test_an_error_keeps_nothing_of_the_call_alive() -> None:
    hub = Hub(authenticate=named)

    class Large:
        pass

    def call() -> weakref.ref[Large]:
        local = Large()
        miss(hub)
        return weakref.ref(local)

    async with running(hub):
        slow = await blocked(hub)
        kept = call()
        gc.collect()
        assert kept() is None
        slow.let_go.set()


def test_a_failure_of_encoded_data_needs_no_decoding() -> None:
    data = encode_hub_message(HubMessage(content="m"))
    error = UserOfflineError("away")
    failure = Failure.of_data(data, "ann", SendFailureReason.ACK_TIMEOUT, error, client_id="phone")
    assert (failure.recipient, failure.to) == ("phone", "ann")
    assert failure.kept().message is failure.message
    assert Failure.of_data(data, "ann", failure.reason, error).recipient == "ann"


async def test_data_that_is_no_hub_message_is_told_as_bytes() -> None:
    hub = Hub(authenticate=named)
    heard = Heard()
    hub.add_send_failure_handler(heard)
    deep = b'{"id":"m","data":{"x":' + b"[" * TOO_DEEP + b"]" * TOO_DEEP + b"}}"
    async with running(hub):
        for data in (b"none", b'{"id":5}', deep):
            hub._delivery.failures.report(
                Failure.of_data(data, "ann", SendFailureReason.UNKNOWN, WSCError("store"))
            )
        await eventually(lambda: len(heard.calls) == 3)
    assert [each.data for each in heard.messages()] == [
        {"bytes": b"none"},
        {"bytes": b'{"id":5}'},
        {"bytes": deep},
    ]


@pytest.mark.parametrize(
    "message",
    [
        "text",
        b"bytes",
        '{"id":"m","require_ack":false}',
        HubMessage(),
        HubMessage(require_ack=True),
        HubMessage(content="x" * 200, require_ack=True),
        HubMessage(content="x" * 70_000, require_ack=True),
        HubMessage(content=',"require_ack":true}'),
        b'{"id":"m","require_ack":true}',
    ],
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "deflate"])
def test_a_frame_tells_whether_it_requires_an_acknowledgement(
    message: Any, compressed: bool
) -> None:
    text = isinstance(message, HubMessage | str)
    raw = encode_hub_message(message) if isinstance(message, HubMessage) else message
    if not compressed:
        frame = encode_frame(raw.decode() if text and isinstance(raw, bytes) else raw)
    else:
        payload = raw.encode() if isinstance(raw, str) else raw
        frame = encode(1 if text else 2, deflated(payload), rsv=4, masked=False)
    read = message_of(frame)
    assert requires_ack(frame) is (isinstance(read, HubMessage) and read.require_ack)


# --- a queue for each handler ---


async def test_a_handler_that_hangs_holds_up_no_other() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        slow = await blocked(hub)
        let_go = await blocked_async(hub)
        plain, offline = Heard(), Offline()
        hub.add_send_failure_handler(plain)
        hub.add_user_offline_handler(offline)
        for n in range(2 * handler_queue.MAX_RUNNING):
            miss(hub, content=str(n))
        await eventually(
            lambda: len(plain.calls) == len(offline.heard) == 2 * handler_queue.MAX_RUNNING
        )
        # Each of them in the order of the failures.
        in_order = [str(n) for n in range(2 * handler_queue.MAX_RUNNING)]
        assert [each.content for each in plain.messages()] == in_order
        assert [each.content for each in offline.heard] == in_order
        assert slow.heard == []
        slow.let_go.set()
        let_go.set()
        await eventually(lambda: len(slow.heard) == 2 * handler_queue.MAX_RUNNING + 1)


async def test_the_methods_of_one_object_never_run_at_once_and_keep_the_order() -> None:
    hub = Hub(authenticate=named)

    class Both(Heard):
        def handle_user_offline(self, msg: HubMessage, user_id: str, error: Exception) -> None:
            self.handle_send_failure(msg, "offline", SendFailureReason.UNKNOWN, error)

    both = Both()
    hub.add_user_offline_handler(both)
    hub.add_send_failure_handler(both)
    async with running(hub):
        for n in range(50):
            miss(hub, content=str(n))
        await eventually(lambda: len(both.calls) == 100)
        await eventually(lambda: threads() == 1)
    assert both.most == 1
    assert [(call[0].content, call[1]) for call in both.calls] == [
        (str(n), to) for n in range(50) for to in ("nobody", "offline")
    ]


async def test_handlers_are_bounded_in_number_and_make_room_when_they_go() -> None:
    hub = Hub(authenticate=named)
    known_handlers = [Heard() for _ in range(reporter.MAX_HANDLERS)]
    for each in known_handlers:
        hub.add_send_failure_handler(each)
    hub.add_send_failure_handler(known_handlers[0])  # is there already
    one_more = Offline()
    with pytest.raises(LimitError, match="64 failure handlers already"):
        hub.add_user_offline_handler(one_more)
    async with running(hub):
        miss(hub)
        await eventually(lambda: sum(len(each.calls) for each in known_handlers) == 65)
        await eventually(lambda: threads() == reporter.MAX_HANDLERS)
        with pytest.raises(LimitError):
            hub.add_user_offline_handler(one_more)
        for each in known_handlers[1:]:
            await asyncio.to_thread(hub.remove_send_failure_handler, each)
        await eventually(lambda: threads() == 1)
        hub.add_user_offline_handler(one_more)
        miss(hub)
        await eventually(lambda: one_more.heard)
    await eventually(lambda: threads() == 0)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_handler_that_is_removed_hears_no_more_and_may_come_back(kind: str) -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        heard: list[str] = []
        if kind == "plain":
            slow: Any = await blocked(hub)
            heard, let_go = slow.heard, slow.let_go.set
        else:
            event = asyncio.Event()

            class Waits:
                async def handle_send_failure(self, msg: HubMessage, *_: Any) -> None:
                    await event.wait()
                    heard.append(msg.to)

            slow, let_go = Waits(), event.set
            hub.add_send_failure_handler(slow)
            miss(hub, "first")
        for n in range(100):
            miss(hub, f"waits {n}")
        hub.remove_send_failure_handler(slow)
        assert not hub._delivery.failures.active
        miss(hub, "unheard")
        hub.add_send_failure_handler(slow)
        miss(hub, "heard")
        let_go()
        # It hears failures that waited while it was away for a moment, and none of meanwhile.
        await eventually(lambda: "heard" in heard)
        assert "first" in heard
        assert "unheard" not in heard
        hub.remove_send_failure_handler(slow)
        await eventually(lambda: hub._delivery.failures._queues == ())
        miss(hub, "unheard")
    assert "unheard" not in heard


async def test_handlers_do_not_see_the_context_of_the_caller() -> None:
    hub = Hub(authenticate=named)
    of_caller: ContextVar[str] = ContextVar("of_caller", default="none")
    seen: list[str] = []

    class Sees:
        async def handle_send_failure(self, *_: Any) -> None:
            seen.append(of_caller.get())
            of_caller.set("of a handler")

        def handle_user_offline(self, *_: Any) -> None:
            seen.append(of_caller.get())

    sees = Sees()
    hub.add_send_failure_handler(sees)
    hub.add_user_offline_handler(sees)
    async with running(hub):
        of_caller.set("first caller")
        miss(hub)
        miss(hub)
        await eventually(lambda: len(seen) == 4)
    assert seen == ["none"] * 4


# --- bounds ---


async def test_one_recipient_leaves_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_queue, "MAX_WAITING", 100)
    hub = Hub(authenticate=named)
    async with running(hub):
        slow = await blocked(hub)
        for _ in range(1_000):
            miss(hub, "hog")
        for _ in range(1_000):
            miss(hub, "hog too")
        for n in range(10):
            miss(hub, f"user {n}")
        slow.let_go.set()
        await eventually(lambda: slow.heard[-1:] == ["user 9"])
        told = Counter(slow.heard)
        assert told["hog"] == 50
        assert told["hog too"] == 25
        assert all(told[f"user {n}"] == 1 for n in range(10))
        stats = hub.get_stats()
        assert stats.unreported_failures == stats.send_failures - len(slow.heard) == 1925


async def test_a_client_whose_messages_are_refused_blinds_no_handler() -> None:
    hub = Hub(authenticate=named, authorize_publish=lambda client, message: False)
    count = 3_000
    async with running(hub):
        slow = await blocked(hub)
        raw, _ = await join(hub, "guest")
        other, _ = await join(hub, "other-guest")
        await raw.send_raw(encode(TEXT, b"x") * count)
        await eventually(lambda: hub.get_stats().unauthorized == count)
        await other.send(TEXT, b"y")
        await eventually(lambda: hub.get_stats().unauthorized == count + 1)
        for _ in range(5):
            miss(hub, "bob")
        slow.let_go.set()
        await eventually(lambda: len(slow.heard) > 5 and slow.heard[-5:] == ["bob"] * 5)
        told = Counter(slow.heard)
        assert 0 < told["guest"] <= handler_queue.MAX_WAITING_REFUSED // 2
        assert told["other-guest"] == 1
        assert hub.get_stats().unreported_failures == count - told["guest"]
        raw.close()
        other.close()


async def test_of_a_message_that_is_refused_an_excerpt_is_told() -> None:
    hub = Hub(authenticate=named, authorize_publish=lambda client, message: False)
    heard = Heard()
    hub.add_send_failure_handler(heard)
    async with running(hub):
        raw, _ = await join(hub, "phone&user=ann")
        await raw.send(TEXT, ("\U0001f600" * 50_000).encode())
        await raw.send(2, b"b" * 200_000)
        await eventually(lambda: len(heard.calls) == 2)
        raw.close()
    text, data = heard.messages()
    assert text.content == "\U0001f600" * REFUSED_EXCERPT
    assert data.data == {"bytes": b"b" * REFUSED_EXCERPT}
    assert text.to == data.to == "ann"
    assert [type(call[3]) for call in heard.calls] == [PermissionDeniedError] * 2


async def test_an_overflow_is_logged_once_until_the_queue_has_been_empty(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handler_queue, "MAX_WAITING", 10)
    hub = Hub(authenticate=named)
    async with running(hub):
        for times in (1, 2):
            slow = await blocked(hub)
            for _ in range(100):
                miss(hub)
            assert caplog.text.count("faster than the handler Blocked takes them") == times
            slow.let_go.set()
            await eventually(lambda: len(slow.heard) == 6)  # noqa: B023
            hub.remove_send_failure_handler(slow)
            log.tell_counts(at_once=True)  # the next line comes within the second


@MEASURES
@pytest.mark.parametrize("kind", ["large", "small", "ids", "errors", "lost"])
async def test_the_queue_takes_no_more_memory_than_its_bound(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("small", "ids", "errors"):
        monkeypatch.setattr(handler_queue, "MAX_WAITING", 2_000)
        monkeypatch.setattr(handler_queue, "MAX_WAITING_BYTES", 3 << 20)
    hub = Hub(HubConfig(outbox_messages=100_000, outbox_bytes=1 << 30), authenticate=named)
    async with running(hub):
        slow = await blocked(hub)
        clients = []
        if kind == "lost":
            for n in range(3):
                raw, client = await join(hub, f"client-{n}", rcvbuf=4096)
                await stall(client, 1 << 22)
                clients.append(raw)
                for _ in range(400):
                    client.send(bytes(64 << 10))
                for _ in range(5_000):
                    client.send(b"small")
        gc.collect()
        tracemalloc.start()
        try:
            if kind == "lost":
                # The lost messages were there before: so all is freed that is not kept.
                before = 0
                for raw in clients:
                    raw.reset()
                await eventually(lambda: hub.connections == 0)
                assert (
                    sum(map(held, hub._delivery.failures._queues))
                    <= handler_queue.MAX_WAITING_BYTES
                )
            else:
                before = tracemalloc.get_traced_memory()[0]
                for n in range(4_000 if kind != "large" else 200):
                    user, text = f"user {n}", str(n)
                    if kind == "large":
                        text += "x" * (256 << 10)
                    elif kind == "ids":
                        user += "y" * 200
                    if kind == "errors":
                        client_id = f"{n}" + "z" * 200
                        with pytest.raises(ClientNotFoundError):
                            hub.send_to_client(client_id, text)
                    else:
                        miss(hub, user, content=text)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < handler_queue.MAX_WAITING_BYTES * 1.1
        stats = hub.get_stats()
        assert stats.unreported_failures > 0
        slow.let_go.set()
        await eventually(
            lambda: len(slow.heard) + hub.get_stats().unreported_failures == stats.send_failures,
            30,
        )
        # All that was taken is given back.
        (queue,) = hub._delivery.failures._queues
        assert queue._room._free == handler_queue.MAX_WAITING
        assert queue._room._free_bytes == handler_queue.MAX_WAITING_BYTES
        assert queue._room._held == {}


def held(queue: Any) -> int:
    """Bytes of the messages that a queue refers to."""
    return sum(sys.getsizeof(item) for _, items, _ in queue._waiting for item in items)


async def evict(hub: Hub, count: int, backlog: int) -> list[RawClient]:
    """Clients that do not read, each with a full outbox."""
    raws = []
    for n in range(count):
        raw, client = await join(hub, f"client-{n}", rcvbuf=4096)
        await stall(client, 1 << 22)
        for _ in range(backlog):
            client.send('{"id": 1}')
        raws.append(raw)
    return raws


@pytest.mark.parametrize("acks", [False, True], ids=["plain", "acks"])
async def test_a_broadcast_that_evicts_many_decodes_nothing_and_looks_at_what_fits(
    acks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_queue, "MAX_WAITING", 500)
    looked: list[str] = []
    for module, function in ((batches, message_of), (reporter, requires_ack)):

        def noting(frame: bytes, *, function: Any = function) -> Any:
            looked.append(function.__name__)
            return function(frame)

        monkeypatch.setattr(module, function.__name__, noting)
    hub = Hub(HubConfig(outbox_messages=100), authenticate=named)
    if acks:
        hub.enable_ack()
    count, backlog = 30, 100
    async with running(hub):
        slow = await blocked(hub)
        raws = await evict(hub, count, backlog)
        hub.broadcast("one more")
        # In the call nothing is decoded, and what no queue takes is not looked at.
        assert "message_of" not in looked
        assert len(looked) <= (1_500 if acks else 0)
        stats = hub.get_stats()
        assert stats.send_failures - 1 == stats.dropped["slow_consumer"] == count * (backlog + 1)
        assert stats.unreported_failures == count * (backlog + 1) - 500
        slow.let_go.set()
        await eventually(lambda: len(slow.heard) == 501)
        for raw in raws:
            raw.reset()
    assert set(slow.heard[1:]) <= {f"client-{n}" for n in range(count)}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "deflate"])
async def test_of_a_lost_outbox_the_acknowledged_messages_are_not_told(compressed: bool) -> None:
    hub = Hub(HubConfig(enable_compression=compressed, compression_threshold=0), authenticate=named)
    hub.enable_ack()
    heard = Heard()
    hub.add_send_failure_handler(heard)
    headers = [("Sec-WebSocket-Extensions", "permessage-deflate")] if compressed else []
    async with running(hub):
        raw, client = await join(hub, "phone&user=ann", rcvbuf=4096, headers=headers)
        other, _ = await join(hub, "desk&user=ann")
        client.send(os.urandom(1 << 22))  # zeros would be compressed to nothing
        assert client.conn is not None
        transport = client.conn.underlying_transport
        await eventually(lambda: transport.get_write_buffer_size() > 0)
        await eventually(lambda: client.queued_messages == 0)
        pending = [hub.send_ack_message_to_user("ann", ACKMessage()) for _ in range(5)]
        client.send("plain")
        hub.send_to_user("ann", HubMessage(content="hub"))
        raw.reset()
        await eventually(lambda: len(heard.calls) >= 2)
        assert [each.content for each in heard.messages()] == ["plain", "hub"]
        assert hub.get_stats().send_failures == 2
        assert not any(each.done() for each in pending)
        other.close()


async def test_a_long_queue_is_told_in_slices() -> None:
    hub = Hub(authenticate=named)
    longest = 0.0
    count = 4_000
    told: list[int] = []

    class Notes:
        async def handle_send_failure(self, *_: Any) -> None:
            told.append(turn)

    hub.add_send_failure_handler(Notes())
    async with running(hub):
        turn = 0
        for _ in range(count):
            miss(hub, f"user {_}", content="x" * 2_000)
        while len(told) < count:
            start = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - start)
            turn += 1
    assert len(set(told)) >= count // handler_queue.MAX_RUNNING // 2
    assert longest < 0.05


# --- the end ---


async def test_the_bounds_hold_after_a_stop_that_gave_up() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        slow = await blocked(hub)
        for n in range(100):
            miss(hub, f"user {n}")
        await hub.stop(0.0)
    assert hub.get_stats().unreported_failures == 100
    (queue,) = hub._delivery.failures._queues
    assert not queue._waiting
    assert queue._room._held == {}
    slow.let_go.set()
    async with running(hub):
        miss(hub, "again")
        await eventually(lambda: sorted(slow.heard) == ["again", "first"])
    await eventually(lambda: threads() == 0)


HANGS = """
import socket, threading
from wsc_fast import Hub, HubMessage, UserOfflineError

entered = threading.Event()

class Hangs:
    def handle_user_offline(self, msg, user_id, error):
        entered.set()
        threading.Event().wait()

hub = Hub()
hub.add_user_offline_handler(Hangs())

@hub.on_client_connected
def connected(client):
    for _ in range(3):
        try:
            hub.send_to_user("nobody", HubMessage())
        except UserOfflineError:
            pass

@hub.route("/entered")
def is_entered(request):
    return str(entered.is_set())

with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    print(sock.getsockname()[1], flush=True)
    hub.run(sock=sock)
print("run returned", flush=True)
"""


def test_a_process_whose_handler_hangs_ends() -> None:
    with Script(HANGS) as script:
        port = script.port()
        with connect(f"ws://127.0.0.1:{port}/ws"):
            pass
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as asking:

            def entered() -> bool:
                asking.request("GET", "/entered")
                return asking.getresponse().read() == b"True"

            wait_until(entered)
        script.process.send_signal(signal.SIGTERM)
        code, out, error = script.finish()
    assert (code, out) == (0, "run returned\n")
    assert "Traceback" not in error
