"""The lines that a hub logs: which there are, what they say, and that there are never many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.script import Script
from tests.support import exchange, join, named, times_logged
from wsc_fast import (
    ACKConfig,
    Client,
    Hub,
    HubConfig,
    Identity,
    MemoryOfflineStore,
    OfflineStoreError,
    PermissionDeniedError,
    Request,
    TokenAuthenticator,
)
from wsc_fast.cli.client import Connection, connected
from wsc_fast.cli.output import Failure
from wsc_fast.cli.peer import Peer
from wsc_fast.cluster.naming import host_label
from wsc_fast.delivery.store_access import StoreAccess
from wsc_fast.log import SafeLogger, about, quoted
from wsc_fast.observe import JsonFormatter
from wsc_fast.runtime.process import OwnLog
from wsc_fast.testing import TEXT, RawClient, encode, eventually, running

TOKEN = "a-token-that-nobody-may-see"


async def answer(hub: Hub, request: bytes) -> int:
    """The status of the answer to a request."""
    return int((await exchange(hub, request)).split()[1])


def records_of(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "event", None) == event]


def only(caplog: pytest.LogCaptureFixture, event: str) -> Any:
    (record,) = records_of(caplog, event)
    return record


@pytest.fixture(autouse=True)
def all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# --- the life of a hub ---


async def test_a_hub_says_where_it_listens_and_how_it_stopped(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    async with running(hub, path="/live"):
        line = only(caplog, "listening")
        where = f"ws://127.0.0.1:{hub.port}/live"
        assert line.getMessage().startswith(f"listening on {where} (process ")
        assert line.getMessage().endswith(f" on {any_loop})")
        assert f", hub {line.hub}, " in line.getMessage()
        assert line.hub.startswith(f"{host_label()}-")
        assert (line.levelno, line.path, line.tls) == (logging.INFO, "/live", False)
        assert line.listen == [f"127.0.0.1:{hub.port}"]
        with await RawClient.open(hub, "/live") as raw:
            await raw.send(TEXT, b"x")
            await eventually(lambda: hub.get_stats().messages_in == 1)
    line = only(caplog, "stopped")
    assert line.levelno == logging.INFO
    assert (line.connections_total, line.messages_in) == (1, 1)


async def test_a_drain_says_how_many_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            drain = asyncio.ensure_future(hub.drain(0.2))
            assert (await raw.recv()).code == 1012
        await drain
    assert only(caplog, "draining").clients == 1
    line = only(caplog, "drained")
    assert line.clients == 1
    assert line.left in (0, 1)  # its answer to the close may still be on its way


class ShyStore(MemoryOfflineStore):
    """A store that opens at the second attempt."""

    attempts = 0

    async def open(self) -> None:
        self.attempts += 1
        if self.attempts == 1:
            raise OfflineStoreError("no room")
        await super().open()


async def test_a_store_that_comes_and_goes_is_told_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=ShyStore())
    with pytest.raises(OfflineStoreError):
        await hub.start(port=0)
    down = only(caplog, "store_down")
    assert (down.levelno, down.store) == (logging.WARNING, "ShyStore")
    assert "no room" in down.getMessage()
    async with running(hub):
        up = only(caplog, "store_up")
        assert (up.levelno, up.getMessage()) == (
            logging.INFO,
            "the offline store (ShyStore) is open again",
        )


def test_two_failures_of_a_store_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[int] = []
    access = StoreAccess(MemoryOfflineStore(), lambda: counted.append(1))
    error = OfflineStoreError("no room")
    for user_id in ("ann", "bob"):
        access.failed("messages cannot be read", error, user_id)
    access.failed("messages cannot be removed", error)
    assert caplog.messages == [
        "offline store: messages cannot be read (user 'ann'): no room",
        "offline store: messages cannot be removed: no room",
    ]
    assert [getattr(line, "user_id", None) for line in caplog.records] == ["ann", None]
    assert len(counted) == 3


# --- refusals ---

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int, list[str]]] = {
    "origin": (
        {"allowed_origins": ("https://app.example",)},
        {"Origin": "https://evil.example"},
        403,
        ["'https://evil.example'", "HubConfig.allowed_origins ('https://app.example')"],
    ),
    "host": (
        {"allowed_hosts": ("app.example",)},
        {"Host": "evil.example"},
        403,
        ["the host 'evil.example'", "HubConfig.allowed_hosts ('app.example')"],
    ),
    "path": ({}, {"path": "/elsewhere"}, 404, ["its path is not that of the endpoint, /ws"]),
    "no upgrade": ({}, {"Upgrade": ""}, 426, ["it is no WebSocket request; a proxy in front"]),
}


@pytest.mark.parametrize("name", list(REFUSED))
async def test_a_refused_upgrade_says_why(name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings, request, expected, texts = REFUSED[name]
    hub = Hub(HubConfig(**settings))
    async with running(hub):
        assert await answer(hub, RawClient.request(hub, **request)) == expected
        line = only(caplog, "upgrade_refused")
    assert line.levelno == logging.WARNING
    assert line.address == "127.0.0.1"
    assert line.getMessage().startswith("an upgrade from 127.0.0.1 is refused: ")
    for text in texts:
        assert text in line.getMessage()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_connections", 1), ("max_connections_per_address", 1), ("connection_rate", 1.0)],
)
async def test_an_upgrade_beyond_a_limit_names_the_setting_and_its_value(
    setting: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(HubConfig(**{setting: value}))  # type: ignore[arg-type]
    async with running(hub):
        with await RawClient.open(hub):
            assert await answer(hub, RawClient.request(hub)) in (503, 429)
        line = only(caplog, "upgrade_refused")
        assert line.setting == setting
        assert f"HubConfig.{setting} (1)" in line.getMessage()
        assert hub.get_stats().limited[setting] == 1


async def test_a_wrong_token_is_told_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(authenticate=TokenAuthenticator({"another-token-of-ours": "ann"}))
    async with running(hub):
        request = RawClient.request(hub, headers=[("Authorization", f"Bearer {TOKEN}")])
        assert await answer(hub, request) == 401
        line = only(caplog, "upgrade_refused")
    assert line.getMessage().endswith("it is not authenticated: 'the token is unknown'")
    assert line.reason == "auth"
    assert TOKEN not in repr(vars(line))


@pytest.mark.parametrize("reason", [None, "no\nseat\x1b[2J"])
async def test_an_async_authenticate_may_say_why(
    reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def authenticate(request: Request) -> Identity | None:
        await asyncio.sleep(0)
        request.refusal = reason
        return None

    hub = Hub(authenticate=authenticate)
    async with running(hub):
        with await RawClient.open(hub) as raw:
            assert (await raw.recv()).code == 4401
        line = only(caplog, "upgrade_refused")
        assert hub.get_stats().rejected["auth"] == 1
    if reason is None:
        assert line.getMessage().endswith("authenticate returned None")
    else:
        assert line.getMessage().endswith(r"it is not authenticated: 'no\nseat\x1b[2J'")


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_reason_of_a_refusal_may_be_an_exception(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(request: Request) -> None:
        request.refusal = ValueError("no\nseat")  # as of `except ... as error`

    async def refuse_later(request: Request) -> None:
        refuse(request)

    hub = Hub(authenticate=refuse_later if is_async else refuse)
    async with running(hub):
        if is_async:
            with await RawClient.open(hub) as raw:
                assert (await raw.recv()).code == 4401
        else:
            assert await answer(hub, RawClient.request(hub)) == 401
    line = only(caplog, "upgrade_refused")
    assert line.getMessage().endswith(r"it is not authenticated: 'no\nseat'")


async def test_a_crowd_of_refusals_is_one_line_a_second_that_counts_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(authenticate=lambda request: None)
    began = time.monotonic()
    async with running(hub):
        for _ in range(100):
            assert await answer(hub, RawClient.request(hub)) == 401
    lines = records_of(caplog, "upgrade_refused")
    assert len(lines) <= time.monotonic() - began + 2
    # The stop has told of the last ones.
    assert times_logged(caplog, "authenticate returned None") == 100


async def test_a_crowd_that_has_one_reason_hides_no_other_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(authenticate=TokenAuthenticator({"a-token-that-is-known": "ann"}))
    async with running(hub):
        for _ in range(5):
            assert await answer(hub, RawClient.request(hub)) == 401
        headers = [("Authorization", f"Bearer {TOKEN}")]
        assert await answer(hub, RawClient.request(hub, headers=headers)) == 401
        headers = [("Origin", "https://evil.example")]
        assert await answer(hub, RawClient.request(hub, headers=headers)) == 403
        lines = [line.getMessage() for line in records_of(caplog, "upgrade_refused")]
    for reason in ("'no token'", "'the token is unknown'", "'https://evil.example'"):
        assert any(reason in line for line in lines), reason


async def test_reasons_that_somebody_makes_up_are_few_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(request: Request) -> None:
        request.refusal = f"no seat for {request.query['name']}"

    hub = Hub(authenticate=refuse)
    began = time.monotonic()
    async with running(hub):
        for number in range(100):
            assert await answer(hub, RawClient.request(hub, f"/ws?name={number}")) == 401
        lines = records_of(caplog, "upgrade_refused")
    assert 11 <= len(lines) <= 11 * (time.monotonic() - began + 1)
    assert times_logged(caplog, "no seat for") == 100


# --- clients that the hub closes, and callbacks ---


async def test_a_slow_consumer_is_named_with_what_waited(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(HubConfig(outbox_messages=3), authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "slow&user=ann")
        with raw:
            for _ in range(4):
                hub.broadcast("x" * 100)
            line = only(caplog, "slow_consumer")
            assert line.levelno == logging.WARNING
            assert (line.client_id, line.user_id, line.address) == ("slow", "ann", "127.0.0.1")
            assert (line.queued_messages, line.queued_bytes) == (3, 306)
            assert "HubConfig.outbox_messages is 3" in line.getMessage()
            assert 'overflow "disconnect"' in line.getMessage()


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_dropped_messages_are_told_with_their_number(
    overflow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # A short interval has the heartbeat look soon.
    config = HubConfig(outbox_messages=3, overflow=overflow, heartbeat_interval=0.5)
    hub = Hub(config, authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "slow")
        with raw:
            for _ in range(10):
                hub.broadcast("x")
            await eventually(lambda: records_of(caplog, "messages_dropped"))
            line = only(caplog, "messages_dropped")
            assert (line.dropped, line.reason, line.levelno) == (7, overflow, logging.WARNING)


async def test_a_client_that_fell_silent_is_named(caplog: pytest.LogCaptureFixture) -> None:
    config = HubConfig(heartbeat_interval=0.05, heartbeat_timeout=0.15)
    hub = Hub(config, authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "silent")
        with raw:
            await eventually(lambda: records_of(caplog, "heartbeat_timeout"))
            line = only(caplog, "heartbeat_timeout")
    assert (line.levelno, line.client_id) == (logging.WARNING, "silent")
    assert "HubConfig.heartbeat_timeout" in line.getMessage()


@pytest.mark.parametrize(
    ("setting", "value", "messages", "code"),
    [
        ("max_message_size", 125, [b"x" * 126], 1009),
        ("message_rate", 1.0, [b"x"] * 2, 1008),
        ("byte_rate", 10.0, [b"x" * 9] * 2, 1008),
    ],
)
async def test_a_client_over_a_limit_is_named_with_the_setting(
    setting: str,
    value: float,
    messages: list[bytes],
    code: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(HubConfig(**{setting: value}), authenticate=named)  # type: ignore[arg-type]
    limits = []
    hub.on_error(lambda client, error: limits.append(getattr(error, "limit", "")))
    async with running(hub):
        raw, _ = await join(hub, "loud")
        with raw:
            for message in messages:
                await raw.send(TEXT, message)
            assert [frame.code for frame in await raw.recv_rest()] == [code]
        line = only(caplog, "client_over_limit")
    assert (line.levelno, line.client_id) == (logging.WARNING, "loud")
    assert (line.setting, line.code) == (setting, code)
    assert f"HubConfig.{setting} is {value}" in line.getMessage()
    assert limits == [setting]


async def test_a_protocol_error_is_named(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "odd")
        with raw:
            await raw.send_raw(encode(TEXT, b"x", masked=False))
            assert [frame.code for frame in await raw.recv_rest()] == [1002]
        line = only(caplog, "protocol_error")
    assert (line.levelno, line.client_id, line.code) == (logging.WARNING, "odd", 1002)


async def test_two_faults_of_clients_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(authenticate=named)
    faults = [encode(TEXT, b"x", masked=False), encode(TEXT, b"\xff"), encode(3, b"x")]
    async with running(hub):
        for number, fault in enumerate(faults):
            raw, _ = await join(hub, str(number))
            with raw:
                await raw.send_raw(fault)
                assert (await raw.recv_rest())[-1].code in (1002, 1007)
        lines = records_of(caplog, "protocol_error")
    assert [line.client_id for line in lines] == ["0", "1", "2"]  # type: ignore[attr-defined]


async def test_a_callback_that_raises_is_told_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(authenticate=named)

    @hub.on_message_received
    def fail(client: object, message: object) -> None:
        raise LookupError("nothing here")

    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            await raw.send(TEXT, b"x")
            await eventually(lambda: records_of(caplog, "callback_error"))
            line = only(caplog, "callback_error")
    assert (line.levelno, line.client_id, line.error) == (logging.ERROR, "a", "LookupError")
    assert "a callback raised LookupError" in line.getMessage()
    assert "nothing here" in logging.Formatter().format(line)


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_of_a_callback_about_a_room_names_it(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(client: Client, room_id: str) -> None:
        raise LookupError("nothing here")

    async def fail_later(client: Client, room_id: str) -> None:
        await asyncio.sleep(0)
        fail(client, room_id)

    hub = Hub(authenticate=named)
    hub.create_room("news")
    hub.on_room_joined(fail_later if is_async else fail)
    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            hub.join_room("a", "news")
            await eventually(lambda: records_of(caplog, "callback_error"))
            line = only(caplog, "callback_error")
    assert (line.client_id, line.room, line.error) == ("a", "news", "LookupError")
    assert "about room 'news'" in line.getMessage()


async def test_a_refused_join_names_the_room_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def authorize(client: Client, room_id: str) -> bool:
        if room_id == "odd":
            raise LookupError("nothing here")
        return room_id == "news"

    hub = Hub(authenticate=named, authorize_join=authorize)
    hub.on_message_received(lambda client, text: hub.join_room(client.id, str(text)))
    for room_id in ("news", "staff", "odd"):
        hub.create_room(room_id)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann")
        with raw:
            hub.join_room("a", "news")
            with pytest.raises(PermissionDeniedError):
                hub.join_room("a", "staff")
            line = only(caplog, "join_refused")
            assert hub.get_stats().refused_joins == 1
            await raw.send(TEXT, b"odd")
            await eventually(lambda: records_of(caplog, "callback_error"))
            error = only(caplog, "callback_error")
            assert client.rooms == ("news",)
    assert (line.levelno, line.client_id, line.user_id) == (logging.WARNING, "a", "ann")
    assert (line.room, error.room) == ("staff", "odd")
    hub.reset_stats()
    assert hub.get_stats().refused_joins == 0


# --- the logger ---


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("wsc_fast.log.monotonic", lambda: now[0])
    return now


def test_a_kind_has_one_line_a_second_and_the_next_counts_the_others(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    logger = SafeLogger("wsc_fast.test")
    for number in range(5):
        logger.warning("it is %d", number, extra={"event": "it"})
        logger.debug("nobody asked for %d", number)
    logger.warning("another kind")
    clock[0] += 3.2
    logger.warning("it is %d", 99, extra={"event": "it"})
    logger.warning("it is %d", 100, extra={"event": "it"})
    assert caplog.messages == ["it is 0", "another kind", "it is 99 (4 more in the last 3.2 s)"]
    assert [getattr(line, "suppressed", None) for line in caplog.records] == [None, None, 4]


def test_reasons_are_told_apart_up_to_a_number(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    logger = SafeLogger("wsc_fast.test")
    for number in (*range(12), 3, 11):
        logger.warning("no: %d", number, reason=str(number))
    assert caplog.messages == [f"no: {number}" for number in range(11)]
    clock[0] += 1.0
    logger.warning("no: %d", 11, reason="11")
    logger.warning("no: %d", 3, reason="3")
    logger.tell_counts(at_once=True)
    assert caplog.messages[11:] == [
        "no: 11",
        "no: 3 (1 more in the last 1.0 s)",
        "2 more in the last 1.0 s like: no: 10",
    ]


def test_counts_are_told_where_no_line_follows(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    logger = SafeLogger("wsc_fast.test")
    for number in range(5):
        logger.error("it is %d", number, extra={"event": "it"})
    clock[0] += 1.5
    logger.tell_counts()
    assert len(caplog.messages) == 1  # a flood's next line may still come
    clock[0] += 0.5
    logger.tell_counts()
    logger.tell_counts()
    assert caplog.messages[1:] == ["4 more in the last 2.0 s like: it is 0"]
    assert (caplog.records[1].levelno, only_extra(caplog.records[1])) == (
        logging.ERROR,
        {"event": "it", "suppressed": 4},
    )
    logger.error("it is %d", 5)
    assert len(caplog.messages) == 2
    logger.tell_counts(at_once=True)
    assert caplog.messages[2] == "1 more in the last 0.0 s like: it is 0"
    logger.error("it is %d", 6)  # all is new
    assert caplog.messages[3] == "it is 6"


def only_extra(record: logging.LogRecord) -> dict[str, Any]:
    known = vars(logging.makeLogRecord({}))
    return {k: v for k, v in vars(record).items() if k not in known and k != "message"}


def test_lines_of_a_hubs_life_are_not_bounded(caplog: pytest.LogCaptureFixture) -> None:
    logger = SafeLogger("wsc_fast.test")
    for _ in range(3):
        logger.info("listening")
    assert caplog.messages == ["listening"] * 3


def test_the_logger_remembers_a_bounded_number_of_kinds(caplog: pytest.LogCaptureFixture) -> None:
    logger = SafeLogger("wsc_fast.test")
    for number in range(3_000):
        logger.warning("x", kind=f"kind {number}")
    assert len(caplog.messages) == 3_000
    assert len(logger._kinds) == 1_000


def test_a_line_that_cannot_be_made_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    SafeLogger("wsc_fast.test").warning("%d", "no number")
    assert "wsc_fast: logging raised TypeError" in capsys.readouterr().err


def test_no_action_of_an_operator_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = SafeLogger("wsc_fast.test")
    for number in range(5):
        logger.audit("operator %s did %d", "ann", number, extra={"event": "it"})
    assert [record.getMessage() for record in caplog.records] == [
        f"operator ann did {number}" for number in range(5)
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_suppressed_line_costs_next_to_nothing() -> None:
    logger = SafeLogger("wsc_fast.test.cost")
    logger.warning("a flood of %s", "these", extra={"event": "flood"})
    began = time.perf_counter()
    for _ in range(10_000):
        logger.warning("a flood of %s", "these", extra={"event": "flood"})
    assert time.perf_counter() - began < 1.0  # some microseconds each, on any machine


def test_the_fields_of_a_client_collide_with_no_attribute_of_a_record() -> None:
    fields = about(None, "x", reason="y")
    assert fields == {"event": "x", "reason": "y"}
    assert not {"event", "client_id", "user_id", "address", "room", "reason"} & set(
        vars(logging.makeLogRecord({}))
    )
    assert quoted("a" * 300) == repr("a" * 200 + "...")


# --- JSON ---


def formatted(**fields: Any) -> dict[str, Any]:
    record = logging.makeLogRecord({"msg": "it is %d", "args": (3,), "name": "x", **fields})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert line.isascii()
    read: dict[str, Any] = json.loads(line)
    return read


def test_a_record_is_one_object_with_its_fields() -> None:
    read = formatted(levelname="WARNING", created=0.25, event="e", client_id="a\n\u202e")
    assert read == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "warning",
        "logger": "x",
        "message": "it is 3",
        "event": "e",
        "client_id": "a\n\u202e",
    }


def test_an_exception_is_in_the_object() -> None:
    try:
        raise LookupError("nothing")
    except LookupError:
        read = formatted(exc_info=sys.exc_info())
    assert read["exception"].startswith("Traceback")
    assert read["exception"].endswith("LookupError: nothing")


@pytest.mark.parametrize(
    "value", [{1, 2}, b"x", float("nan"), object, {"a": {(1, 2): 3}}, "\ud800"], ids=repr
)
def test_a_field_that_json_cannot_hold_is_written_all_the_same(value: object) -> None:
    assert "odd" in formatted(odd=value, event="e")
    assert formatted(odd=value, event="e")["event"] == "e"


def test_a_field_that_holds_itself_is_written_all_the_same() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert formatted(odd=endless)["odd"] == "[[...]]"


# --- the handler of `run` ---

SERVE = """
    import logging, sys
    from wsc_fast import Hub, HubConfig

    if sys.argv[2] == "root":
        logging.basicConfig(level=logging.WARNING)
    elif sys.argv[2] == "own":
        logging.getLogger("wsc_fast").addHandler(logging.NullHandler())
    before = list(logging.getLogger("wsc_fast").handlers), logging.getLogger("wsc_fast").level
    hub = Hub(HubConfig(log_format=sys.argv[1], log_level=sys.argv[3]))
    print(0, flush=True)

    @hub.on_startup
    async def tell():
        import asyncio
        async def later():
            while True:
                try:
                    print(hub.port, flush=True)
                    return
                except Exception:
                    await asyncio.sleep(0.001)
        hub.create_task(later())

    hub.run(port=0)
    after = list(logging.getLogger("wsc_fast").handlers), logging.getLogger("wsc_fast").level
    assert after == before, after
