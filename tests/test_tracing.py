"""Traces by OpenTelemetry: spans around callbacks and sends, and the context of the upgrade."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from tests.support import join, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubMessage,
    HubStateError,
    RetryConfig,
    UserOfflineError,
)
from wsc_fast.testing import TEXT, RawClient, eventually, running

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("baggage", "tenant=acme")]


def traced() -> tuple[Hub, InMemorySpanExporter]:
    """A hub whose spans are kept in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    hub = Hub(authenticate=named)
    hub.enable_tracing(provider)
    return hub, exporter


def spans(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


async def test_callbacks_have_spans_that_the_upgrade_is_the_parent_of_or_linked_to(
    any_loop: str,
) -> None:
    hub, exporter = traced()
    tenants = []

    @hub.on_client_connected
    def connected(client: Client) -> None:
        tenants.append(baggage.get_baggage("tenant"))

    @hub.on_message_received
    async def received(client: Client, message: str | bytes) -> None:
        await asyncio.sleep(0)
        tenants.append(baggage.get_baggage("tenant"))
        assert get_current_span().get_span_context().is_valid

    @hub.on_client_disconnected
    def disconnected(client: Client) -> None:
        tenants.append(baggage.get_baggage("tenant"))

    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a&user=ann", headers=HEADERS) as raw:
            await raw.send(TEXT, "grüße".encode())
            await raw.send(TEXT, b"x")
            await eventually(lambda: len(spans(exporter, "process message")) == 2)
    (connect,) = spans(exporter, "connect client")
    assert connect.parent is not None
    assert (trace_of(connect), f"{connect.parent.span_id:016x}") == (TRACE, PARENT)
    assert connect.kind is SpanKind.CONSUMER
    found = attributes(connect)
    assert found["messaging.system"] == "wsc_fast"
    assert (found["messaging.client.id"], found["user.id"]) == ("a", "ann")
    messages = spans(exporter, "process message")
    assert [attributes(each)["messaging.message.body.size"] for each in messages] == [7, 1]
    (disconnect,) = spans(exporter, "disconnect client")
    for span in (*messages, disconnect):
        assert span.parent is None
        assert trace_of(span) != TRACE
        (link,) = span.links
        assert f"{link.context.trace_id:032x}" == TRACE
    assert trace_of(messages[0]) != trace_of(messages[1])
    assert tenants == ["acme"] * 4


async def test_an_async_callback_is_in_its_span_to_its_end() -> None:
    hub, exporter = traced()
    goes_on = asyncio.Event()

    @hub.on_message_received
    async def coroutine(client: Client, message: str | bytes) -> None:
        await goes_on.wait()

    async def work() -> None:
        await goes_on.wait()

    def plain(client: Client, message: str | bytes) -> Any:
        return work()

    hub.on_message_received(plain)
    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            await raw.send(TEXT, b"x")
            await eventually(lambda: hub.get_stats().messages_in == 1)
            assert spans(exporter, "process message") == []
            goes_on.set()
            await eventually(lambda: len(spans(exporter, "process message")) == 2)


@pytest.mark.parametrize("kind", ["plain", "async", "awaitable"])
async def test_an_exception_of_a_callback_is_in_its_span_once_and_reported(kind: str) -> None:
    hub, exporter = traced()
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    def plain(client: Client, message: str | bytes) -> None:
        raise RuntimeError("on purpose")

    async def coroutine(client: Client, message: str | bytes) -> None:
        raise RuntimeError("on purpose")

    def awaitable(client: Client, message: str | bytes) -> Any:
        return coroutine(client, message)

    hub.on_message_received({"plain": plain, "async": coroutine, "awaitable": awaitable}[kind])
    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            await raw.send(TEXT, b"x")
            await eventually(lambda: spans(exporter, "process message"))
            await eventually(lambda: errors)
    (span,) = spans(exporter, "process message")
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]
    assert [str(error) for error in errors] == ["on purpose"]


