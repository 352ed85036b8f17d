"""HubConfig: the contract's names and defaults, and each value that cannot work."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wsc_fast import ConfigError, HubConfig

CONTRACT = (
    "max_connections",
    "read_buffer_size",
    "write_buffer_size",
    "handshake_timeout",
    "enable_compression",
    "check_origin",
    "allowed_origins",
    "max_message_size",
    "outbox_messages",
    "outbox_bytes",
    "overflow",
    "heartbeat_interval",
    "heartbeat_timeout",
)


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_names_are_settings(name: str) -> None:
    assert name in HubConfig.__struct_fields__


def test_the_defaults_of_the_contract() -> None:
    config = HubConfig()
    assert config.check_origin is True
    assert config.allowed_origins == ()
    assert config.max_message_size == 1 << 20
    assert config.outbox_messages == 1024
    assert config.outbox_bytes == 1 << 20
    assert config.overflow == "disconnect"
    assert config.heartbeat_interval == 25
    assert config.heartbeat_timeout == 60
    assert config.max_pending_callbacks == 64
    assert config.flush_budget == 0.005


def test_a_config_is_immutable() -> None:
    with pytest.raises(AttributeError):
        HubConfig().max_connections = 1  # type: ignore[misc]


def test_an_unknown_setting_is_refused() -> None:
    text = r"HubConfig has no setting 'max_conections': is it max_connections\?"
    with pytest.raises(ConfigError, match=text):
        HubConfig(max_conections=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"HubConfig has no setting 'colour'$"):
        HubConfig(colour=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_connections", 0),
        ("max_connections", -1),
        ("max_connections", True),
        ("max_connections", 1.5),
        ("max_connections", "10"),
        ("max_connections", None),
        ("read_buffer_size", 0),
        ("write_buffer_size", -1),
        ("max_message_size", 0),
        ("max_fragments", 0),
        ("outbox_messages", 0),
        ("outbox_bytes", 0),
        ("max_pending_callbacks", 0),
        ("authentication_input_bytes", -1),
        ("max_rooms", -1),
        ("max_rooms_per_client", -1),
        ("backlog", 0),
        ("backlog", 1 << 20),
        ("handshake_timeout", 0),
        ("handshake_timeout", -1.0),
        ("handshake_timeout", math.nan),
        ("handshake_timeout", math.inf),
        ("handshake_timeout", "5"),
        ("handshake_timeout", None),
        ("handshake_timeout", True),
        ("authentication_timeout", 0),
        ("heartbeat_interval", 0),
        ("heartbeat_timeout", 0),
        ("close_timeout", 0),
        ("thread_call_timeout", 0),
        ("flush_budget", 0),
        ("check_origin", 1),
        ("check_origin", None),
        ("enable_compression", "yes"),
        ("allowed_origins", "https://app.example"),
        ("allowed_origins", ("",)),
        ("allowed_origins", (1,)),
        ("allowed_origins", None),
        ("allowed_origins", 5),
        ("allowed_hosts", "app.example"),
        ("overflow", "drop"),
        ("overflow", None),
        ("overflow", 1),
    ],
)
def test_a_value_that_cannot_work_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        HubConfig(**{name: value})
    text = str(caught.value)
    assert f"HubConfig.{name}" in text
    assert repr(value) in text
    assert "expected" in text
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("allowed_origins", ("https://app.example", "https://app.example/chat")),
        ("allowed_origins", ("https://*",)),
        ("allowed_hosts", ("app.example:8080", "https://app.example")),
        ("allowed_hosts", ("app.example/",)),
        ("allowed_hosts", ("*.example",)),
        ("subprotocols", ("chat", "two words")),
        ("trusted_proxies", ("127.0.0.1", "localhost")),
    ],
)
def test_an_item_that_no_request_can_match_is_named(name: str, items: Any) -> None:
    with pytest.raises(ConfigError, match="expected") as caught:
        HubConfig(**{name: items})
    assert repr(items[-1]) in str(caught.value)


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
def test_every_overflow_policy_is_taken(overflow: Any) -> None:
    assert HubConfig(overflow=overflow).overflow == overflow


def test_whole_numbers_are_seconds_too() -> None:
    assert HubConfig(heartbeat_interval=1, heartbeat_timeout=2).heartbeat_interval == 1


def test_a_list_of_origins_becomes_a_tuple() -> None:
    origins = ["https://a.example", "*.b.example"]
    config = HubConfig(allowed_origins=origins)  # type: ignore[arg-type]
    origins.append("https://evil.example")
    assert config.allowed_origins == ("https://a.example", "*.b.example")


@pytest.mark.fault(number="A18")
@pytest.mark.parametrize("timeout", [5.0, 20.0])
def test_a_heartbeat_that_could_never_be_answered_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigError, match="heartbeat_timeout"):
        HubConfig(heartbeat_interval=20.0, heartbeat_timeout=timeout)


def test_equal_configs_are_equal() -> None:
    assert HubConfig() == HubConfig()
    assert HubConfig(max_rooms=5) != HubConfig()


@pytest.mark.parametrize("given", [1, 1024, 2047])
def test_a_small_read_buffer_is_raised_to_the_least(
    given: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert HubConfig(read_buffer_size=given).read_buffer_size == 2048
    assert caplog.messages == [f"HubConfig.read_buffer_size is {given}: 2048 is the least"]
    caplog.clear()
    assert HubConfig(read_buffer_size=2048).read_buffer_size == 2048
    assert caplog.messages == []