"""


def served(log_format: str, configured: str, level: str) -> list[str]:
    """The lines on standard error of a program that serves one client, and is stopped."""
    with Script(SERVE, log_format, configured, level) as script:
        script.port()
        with connect(f"ws://127.0.0.1:{script.port()}/ws"):
            script.process.send_signal(signal.SIGTERM)
        code, _, err = script.finish()
    assert code == 0, err
    return err.splitlines()


def test_run_shows_its_lines_where_nobody_configured_logging() -> None:
    first, last = served("text", "", "info")
    assert re.match(
        r"\d{4}-\d\d-\d\d [\d:,]+ INFO wsc_fast: listening on ws://127\.0\.0\.1:", first
    )
    assert " INFO wsc_fast: stopped in " in last


def test_run_shows_its_lines_as_json() -> None:
    first, last = map(json.loads, served("json", "", "info"))
    assert (first["event"], first["level"]) == ("listening", "info")
    assert (last["event"], last["connections_total"]) == ("stopped", 1)


@pytest.mark.parametrize(
    ("configured", "level"), [("root", "info"), ("own", "info"), ("", "error")]
)
def test_run_leaves_the_applications_logging_alone(configured: str, level: str) -> None:
    assert served("text", configured, level) == []


def test_the_handler_goes_with_the_last_of_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("wsc_fast.test.own")
    logger.propagate = False
    monkeypatch.setattr("wsc_fast.runtime.process._logger", logger)
    with OwnLog(json=False, level="warning"):
        with OwnLog(json=True, level="debug"):
            assert len(logger.handlers) == 1
        assert (len(logger.handlers), logger.level) == (1, logging.WARNING)
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)
    with OwnLog(json=False, level="info"):
        logger.setLevel(logging.ERROR)  # somebody's, meanwhile
    assert (logger.handlers, logger.level) == ([], logging.ERROR)


def test_an_import_leaves_the_loggers_of_others_alone() -> None:
    code = """