async def test_sends_to_users_have_spans() -> None:
    hub, exporter = traced()
    hub.enable_ack(ACKConfig())
    hub.set_retry_config(RetryConfig(max_retries=0))
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        with raw:
            hub.send_to_user("ann", HubMessage(id="1", content="x"))
            hub.send_ack_message_to_user("ann", ACKMessage(id="2", content="x"))
            assert (await hub.send_to_user_with_retry("ann", HubMessage(id="3"))).success
            with pytest.raises(UserOfflineError):
                hub.send_to_user("bob", HubMessage(id="4", content="x"))
            await hub.send_to_user_with_retry("bob", HubMessage(id="5", content="x"))
    sent = spans(exporter, "send user/{user_id}")
    assert {span.kind for span in sent} == {SpanKind.PRODUCER}
    found = [attributes(span) for span in sent]
    assert [each["messaging.message.id"] for each in found] == ["1", "2", "3", "4", "5"]
    assert found[0]["messaging.destination.name"] == "user/ann"
    failed = [span.status.status_code is StatusCode.ERROR for span in sent]
    assert failed == [False, False, False, True, True]


async def test_a_send_inside_a_callback_is_a_child_of_the_callbacks_span() -> None:
    hub, exporter = traced()

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        hub.send_to_user(client.user_id, HubMessage(content="answer"))

    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            await raw.send(TEXT, b"x")
            await raw.recv()
            await eventually(lambda: spans(exporter, "process message"))
    (process,) = spans(exporter, "process message")
    (send,) = spans(exporter, "send user/{user_id}")
    assert send.parent is not None
    assert process.context is not None
    assert send.parent.span_id == process.context.span_id


async def test_callbacks_that_were_set_before_are_traced_too_and_only_once() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    hub = Hub(authenticate=named)
    seen = []
    hub.on_client_connected(lambda client: seen.append(client.id))
    hub.enable_tracing(provider)
    with pytest.raises(HubStateError):
        hub.enable_tracing(provider)
    async with running(hub):
        raw, _ = await join(hub, "a")
        raw.close()
    assert seen == ["a"]
    assert len(spans(exporter, "connect client")) == 1


@pytest.mark.parametrize("before", [True, False])
async def test_callbacks_of_rooms_have_spans_linked_to_the_upgrade(before: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    hub = Hub(authenticate=named)
    heard = []
    if not before:
        hub.enable_tracing(provider)

    @hub.on_room_joined
    def joined(client: Client, room_id: str) -> None:
        heard.append(("joined", client.id, room_id))

    @hub.on_room_left
    async def left(client: Client, room_id: str) -> None:
        await asyncio.sleep(0)
        heard.append(("left", client.id, room_id))

    if before:
        hub.enable_tracing(provider)
    hub.create_room("x")
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a&user=ann", headers=HEADERS):
            await eventually(lambda: hub.get_client_by_id("a") is not None)
            hub.join_room("a", "x")
        await eventually(lambda: spans(exporter, "leave room"))
    assert heard == [("joined", "a", "x"), ("left", "a", "x")]
    for name, operation in (("join room", "join"), ("leave room", "leave")):
        (span,) = spans(exporter, name)
        found = attributes(span)
        assert found["messaging.operation.name"] == operation
        assert found["messaging.destination.name"] == "room/x"
        assert (found["messaging.client.id"], found["user.id"]) == ("a", "ann")
        assert span.parent is None
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE]


@pytest.mark.parametrize("before", [True, False])
async def test_requests_have_spans_and_are_no_messages(before: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    hub = Hub(authenticate=named)
    if not before:
        hub.enable_tracing(provider)
    hub.on_message_received(lambda client, message: None)
    hub.on_join_request(lambda client, room_id: True)

    @hub.on_request
    async def answer(client: Client, data: Any) -> Any:
        await asyncio.sleep(0)
        return data

    if before:
        hub.enable_tracing(provider)
    hub.create_room("x")
    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send(TEXT, b'{"type":"request","id":"q1","data":1}')
        await raw.send(TEXT, b'{"type":"join","id":"q2","room":"x"}')
        assert b'"q1"' in (await raw.recv()).payload
        assert b'"q2"' in (await raw.recv()).payload
        raw.close()
    assert len(spans(exporter, "process request")) == 1
    (span,) = spans(exporter, "decide about join")
    assert attributes(span)["messaging.destination.name"] == "room/x"
    assert spans(exporter, "process message") == []


async def test_headers_that_are_no_context_do_no_harm() -> None:
    hub, exporter = traced()
    hub.on_client_connected(lambda client: None)
    headers = [("traceparent", "00-nonsense"), ("tracestate", "=" * 600), ("baggage", "%%%")]
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a", headers=headers):
            await eventually(lambda: spans(exporter, "connect client"))
    (span,) = spans(exporter, "connect client")
    assert span.parent is None


def test_a_hub_without_traces_has_the_methods_of_its_class() -> None:
    hub = Hub()
    assert not {"send_to_user", "send_ack_message_to_user"} & vars(hub).keys()
