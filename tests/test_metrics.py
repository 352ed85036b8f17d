"""Metrics for Prometheus, and the statistics of single clients: real hubs, scraped by HTTP.

Each scrape is read by prometheus-client's own parsers.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import threading
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import prometheus_client
import pytest
import yaml
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.aware import Aware, keeping
from tests.redis_server import RedisServer
from tests.support import busy, crowd, join, known, named, only_client, stall
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    ClientStats,
    ConfigError,
    Hub,
    HubConfig,
    HubStateError,
    HubStoppedError,
    ListenError,
    MemoryOfflineStore,
    RedisBus,
    Request,
    ValidationError,
)
from wsc_fast.observe.endpoint import MetricsPort
from wsc_fast.observe.readings import FAMILIES
from wsc_fast.testing import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawClient,
    eventually,
    eventually_async,
    running,
    running_in_thread,
)

ROOT = Path(__file__).parent.parent
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# Sample, with its labels, sorted -> value.
Samples = dict[str, float]


def new_registry() -> prometheus_client.CollectorRegistry:
    return prometheus_client.CollectorRegistry()


def samples_of(families: Any) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found, name
            found[name] = sample.value
    return found


async def get(
    port: int, path: str = "/metrics", headers: str = "", method: str = "GET"
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), fields, body.decode()


async def scrape(port: int) -> Samples:
    status, _, body = await get(port)
    assert status == 200
    return samples_of(parse_text(body))


def metered(config: HubConfig | None = None, **options: Any) -> Hub:
    """A hub with metrics in a registry of their own, whose clients name themselves."""
    hub = Hub(config, authenticate=named)
    hub.enable_metrics(registry=new_registry(), **options)
    return hub


# --- the endpoint ---


async def test_a_scrape_is_read_by_both_parsers_and_they_agree(any_loop: str) -> None:
    hub = metered()
    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            status, headers, body = await get(hub.port)
            assert status == 200
            assert headers["content-type"].startswith("text/plain; version=")
            text = samples_of(parse_text(body))
            _, headers, body = await get(hub.port, headers=f"Accept: {OPENMETRICS}\r\n")
            assert headers["content-type"].startswith("application/openmetrics-text")
            assert body.endswith("# EOF\n")
            modern = samples_of(parse_openmetrics(body))
    assert text["wsc_connected_clients"] == modern["wsc_connected_clients"] == 1
    assert text.keys() == modern.keys()


async def test_the_metrics_follow_the_counters_of_the_hub() -> None:
    hub = metered()
    async with running(hub):
        raw, client = await join(hub, "a")
        with raw:
            hub.create_room("r")
            await raw.send(TEXT, b"hello")
            await eventually(lambda: hub.get_stats().messages_in == 1)
            hub.broadcast("abc")
            assert (await raw.recv()).payload == b"abc"
            await eventually(lambda: hub.get_stats().frames_sent == 1)
            found = await scrape(hub.port)
            expected = {
                "wsc_connected_clients": 1,
                "wsc_open_connections": 1,
                "wsc_connections_total": 1,
                "wsc_rooms": 1,
                "wsc_messages_received_total": 1,
                "wsc_received_bytes_total": 5,
                "wsc_messages_sent_total": 1,
                "wsc_deliveries_total": 1,
                "wsc_frames_sent_total": 1,
                "wsc_sent_bytes_total": 5,
                "wsc_queued_messages": 0,
                "wsc_flush_clients_count": 1,
                "wsc_flush_clients_bucket{le=1.0}": 1,
                "wsc_flush_seconds_count": 1,
                "wsc_flush_send_seconds_count": 1,
                "wsc_closes_total{code=1000}": 0,
            }
            assert {name: found[name] for name in expected} == expected
            assert 0 < found["wsc_flush_send_seconds_sum"] <= found["wsc_flush_seconds_sum"]
            assert 0 < found["wsc_uptime_seconds"] < 60
            client.disconnect(1000)
            assert (await raw.recv()).code == 1000
            await raw.send(CLOSE, b"\x03\xe8")
            await eventually(lambda: hub.connections == 0)
            assert (await scrape(hub.port))["wsc_closes_total{code=1000}"] == 1


async def test_a_refusal_a_slow_client_and_a_limit_are_counted_by_reason() -> None:
    hub = metered(HubConfig(outbox_messages=1, max_message_size=125))
    async with running(hub):
        assert (await get(hub.port, "/nowhere"))[0] == 404
        raw, client = await join(hub, "a")
        big, _ = await join(hub, "b")
        with raw, big:
            await big.send(TEXT, b"x" * 126)
            assert (await big.recv()).code == 1009
            await stall(client)
            hub.broadcast("1", exclude=["b"])
            hub.broadcast("2", exclude=["b"])
            found = await scrape(hub.port)
        assert found["wsc_refusals_total{reason=request}"] == 1
        assert found["wsc_limit_hits_total{setting=max_message_size}"] == 1
        assert found["wsc_protocol_errors_total"] == 1
        assert found["wsc_slow_consumer_disconnects_total"] == 1
        assert found["wsc_dropped_messages_total{reason=slow_consumer}"] == 2
        assert found["wsc_closes_total{code=1009}"] == 1
        assert found["wsc_closes_total{code=1013}"] == 1


async def test_close_codes_that_clients_choose_are_one_value_of_the_label() -> None:
    hub = metered()
    async with running(hub):
        for code in (3000, 4123, 4999, 1001, 4401):
            raw, _ = await join(hub, f"c{code}")
            with raw:
                await raw.send(CLOSE, code.to_bytes(2, "big"))
                assert (await raw.recv()).code == code
        await eventually(lambda: hub.connections == 0)
        raw, client = await join(hub, "ours")
        with raw:
            client.disconnect(4123)
            assert (await raw.recv()).code == 4123
            raw.vanish()
        await eventually(lambda: hub.connections == 0)
        lost, _ = await join(hub, "lost")
        lost.reset()
        await eventually(lambda: hub.connections == 0)
        closes = hub.get_stats().closes
        assert {code: count for code, count in closes.items() if count} == {
            "3000-4999": 4,
            "1001": 1,
            "4123": 1,
            "1006": 1,
        }
    hub.reset_stats()
    assert not any(hub.get_stats().closes.values())


async def test_the_lag_of_a_loop_that_stood_still_is_seen() -> None:
    hub = metered()
    async with running(hub):
        assert (await scrape(hub.port))["wsc_loop_lag_seconds_bucket{le=+Inf}"] >= 0
        busy(0.6)

        async def seen() -> bool:
            return (await scrape(hub.port))["wsc_loop_lag_seconds_sum"] > 0.2

        await eventually_async(seen)


async def test_acknowledgements_and_their_store_are_timed() -> None:
    hub = metered()
    store = MemoryOfflineStore()
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
    async with running(hub):
        away = hub.send_ack_message_to_user("bob", ACKMessage(id="b", content="later"))
        await eventually(lambda: hub.get_stats().offline_stored == 1)
        raw, _ = await join(hub, "ann")
        with raw:
            pending = hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="now"))
            assert msgspec.json.decode((await raw.recv()).payload)["id"] == "m"
            await raw.send(TEXT, b'{"type":"ack","message_id":"m","status":"confirmed"}')
            await pending
            found = await scrape(hub.port)
        assert found["wsc_acks_total{outcome=confirmed}"] == 1
        assert found["wsc_acks_sent_total"] == 2
        assert found["wsc_ack_latency_seconds_count"] == 1
        assert 0 < found["wsc_ack_latency_seconds_sum"] < 10
        assert found["wsc_store_latency_seconds_count{operation=append}"] == 1
        assert found["wsc_store_latency_seconds_count{operation=open}"] == 1
        assert found["wsc_stored_messages_total"] == 1
        assert found["wsc_store_errors_total"] == 0
    assert away.done()  # its message is in the store


async def test_kept_rooms_tell_who_recovered() -> None:
    hub = keeping(hub=metered(), size=1)
    async with running(hub):
        client = await Aware.open(hub, "a")
        await client.recv()
        for number in range(100):
            hub.broadcast_to_room("r", str(number))
        await client.texts(100)
        client.close()
        for positions in (client.positions, {"r": "unknown"}):
            back = await Aware.open(hub, "a", positions)
            await back.recv()
            back.close()
        samples = await scrape(hub.port)
        assert samples["wsc_bus_published_total"] == 100
        assert samples["wsc_bus_received_total"] == 100
        assert samples["wsc_recoveries_total{outcome=recovered}"] == 1
        assert samples["wsc_recoveries_total{outcome=not_recovered}"] == 1
        assert samples["wsc_gaps_total"] == samples["wsc_heals_total"] == 0
        assert hub.cluster.counters()["recovered"] == 1
        hub.reset_stats()
        assert set(hub.cluster.counters().values()) == {0}
        assert (await scrape(hub.port))["wsc_bus_published_total"] == 0


async def test_the_hubs_on_the_bus_are_counted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        hub = Hub(authenticate=named, bus=RedisBus(server.url))
        hub.enable_metrics(registry=new_registry())
        async with running(hub), running(Hub(authenticate=named, bus=RedisBus(server.url))):
            await eventually(lambda: hub.get_stats().nodes == 2, 10.0)
            assert (await scrape(hub.port))["wsc_nodes"] == 2


async def test_bytes_on_the_bus_that_no_hub_wrote_are_counted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        hub = keeping(hub=Hub(authenticate=named, bus=RedisBus(server.url)))
        hub.enable_metrics(registry=new_registry())
        async with running(hub):
            client = await Aware.open(hub, "a")
            await client.recv()
            server.command("PUBLISH", "wsc:c:{r}", "by somebody else")
            await hub.publish("r", "by the hub")
            assert await client.texts(1) == [b"by the hub"]
            samples = await scrape(hub.port)
            assert samples["wsc_bus_errors_total{reason=poisoned}"] == 1
            assert samples["wsc_bus_errors_total{reason=not_published}"] == 0
            client.close()


async def test_the_heartbeat_tells_round_trips_and_backlogs() -> None:
    hub = metered(HubConfig(heartbeat_interval=0.1, heartbeat_timeout=30))
    async with running(hub):
        raw, client = await join(hub, "a")
        with raw:
            assert client.stats().round_trip is None
            frame = await raw.recv()
            assert frame.opcode == PING
            await raw.send(PONG, frame.payload)
            await eventually(lambda: client.stats().round_trip is not None)
            found = await scrape(hub.port)
            assert found["wsc_heartbeat_round_trip_seconds_count"] >= 1
            assert found["wsc_outbox_depth_messages_count"] >= 1
            round_trip = client.stats().round_trip
            assert round_trip is not None
            assert 0 < round_trip < 10


async def test_a_hub_on_picows_is_scraped_like_the_others() -> None:
    hub = metered()
    async with running(hub, transport="picows"):
        raw, client = await join(hub, "ann")
        with raw:
            client.send("hello")
            assert (await raw.recv()).payload == b"hello"
            found = await scrape(hub.port)
            assert found["wsc_connected_clients"] == found["wsc_connections_total"] == 1
            assert found["wsc_frames_sent_total"] == 1
            stats = client.stats()
            assert (stats.frames_sent, stats.bytes_out) == (1, 7)


async def test_a_path_of_ones_own_and_head_requests() -> None:
    hub = Hub()
    hub.enable_metrics("/internal/metrics", registry=new_registry())
    async with running(hub):
        assert (await get(hub.port))[0] == 404
        status, _, body = await get(hub.port, "/internal/metrics", method="HEAD")
        assert (status, body) == (200, "")


async def test_who_may_scrape_is_the_applications_to_say() -> None:
    def may_scrape(request: Request) -> bool:
        return request.headers.get("Authorization") == "Bearer secret"

    hub = metered(authenticate=may_scrape)
    async with running(hub):
        status, headers, body = await get(hub.port)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert "wsc_" not in body
        assert (await get(hub.port, headers="Authorization: Bearer guess\r\n"))[0] == 403
        assert hub.get_stats().rejected["auth"] == 2
        assert (await get(hub.port, headers="Authorization: Bearer secret\r\n"))[0] == 200


async def test_an_authenticate_that_decides_nothing_lets_nobody_in() -> None:
    async def later(request: Request) -> bool:
        return True

    errors: list[BaseException] = []
    hub = metered(authenticate=lambda request: later(request))  # type: ignore[arg-type, return-value]
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        assert (await get(hub.port))[0] == 500
    assert "must return a bool" in str(errors[0])


# --- a port of its own ---


async def test_a_port_of_its_own_serves_the_metrics_and_nothing_else(any_loop: str) -> None:
    hub = metered(port=0)
    assert hub.metrics_port is None
    async with running(hub):
        port = hub.metrics_port
        assert port is not None
        assert (await get(hub.port))[0] == 404
        assert (await scrape(port))["wsc_connected_clients"] == 0
        assert (await get(port, "/ws"))[0] == 404
        assert (await get(port, method="POST"))[0] == 405
        assert (await get(port, method="HEAD"))[::2] == (200, "")
        assert (await get(port, headers="bad header\r\n"))[0] == 400
    assert hub.metrics_port is None
    with pytest.raises(OSError, match=r".+"):
        await get(port)
    async with running(hub):  # again
        assert hub.metrics_port is not None
        assert (await scrape(hub.metrics_port))["wsc_connected_clients"] == 0


async def test_scrapers_that_send_nothing_or_too_much_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wsc_fast.observe import endpoint

    monkeypatch.setattr(endpoint, "TIMEOUT", 0.2)
    monkeypatch.setattr(endpoint, "MOST_CONNECTIONS", 2)
    hub = metered(port=0)
    async with running(hub):
        port = hub.metrics_port
        assert port is not None
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in silent:
            assert await read_to_the_end(reader) == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert await read_to_the_end(reader) == b""
        writer.close()
        await eventually_async(lambda: scrapes(port))


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def scrapes(port: int) -> bool:
    return (await get(port))[0] == 200


async def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing_open() -> None:
    first, second = metered(port=0), metered()
    async with running(first):
        assert first.metrics_port is not None
        second = Hub()
        second.enable_metrics(port=first.metrics_port, registry=new_registry())
        with pytest.raises(ListenError, match=str(first.metrics_port)):
            await second.start(port=0)
        assert second.loop is None
        with pytest.raises(HubStateError):
            _ = second.port


async def test_a_hub_that_is_stopped_while_its_metrics_port_opens_leaves_none_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = metered(port=0)
    ports = []
    opened = MetricsPort.open

    async def open_slowly(self: MetricsPort, loop: asyncio.AbstractEventLoop) -> None:
        await opened(self, loop)
        ports.append(self.port)
        await hub.stop()

    monkeypatch.setattr(MetricsPort, "open", open_slowly)
    with pytest.raises(HubStoppedError):
        await hub.start(port=0)
    assert hub.metrics_port is None
    (port,) = ports
    assert port is not None
    with pytest.raises(ConnectionRefusedError):
        await get(port)


async def test_the_port_asks_authenticate_and_reports_its_exceptions() -> None:
    def broken(request: Request) -> bool:
        if "Authorization" in request.headers:
            raise RuntimeError("the token service is away")
        return False

    errors: list[BaseException] = []
    hub = metered(port=0, authenticate=broken)
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        assert hub.metrics_port is not None
        assert (await get(hub.metrics_port))[0] == 401
        assert (await get(hub.metrics_port, headers="Authorization: x\r\n"))[0] == 500
    assert [str(error) for error in errors] == ["the token service is away"]


# --- registries ---


def test_the_global_registry_has_the_metrics_and_does_not_keep_the_hub() -> None:
    hub = Hub()
    hub.enable_metrics(None)
    assert "wsc_connected_clients 0.0" in prometheus_client.generate_latest().decode()
    gone = weakref.ref(hub)
    del hub
    gc.collect()
    assert gone() is None
    assert "wsc_connected_clients" not in prometheus_client.generate_latest().decode()


def test_several_hubs_of_a_registry_are_told_apart_by_a_label() -> None:
    registry = new_registry()
    hubs = [Hub() for _ in range(4)]
    for hub, name in zip(hubs, ("", "", "chat", "chat"), strict=True):
        hub.enable_metrics(None, registry=registry, name=name)
    hubs[3].create_room("r")
    body = prometheus_client.generate_latest(registry).decode()
    rooms = {name: v for name, v in samples_of(parse_text(body)).items() if "wsc_rooms" in name}
    assert rooms == {
        "wsc_rooms": 0,
        "wsc_rooms{hub=2}": 0,
        "wsc_rooms{hub=chat}": 0,
        "wsc_rooms{hub=chat2}": 1,
    }
    assert body.count("# TYPE wsc_rooms ") == 1


def test_a_registry_with_other_metrics_of_these_names_is_an_error() -> None:
    registry = new_registry()
    prometheus_client.Gauge("wsc_rooms", "Rooms of somebody else's.", registry=registry)
    hub = Hub()
    with pytest.raises(ConfigError, match="wsc_rooms"):
        hub.enable_metrics(registry=registry)
    hub.enable_metrics(registry=new_registry())  # the route is free still


def test_another_thread_scrapes_a_running_hub() -> None:
    registry = new_registry()
    hub = Hub()
    hub.enable_metrics(None, registry=registry)
    with running_in_thread(hub):
        found = samples_of(parse_text(prometheus_client.generate_latest(registry).decode()))
        assert found["wsc_uptime_seconds"] > 0


async def test_hubs_of_two_loops_that_are_scraped_at_once_do_not_wait_for_each_other() -> None:
    registry = new_registry()
    hubs = [Hub(HubConfig(thread_call_timeout=60)) for _ in range(2)]
    for hub, name in zip(hubs, ("a", "b"), strict=True):
        hub.enable_metrics(registry=registry, name=name)
    with running_in_thread(hubs[0]), running_in_thread(hubs[1]):
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(scrape(hubs[n % 2].port) for n in range(40)))
    for samples in found:
        assert {"wsc_rooms{hub=a}", "wsc_rooms{hub=b}"} <= samples.keys()


async def test_metrics_of_the_application_that_take_long_do_not_hold_up_the_hub() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> float:
        asked.set()
        return float(go_on.wait(60))

    hub, registry = Hub(), new_registry()
    prometheus_client.Gauge("of_a_database", "Slow.", registry=registry).set_function(slow)
    hub.enable_metrics(registry=registry)
    async with running(hub):
        scraping = asyncio.create_task(scrape(hub.port))
        await eventually(asked.is_set)
        assert (await get(hub.port, "/none"))[0] == 404  # the loop goes on
        go_on.set()
        assert (await scraping)["of_a_database"] == 1


def test_a_busy_loop_takes_only_the_hubs_own_metrics_out_of_a_scrape() -> None:
    registry = new_registry()
    prometheus_client.Gauge("of_the_application", "Something.", registry=registry)
    hub = Hub(HubConfig(thread_call_timeout=0.05))
    hub.enable_metrics(None, registry=registry)
    with running_in_thread(hub):
        assert hub.loop is not None
        hub.loop.call_soon_threadsafe(busy, 0.5)
        body = prometheus_client.generate_latest(registry).decode()
        assert "of_the_application" in body
        assert "wsc_rooms" not in body


@pytest.mark.parametrize(
    ("module", "enable", "extra"),
    [
        ("prometheus_client", lambda hub: hub.enable_metrics(), "metrics"),
        ("opentelemetry", lambda hub: hub.enable_tracing(), "otel"),
    ],
)
def test_without_its_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, enable: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"wsc_fast\[{extra}\]"):
        enable(Hub())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"port": 70_000}, ValidationError),
        ({"port": True}, ValidationError),
        ({"port": 0, "path": None}, ValidationError),
        ({"port": 0, "path": "metrics"}, ValidationError),
        ({"port": 0, "path": "/metrics?all"}, ValidationError),
        ({"port": 0, "path": "/my metrics"}, ValidationError),
        ({"path": "metrics"}, ValidationError),
        ({"host": ""}, ValidationError),
        ({"name": 1}, ValidationError),
        ({"registry": "prometheus"}, ValidationError),
        ({"authenticate": 1}, ValidationError),
        ({"authenticate": asyncio.sleep}, ValidationError),
        ({"authenticate": bool, "path": None}, ValidationError),
    ],
)
def test_arguments_that_cannot_be_taken_are_errors(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    hub = Hub()
    with pytest.raises(error):
        hub.enable_metrics(**{"registry": new_registry(), **arguments})
    hub.enable_metrics(registry=new_registry())  # and nothing of it was kept
    with pytest.raises(HubStateError):
        hub.enable_metrics("/again", registry=new_registry())


async def test_metrics_of_a_running_hub_begin_at_once_but_for_a_port() -> None:
    hub = Hub()
    async with running(hub):
        with pytest.raises(HubStateError, match="before the hub starts"):
            hub.enable_metrics(port=0, registry=new_registry())
        hub.enable_metrics(registry=new_registry())
        assert (await scrape(hub.port))["wsc_connected_clients"] == 0
        with pytest.raises(ValidationError):
            hub.route("/metrics")


# --- the statistics of single clients ---


@pytest.mark.parametrize("name", ClientStats.__struct_fields__)
def test_every_field_is_documented(name: str) -> None:
    assert ClientStats.__doc__ is not None
    assert name in ClientStats.__doc__


async def test_a_client_counts_its_own_messages() -> None:
    hub = Hub()
    before = datetime.now(UTC)
    async with running(hub):
        with await RawClient.open(hub) as raw, await RawClient.open(hub) as other:
            client = next(c for c in hub.iter_clients())
            await raw.send(TEXT, b"abc")
            await other.send(TEXT, b"de")
            await eventually(lambda: hub.get_stats().messages_in == 2)
            client.send("hello")
            stats = client.stats()
            assert (stats.queued_messages, stats.queued_bytes) == (1, 7)
            assert (stats.frames_sent, stats.bytes_out) == (0, 0)
            await eventually(lambda: hub.get_stats().frames_sent == 1)
            stats = client.stats()
            assert (stats.messages_in, stats.frames_sent, stats.bytes_out) == (1, 1, 7)
            assert stats.bytes_in in (2, 3)
            assert (stats.queued_messages, stats.dropped, stats.conflated) == (0, 0, 0)
            assert before <= stats.connected_at <= datetime.now(UTC)
            assert 0 < stats.age < 60
            assert msgspec.json.decode(msgspec.json.encode(stats), type=ClientStats) == stats


def totals(stats: list[ClientStats]) -> tuple[int, int]:
    return sum(each.frames_sent for each in stats), sum(each.bytes_out for each in stats)


@pytest.mark.parametrize("budget", [0.005, 1e-6], ids=["at once", "a few at a time"])
async def test_what_clients_were_sent_adds_up_whatever_way_it_took(budget: float) -> None:
    """Batches, outboxes, exclusions, joins and leaves within a batch, and compressed forms."""
    config = HubConfig(
        flush_budget=budget,
        enable_compression=True,
        compression_threshold=64,
        close_timeout=0.2,
    )
    hub = Hub(config, authenticate=named)
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with running(hub):
        raws = [
            await RawClient.open(hub, f"/ws?id=c{n}", headers=offer if n % 3 == 0 else [])
            for n in range(100)
        ]
        hub.create_room("r")
        for n in range(60):
            hub.join_room(f"c{n}", "r")
        everyone = list(hub.iter_clients())
        for turn in range(4):
            hub.broadcast("x" * 100 * (turn + 1))
            known(hub, "c1").send("direct")
            hub.broadcast("y", exclude=["c2", "c3"])
            await eventually(lambda: hub.get_stats().queued_messages == 0)
            hub.broadcast_to_room("r", "z" * 200)
            hub.leave_room(f"c{turn}", "r")
            hub.join_room(f"c{90 + turn}", "r")
            hub.broadcast_to_room("r", "zz")
            await eventually(lambda: hub.get_stats().queued_messages == 0)
            hub.broadcast("k", key="k")
            raws[20 + turn].vanish()
            known(hub, f"c{20 + turn}").disconnect()
            raw, client = await join(hub, f"late{turn}")
            raws.append(raw)
            everyone.append(client)
            hub.broadcast("before the end")
            await eventually(lambda: hub.get_stats().queued_messages == 0)
        # A batch that ends without a flush, and a room that ends with one under way.
        hub.broadcast_to_room("r", "last")
        hub.delete_room("r")
        hub.broadcast("a")
        hub.broadcast("b", key="b")
        await eventually(lambda: hub.get_stats().queued_messages == 0)
        await eventually(lambda: hub.connections == 100)
        stats = hub.get_stats()
        assert totals([client.stats() for client in everyone]) == (
            stats.frames_sent,
            stats.bytes_out,
        )
        assert all(0 < client.stats().frames_sent < 100 for client in everyone)
        for raw in raws:
            raw.close()
        await eventually(lambda: hub.connections == 0)
        stats = hub.get_stats()
        assert totals([client.stats() for client in everyone]) == (
            stats.frames_sent,
            stats.bytes_out,
        )


async def test_drops_and_conflation_are_counted_for_the_client() -> None:
    hub = Hub(HubConfig(outbox_messages=2, overflow="drop_oldest"), authenticate=named)
    async with running(hub):
        raw, client = await join(hub, "a")
        with raw:
            await stall(client)
            for number in range(4):
                client.send(str(number), key="price")
            client.send("1")
            client.send("2")
            stats = client.stats()
            assert (stats.conflated, stats.dropped, stats.queued_messages) == (3, 1, 2)


async def test_the_slowest_clients_come_first() -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 4):
        assert hub.slowest_clients() == []
        clients = {name: known(hub, name) for name in ("c0", "c1", "c2")}
        for client in clients.values():
            await stall(client)
        clients["c0"].send("x" * 10)
        clients["c1"].send("x" * 100)
        for _ in range(2):
            clients["c2"].send("x" * 4)
        slow = hub.slowest_clients()
        assert [client.id for client in slow] == ["c1", "c2", "c0"]
        assert hub.slowest_clients(10**30) == slow
        assert hub.slowest_clients(1) == [clients["c1"]]
        for wrong in (0, -1, True, 1.0, None):
            with pytest.raises(ValidationError):
                hub.slowest_clients(wrong)  # type: ignore[arg-type]


async def test_iterating_clients_outlasts_their_ends() -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 3) as raws:
        clients = hub.iter_clients()
        first = next(clients)
        for raw in raws.values():
            raw.vanish()
        for client in list(hub.iter_clients()):
            client.disconnect()
        rest = list(clients)
        assert {client.id for client in (first, *rest)} == {"c0", "c1", "c2"}
        assert list(hub.iter_clients()) == []


def test_other_threads_look_at_clients() -> None:
    hub = Hub()
    with running_in_thread(hub):

        async def look() -> ClientStats:
            with await RawClient.open(hub):
                # The 101 comes before the hub's thread has made the client.
                await eventually(lambda: hub.get_connected_clients() == 1)
                stats = await asyncio.to_thread(lambda: only_client(hub).stats())
                assert hub.slowest_clients() == []
                assert [client.id for client in hub.iter_clients()] == [only_client(hub).id]
                return stats

        assert asyncio.run(look()).messages_in == 0


# --- docs, dashboard and alerts ---


def names_of_metrics() -> set[str]:
    """The names of all samples."""
    found = set()
    for family in FAMILIES:
        suffixes = {"gauge": ("",), "counter": ("_total",)}.get(
            family.kind, ("_bucket", "_count", "_sum")
        )
        found |= {family.name + suffix for suffix in suffixes}
    return found


def named_in(text: str) -> set[str]:
    return set(re.findall(r"\bwsc_\w+", text)) - {"wsc_fast"}


def test_each_family_has_its_row_in_the_docs() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(wsc_\w+)(?:\{(\w+)\})?` \| (\w+) \| (.+) \|$", page, re.M)
    expected = [
        (
            family.name + ("_total" if family.kind == "counter" else ""),
            family.label or "",
            family.kind,
            family.text,
        )
        for family in FAMILIES
    ]
    assert sorted(rows) == sorted(expected)
    histograms = {family.name for family in FAMILIES if family.kind == "histogram"}
    assert named_in(page) <= names_of_metrics() | histograms


async def test_dashboard_and_alerts_name_metrics_that_a_scrape_has() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    for rule in rules:
        assert {"alert", "expr", "for", "labels", "annotations"} <= rule.keys()
        assert rule["annotations"].keys() == {"summary", "description"}
    expressions += [rule["expr"] for rule in rules]
    hub = metered()
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=MemoryOfflineStore())
    async with running(hub):
        scraped = {name.partition("{")[0] for name in await scrape(hub.port)}
    named_there = named_in(" ".join(expressions))
    assert len(named_there) > 20
    assert named_there <= scraped
    for expression in expressions:
        assert expression.count("(") == expression.count(")"), expression
        # A counter is of use as a rate only.
        for counter in re.findall(r"wsc_\w+_total\b", expression):
            assert re.search(rf"(?:rate|increase)\({counter}", expression), expression


def test_names_follow_the_conventions() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"wsc_[a-z_]+", family.name)
        assert not family.name.endswith("_total")
        assert family.text.endswith(".")
        if family.kind == "histogram":
            assert family.name.endswith(("_seconds", "_messages", "_clients"))