import importlib, logging, pkgutil
import wsc_client, wsc_fast
names = ["", "wsc_client", "asyncio", "picows", "uvicorn", "uvicorn.error", "redis", "websockets"]
loggers = [logging.getLogger(name) for name in names]
before = [(each.level, each.disabled, each.handlers[:], each.filters[:]) for each in loggers]
count = 0
for module in pkgutil.walk_packages(wsc_fast.__path__, "wsc_fast."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
assert [(each.level, each.disabled, each.handlers, each.filters) for each in loggers] == before
print(count)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


async def test_a_command_silences_the_client_only_while_it_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = Peer("ws://127.0.0.1:9/ws", [], ssl.create_default_context())
    log = logging.getLogger("wsc_client")
    with contextlib.suppress(Failure):
        async with connected(Connection(peer, lambda message: None)) as connection:
            await connection.over()
    log.warning("after")
    assert caplog.messages == ["after"]


# --- the docs ---


def test_the_docs_list_each_event() -> None:
    root = Path(__file__).parent.parent
    text = "".join(path.read_text() for path in root.glob("wsc_fast/**/*.py"))
    events = set(re.findall(r'"event": (?:\w+ if \w+ else )?"(\w+)"', text))
    events |= set(re.findall(r'about\(\s*[\w.]+, "(\w+)"', text))
    events |= set(re.findall(r'tell_raised\(\s*"(\w+)"', text))
    events |= {"listening"}
    documented = (root / "docs/how-to/log.md").read_text()
    assert {event for event in events if f"`{event}`" not in documented} == set()
