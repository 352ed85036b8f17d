"""RetryConfig and ACKConfig, and all settings from the environment and from files."""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from wsc_fast.config import ACKConfig, HubConfig, RetryConfig
from wsc_fast.config.base import Settings
from wsc_fast.config.kinds import FOREVER
from wsc_fast.config.settings import OfflineOverflow
from wsc_fast.errors import ConfigError, SendFailureReason, ValidationError

CLASSES: tuple[type[Settings], ...] = (HubConfig, RetryConfig, ACKConfig)
TABLE = {HubConfig: "hub", RetryConfig: "retry", ACKConfig: "ack"}
FORMATS = (".yaml", ".yml", ".toml", ".json")
REASONS = ", ".join(SendFailureReason)


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        make()
    return str(caught.value)


def in_toml(value: Any) -> str:
    """A value as TOML: but for tables it is JSON, with the words for NaN and infinity apart."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {in_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def written(folder: Path, suffix: str, content: dict[str, Any]) -> Path:
    """A file of the content, in the format of the suffix."""
    path = folder / f"settings{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(content))
    elif suffix == ".toml":
        path.write_text("\n".join(f"{key} = {in_toml(item)}" for key, item in content.items()))
    else:
        path.write_text(yaml.safe_dump(content))
    return path


def file_of(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


# The settings


def test_the_defaults_of_the_contract() -> None:
    retry = RetryConfig()
    assert retry.max_retries == 3
    assert retry.base_delay == 0.1
    assert retry.backoff_factor == 2.0
    assert retry.max_delay == 30.0
    assert retry.jitter is False
    assert retry.retryable_errors == ("queue_full", "timeout", "conn_error", "channel_closed")
    assert retry.non_retryable_errors == ("user_offline", "permission", "validation")
    ack = ACKConfig()
    assert ack.timeout == 30.0
    assert ack.max_retries == 3
    assert ack.retry_interval == 5.0
    assert ack.enable_offline_messages is False
    assert ack.max_pending == 100_000
    assert ack.offline_limit == 1_000
    assert ack.offline_overflow == "drop_oldest"
    assert ack.offline_max_age == 7 * 24 * 3600


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in CLASSES for name in cls.__struct_fields__]
)
def test_every_setting_is_documented(cls: type[Settings], name: str) -> None:
    assert cls.__doc__ is not None
    described = name in cls.__doc__
    assert described, f"describe {name} under Attributes in the docstring of {cls.__name__}"


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_are_immutable_values(cls: type[Settings]) -> None:
    config = cls()
    assert config == cls()
    assert hash(config) == hash(cls())
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError):
        setattr(config, cls.__struct_fields__[0], 1)
    with pytest.raises(TypeError):
        cls(1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="max_retry"):
        cls(max_retry=1)  # type: ignore[call-arg]


def test_a_changed_copy_is_checked_too() -> None:
    assert msgspec.structs.replace(RetryConfig(), max_retries=5).max_retries == 5
    with pytest.raises(ConfigError, match=r"RetryConfig\.max_retries is -1"):
        msgspec.structs.replace(RetryConfig(), max_retries=-1)


@pytest.mark.parametrize(
    ("cls", "name", "values", "expected"),
    [
        (
            RetryConfig,
            "max_retries",
            (-1, 1_000_001, 1.0, True, "3", None, [3]),
            "an int from 0 to 1000000",
        ),
        (
            RetryConfig,
            "base_delay",
            (0, -0.1, math.nan, math.inf, -math.inf, "1", None, True, 10**400),
            "a positive number of seconds",
        ),
        (
            RetryConfig,
            "max_delay",
            (0, -1, math.nan, math.inf, "30", False),
            "a positive number of seconds",
        ),
        (
            RetryConfig,
            "backoff_factor",
            (0.99, 0, -2, math.nan, math.inf, -math.inf, "2", None, True, 10**400),
            "a number of at least 1",
        ),
        (RetryConfig, "jitter", (1, 0, "true", None), "True or False"),
        (
            RetryConfig,
            "retryable_errors",
            ("timeout", None, 5, {"timeout"}, ("",), (1,), (None,)),
            "a tuple or list of non-empty str",
        ),
        (
            RetryConfig,
            "non_retryable_errors",
            ("timeout", None, 5, {"timeout"}, ("",), (1,), (None,)),
            "a tuple or list of non-empty str",
        ),
        (
            ACKConfig,
            "max_retries",
            (-1, 1_000_001, 1.0, True, "3", None),
            "an int from 0 to 1000000",
        ),
        (
            ACKConfig,
            "timeout",
            (0, -1.0, math.nan, math.inf, "30", None, True),
            "a positive number of seconds",
        ),
        (
            ACKConfig,
            "retry_interval",
            (0, -1.0, math.nan, math.inf, "5", None, True),
            "a positive number of seconds",
        ),
        (
            ACKConfig,
            "offline_max_age",
            (0, -1.0, math.nan, math.inf, "5", None, True),
            "a positive number of seconds",
        ),
        (ACKConfig, "enable_offline_messages", (1, "yes", None), "True or False"),
        (ACKConfig, "max_pending", (0, -1, 1.5, True, None), f"an int from 1 to {1 << 30}"),
        (ACKConfig, "offline_limit", (0, -1, 1.5, True, None), f"an int from 1 to {1 << 30}"),
        (
            ACKConfig,
            "offline_overflow",
            ("drop_newest", "", "Refuse", None, 1, ["refuse"]),
            "one of drop_oldest, refuse",
        ),
    ],
)
def test_a_value_that_cannot_work_is_named(
    cls: type[Settings], name: str, values: tuple[Any, ...], expected: str
) -> None:
    for value in values:
        text = refusal(lambda value=value: cls(**{name: value}))
        assert text.startswith(f"{cls.__name__}.{name} is ")
        assert text.endswith(f", expected {expected}")
        if value != 10**400:  # shortened
            assert f" {value!r}," in text


@pytest.mark.parametrize(
    ("cls", "name", "values"),
    [
        (RetryConfig, "max_retries", (0, 1, 1_000_000)),
        (RetryConfig, "base_delay", (5e-324, 0.001, 1, 30)),
        (RetryConfig, "backoff_factor", (1, 1.0, 1.5, 10, sys.float_info.max)),
        (RetryConfig, "max_delay", (0.1, 1, FOREVER)),
        (RetryConfig, "jitter", (True, False)),
        (RetryConfig, "retryable_errors", ((), ("timeout",), ("ack_timeout", "unknown"))),
        (ACKConfig, "max_retries", (0, 1_000_000)),
        (ACKConfig, "timeout", (0.001, 1, 1e9)),
        (ACKConfig, "max_pending", (1, 1 << 30)),
        (ACKConfig, "offline_limit", (1, 1 << 30)),
        (ACKConfig, "offline_overflow", get_args(OfflineOverflow)),
    ],
)
def test_the_bounds_themselves_are_taken(
    cls: type[Settings], name: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        assert getattr(cls(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (HubConfig, "thread_call_timeout"),
        (HubConfig, "watchdog_timeout"),
        (HubConfig, "drain_period"),
        (HubConfig, "heartbeat_timeout"),
        (RetryConfig, "max_delay"),
        (ACKConfig, "offline_max_age"),
    ],
)
def test_seconds_are_cut_to_what_a_thread_can_wait(cls: type[Settings], name: str) -> None:
    for value in (1e10, 10**10, 1e300, sys.float_info.max):
        assert getattr(cls(**{name: value}), name) == FOREVER
    never = HubConfig(heartbeat_interval=1e300, heartbeat_timeout=2e300)
    assert never.heartbeat_interval == never.heartbeat_timeout == FOREVER
    assert RetryConfig(backoff_factor=1e300).backoff_factor == 1e300  # which is no time


def test_a_value_is_kept_as_its_annotation_says() -> None:
    assert type(ACKConfig(timeout=5).timeout) is float
    reasons = [SendFailureReason.TIMEOUT, "unknown"]
    config = RetryConfig(retryable_errors=reasons)  # type: ignore[arg-type]
    reasons.append("permission")
    assert config.retryable_errors == ("timeout", "unknown")
    assert [type(reason) for reason in config.retryable_errors] == [str, str]


@pytest.mark.parametrize("name", ["retryable_errors", "non_retryable_errors"])
def test_every_reason_is_known_and_others_are_kept_with_a_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "non_retryable_errors" if name == "retryable_errors" else "retryable_errors"
    reasons = tuple(SendFailureReason)
    assert getattr(RetryConfig(**{name: reasons, other: ()}), name) == reasons
    assert caplog.messages == []
    for wrong in ("queue-full", "QUEUE_FULL", "timeout ", "network_error"):
        caplog.clear()
        config = RetryConfig(**{name: ("unknown", wrong), other: ()})
        assert getattr(config, name) == ("unknown", wrong)
        assert caplog.messages == [
            f"RetryConfig.{name}: {wrong!r} is no reason and never matches, "
            f"expected one of {REASONS}"
        ]
        # A changed copy can be made of it.
        assert getattr(msgspec.structs.replace(config, max_retries=1), name)[1] == wrong


def test_a_reason_cannot_be_in_both_lists() -> None:
    assert (
        refusal(lambda: RetryConfig(non_retryable_errors=("permission", "conn_error")))
        == "RetryConfig.retryable_errors is 'conn_error', expected none of non_retryable_errors"
    )


def test_a_cap_below_the_first_delay_is_refused() -> None:
    assert (
        refusal(lambda: RetryConfig(base_delay=60))
        == "RetryConfig.max_delay is 30.0, expected at least base_delay (60.0)"
    )
    assert RetryConfig(base_delay=30).delay(1) == 30


def test_an_endless_value_gives_a_short_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, "x" * 10**6, [[0] * 10**5], 10**5000, b"x" * 10**6):
        assert len(refusal(lambda value=value: RetryConfig(max_retries=value))) < 500


# How long to wait


def test_the_delay_grows_up_to_the_cap() -> None:
    config = RetryConfig()
    delays = [config.delay(retry) for retry in range(1, 12)]
    assert delays[:9] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6])
    assert delays[9:] == [30.0, 30.0]


def test_a_factor_of_one_waits_the_same_each_time() -> None:
    config = RetryConfig(base_delay=0.5, backoff_factor=1)
    assert {config.delay(retry) for retry in (1, 2, 1000, 10**9)} == {0.5}


@pytest.mark.fault(number="G15")
@pytest.mark.parametrize("retry", [1024, 1025, 2_000, 10**6, 10**9])
@pytest.mark.parametrize("factor", [2, 2.0, 1.5, 1e300, sys.float_info.max])
@pytest.mark.parametrize("jitter", [False, True])
def test_a_late_retry_does_not_overflow(retry: int, factor: float, jitter: bool) -> None:
    config = RetryConfig(max_retries=2_000, backoff_factor=factor, jitter=jitter)
    delay = config.delay(retry)
    assert 0 <= delay <= 30 if jitter else delay == 30


@pytest.mark.fault(number="G15")
def test_jitter_spreads_over_the_whole_delay() -> None:
    config = RetryConfig(base_delay=1, jitter=True)
    for retry, longest in ((1, 1), (3, 4), (50, 30)):
        delays = [config.delay(retry) for _ in range(1_000)]
        assert 0 <= min(delays) < longest / 10
        assert longest * 9 / 10 < max(delays) <= longest
        assert sum(delays) / 1_000 == pytest.approx(longest / 2, rel=0.15)


@pytest.mark.parametrize("retry", [0, -1])
def test_there_is_no_delay_before_the_first_attempt(retry: int) -> None:
    with pytest.raises(ValidationError, match=f"retry is {retry}, expected 1 or more"):
        RetryConfig().delay(retry)


# From the environment


@pytest.mark.parametrize("cls", CLASSES)
def test_an_empty_environment_gives_the_defaults(cls: type[Settings]) -> None:
    assert cls.from_env({}) == cls()


def test_without_an_argument_it_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSC_MAX_RETRIES", "7")
    monkeypatch.setenv("WSC_ACK_MAX_RETRIES", "8")
    monkeypatch.setenv("WSC_OUTBOX_BYTES", "9")
    assert RetryConfig.from_env() == RetryConfig(max_retries=7)
    assert ACKConfig.from_env() == ACKConfig(max_retries=8)
    assert HubConfig.from_env() == HubConfig(outbox_bytes=9)


def test_no_variable_means_two_settings() -> None:
    prefix = {HubConfig: "WSC_", RetryConfig: "WSC_", ACKConfig: "WSC_ACK_"}
    variables = [prefix[cls] + name.upper() for cls in CLASSES for name in cls.__struct_fields__]
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_has_a_variable(cls: type[Settings]) -> None:
    prefix = "WSC_ACK_" if cls is ACKConfig else "WSC_"
    for field in msgspec.structs.fields(cls):
        value = field.default
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        made = cls.from_env({prefix + field.name.upper(): text})
        assert getattr(made, field.name) == value
        assert made == cls()


@pytest.mark.parametrize(
    ("config", "environ"),
    [
        (RetryConfig(max_retries=0), {"WSC_MAX_RETRIES": "0"}),
        (RetryConfig(max_retries=10_000), {"WSC_MAX_RETRIES": " 10_000 "}),
        (RetryConfig(base_delay=0.25), {"WSC_BASE_DELAY": ".25"}),
        (RetryConfig(base_delay=1), {"WSC_BASE_DELAY": "1"}),
        (RetryConfig(base_delay=0.001), {"WSC_BASE_DELAY": "1e-3"}),
        (RetryConfig(retryable_errors=("timeout",)), {"WSC_RETRYABLE_ERRORS": "timeout"}),
        (
            RetryConfig(retryable_errors=("timeout", "unknown")),
            {"WSC_RETRYABLE_ERRORS": " timeout , unknown,"},
        ),
        (RetryConfig(retryable_errors=()), {"WSC_RETRYABLE_ERRORS": ","}),
        (RetryConfig(), {"WSC_RETRYABLE_ERRORS": "", "WSC_MAX_RETRIES": "", "WSC_JITTER": "  "}),
        (RetryConfig(base_delay=60, max_delay=90), {"WSC_BASE_DELAY": "60", "WSC_MAX_DELAY": "90"}),
        (ACKConfig(offline_overflow="refuse"), {"WSC_ACK_OFFLINE_OVERFLOW": "refuse"}),
        (HubConfig(overflow="drop_newest"), {"WSC_OVERFLOW": "drop_newest"}),
        (
            HubConfig(allowed_origins=("https://a.example", "*.b.example")),
            {"WSC_ALLOWED_ORIGINS": "https://a.example, *.b.example"},
        ),
        # Not ours, or not this class's.
        (RetryConfig(), {"WSC_MAX_RETRY": "x", "WSC_": "x", "wsc_max_retries": "x", "PATH": "x"}),
        (RetryConfig(), {"WSC_ACK_MAX_RETRIES": "9", "WSC_MAX_ROOMS": "x", "MAX_RETRIES": "9"}),
        (ACKConfig(), {"WSC_MAX_RETRIES": "9", "WSC_TIMEOUT": "x"}),
    ],
)
def test_variables_are_read(config: Settings, environ: dict[str, str]) -> None:
    assert type(config).from_env(environ) == config


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "True", "TRUE", "Yes", "oN", " on "])
def test_what_is_true(text: str) -> None:
    assert RetryConfig.from_env({"WSC_JITTER": text}).jitter is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "False", "FALSE", "No", "oFF"])
def test_what_is_false(text: str) -> None:
    assert HubConfig.from_env({"WSC_CHECK_ORIGIN": text}).check_origin is False


@pytest.mark.parametrize(
    ("cls", "variable", "texts", "expected"),
    [
        (
            RetryConfig,
            "WSC_MAX_RETRIES",
            ("x", "1.0", "1e3", "0x10", "true", "1 2", "9" * 5000),
            "an int from 0 to 1000000",
        ),
        (
            RetryConfig,
            "WSC_BASE_DELAY",
            ("x", "1 s", "1,5", "true"),
            "a positive number of seconds",
        ),
        (RetryConfig, "WSC_BACKOFF_FACTOR", ("x", "2x"), "a number of at least 1"),
        (
            RetryConfig,
            "WSC_JITTER",
            ("x", "2", "t", "y", "truee"),
            "one of true, 1, yes, on, false, 0, no, off",
        ),
        (ACKConfig, "WSC_ACK_TIMEOUT", ("x", "30 s"), "a positive number of seconds"),
        (
            ACKConfig,
            "WSC_ACK_OFFLINE_OVERFLOW",
            ("x", "Refuse", "refuse,drop_oldest"),
            "one of drop_oldest, refuse",
        ),
        (HubConfig, "WSC_MAX_CONNECTIONS", ("x", "1k"), "an int from 1 to 10000000"),
        (HubConfig, "WSC_TRUSTED_PROXIES", ("x", "10.0.0.1/8"), "an IP address or network"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(
    cls: type[Settings], variable: str, texts: tuple[str, ...], expected: str
) -> None:
    for text in texts:
        error = refusal(lambda text=text: cls.from_env({variable: text}))
        assert error.startswith(f"{variable} is ")
        assert error.endswith(f", expected {expected}")
        if len(text) < 100:  # else it is shortened
            assert f" {text!r}," in error


@pytest.mark.parametrize(
    ("variable", "text", "error"),
    [
        ("WSC_MAX_RETRIES", "-1", "is -1, expected an int from 0 to 1000000"),
        ("WSC_BASE_DELAY", "0", "is 0.0, expected a positive number of seconds"),
        ("WSC_BASE_DELAY", "nan", "is nan, expected a positive number of seconds"),
        ("WSC_MAX_DELAY", "inf", "is inf, expected a positive number of seconds"),
        ("WSC_BACKOFF_FACTOR", "0.5", "is 0.5, expected a number of at least 1"),
    ],
)
def test_a_number_out_of_bounds_is_named(variable: str, text: str, error: str) -> None:
    assert refusal(lambda: RetryConfig.from_env({variable: text})) == f"{variable} {error}"


def test_variables_that_do_not_go_together_are_named() -> None:
    environ = {"WSC_MAX_RETRIES": "1", "WSC_BASE_DELAY": "60"}
    assert (
        refusal(lambda: RetryConfig.from_env(environ))
        == "WSC_MAX_RETRIES, WSC_BASE_DELAY: RetryConfig.max_delay is 30.0, "
        "expected at least base_delay (60.0)"
    )
    assert (
        refusal(lambda: HubConfig.from_env({"WSC_HEARTBEAT_INTERVAL": "70"}))
        == "WSC_HEARTBEAT_INTERVAL: HubConfig.heartbeat_timeout is 60.0, "
        "expected more than heartbeat_interval (70.0)"
    )


# From files


@pytest.mark.parametrize("suffix", [*FORMATS, ".JSON", ".Yml"])
@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_can_stand_in_a_file(
    tmp_path: Path, cls: type[Settings], suffix: str
) -> None:
    content = json.loads(json.dumps(msgspec.structs.asdict(cls())))
    own = TABLE[cls]
    for nested in (content, {own: content}, {"wsc": content}, {"wsc": {own: content}}):
        path = written(tmp_path, suffix.lower(), nested).rename(tmp_path / f"wsc{suffix}")
        assert cls.from_file(path) == cls()
        assert cls.from_file(str(path)) == cls()


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_file_serves_all(tmp_path: Path, suffix: str) -> None:
    tables = {
        "hub": {"max_rooms": 5, "overflow": "drop_oldest", "check_origin": False},
        "retry": {"max_retries": 6, "base_delay": 1, "retryable_errors": ["timeout", "unknown"]},
        "ack": {"max_retries": 7, "offline_overflow": "refuse", "enable_offline_messages": True},
    }
    for content in (tables, {"wsc": tables, "database": {"max_retries": "x"}, "debug": True}):
        path = written(tmp_path, suffix, content)
        assert HubConfig.from_file(path) == HubConfig(
            max_rooms=5, overflow="drop_oldest", check_origin=False
        )
        retry = RetryConfig.from_file(path)
        assert retry == RetryConfig(
            max_retries=6, base_delay=1, retryable_errors=("timeout", "unknown")
        )
        assert type(retry.base_delay) is float
        assert ACKConfig.from_file(path) == ACKConfig(
            max_retries=7, offline_overflow="refuse", enable_offline_messages=True
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", ""),
        ("a.yaml", "# max_retries: 5\n"),
        ("a.yaml", "retry:\n  # max_retries: 5\n"),
        ("a.yaml", "wsc:\n"),
        ("a.yaml", "ack:\n  max_retries: 5\n"),
        ("a.toml", ""),
        ("a.toml", "[retry]\n"),
        ("a.json", "{}"),
        ("a.json", '{"wsc": {"retry": null}}'),
        ("a.json", "\ufeff{}"),
    ],
)
def test_a_file_may_leave_everything_out(tmp_path: Path, name: str, text: str) -> None:
    assert RetryConfig.from_file(file_of(tmp_path, name, text)) == RetryConfig()


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path: Path) -> None:
    text = "ack: &ack {max_retries: 4}\nretry:\n  <<: *ack\n  max_retries: 5\n  jitter: on\n"
    path = file_of(tmp_path, "a.yaml", text)
    assert RetryConfig.from_file(path) == RetryConfig(max_retries=5, jitter=True)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("cls", "name", "value", "expected"),
    [
        (RetryConfig, "max_retries", "3", "an int from 0 to 1000000"),
        (RetryConfig, "max_retries", True, "an int from 0 to 1000000"),
        (RetryConfig, "max_retries", 3.0, "an int from 0 to 1000000"),
        (RetryConfig, "max_retries", -1, "an int from 0 to 1000000"),
        (RetryConfig, "max_retries", {"a": 1}, "an int from 0 to 1000000"),
        (RetryConfig, "base_delay", "0.1", "a positive number of seconds"),
        (RetryConfig, "base_delay", True, "a positive number of seconds"),
        (RetryConfig, "base_delay", math.nan, "a positive number of seconds"),
        (RetryConfig, "base_delay", math.inf, "a positive number of seconds"),
        (RetryConfig, "jitter", 1, "True or False"),
        (RetryConfig, "jitter", "true", "True or False"),
        (RetryConfig, "retryable_errors", "timeout", "a tuple or list of non-empty str"),
        (RetryConfig, "retryable_errors", [1], "a tuple or list of non-empty str"),
        (ACKConfig, "offline_overflow", "drop", "one of drop_oldest, refuse"),
        (ACKConfig, "max_pending", 0, f"an int from 1 to {1 << 30}"),
        (HubConfig, "backlog", 0, "an int from 1 to 65536"),
    ],
)
def test_a_wrong_value_in_a_file_is_named(
    tmp_path: Path, suffix: str, cls: type[Settings], name: str, value: Any, expected: str
) -> None:
    own = TABLE[cls]
    for content, place in (
        ({name: value}, ""),
        ({own: {name: value}}, f"{own}."),
        ({"wsc": {own: {name: value}}}, f"wsc.{own}."),
    ):
        path = written(tmp_path, suffix, content)
        error = f"{path}: {place}{name} is {value!r}, expected {expected}"
        assert refusal(lambda path=path: cls.from_file(path)) == error


DURATIONS = [
    ("100ms", 0.1),
    ("1.5s", 1.5),
    ("2m", 120.0),
    ("1h30m", 5_400.0),
    ("2m0.5s", 120.5),
    ("500us", 0.0005),
    ("500µs", 0.0005),
    ("1000000ns", 0.001),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_durations_as_text(tmp_path: Path, suffix: str, text: str, seconds: float) -> None:
    path = written(tmp_path, suffix, {"max_delay": "10h", "base_delay": text})
    expected = RetryConfig(max_delay=36_000, base_delay=seconds)
    assert RetryConfig.from_file(path) == expected
    assert RetryConfig.from_env({"WSC_MAX_DELAY": "10h", "WSC_BASE_DELAY": text}) == expected
    path = written(tmp_path, suffix, {"hub": {"drain_period": text}, "ack": {"timeout": text}})
    assert HubConfig.from_file(path).drain_period == pytest.approx(seconds)
    assert ACKConfig.from_file(path).timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["100 ms", "ms", "-1s", "1e3s", "1.s", ".5s", "1d", "5S", "s1"])
def test_a_text_that_is_no_duration_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, ".json", {"base_delay": text})
    expected = f"is {text!r}, expected a positive number of seconds"
    assert refusal(lambda: RetryConfig.from_file(path)) == f"{path}: base_delay {expected}"
    assert (
        refusal(lambda: RetryConfig.from_env({"WSC_BASE_DELAY": text}))
        == f"WSC_BASE_DELAY {expected}"
    )


@pytest.mark.parametrize("name", ["backoff_factor", "message_rate", "max_retries", "jitter"])
def test_a_text_that_is_no_time_is_no_duration(name: str) -> None:
    cls = HubConfig if name == "message_rate" else RetryConfig
    refusal(lambda: cls.from_env({f"WSC_{name.upper()}": "5s"}))


def test_no_duration_in_code() -> None:
    assert "'100ms'" in refusal(lambda: RetryConfig(base_delay="100ms"))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("nested", [False, True])
def test_settings_of_hub_and_retries_side_by_side(
    tmp_path: Path, suffix: str, nested: bool
) -> None:
    content: dict[str, Any] = {
        "max_connections": 10_000,
        "handshake_timeout": "10s",
        "read_buffer_size": 1024,
        "max_retries": 3,
        "base_delay": "100ms",
        "backoff_factor": 2.0,
        "retryable_errors": ["queue_full", "timeout", "network"],
        "non_retryable_errors": ["user_offline", "invalid_token"],
    }
    path = written(tmp_path, suffix, {"wsc": content} if nested else content)
    assert HubConfig.from_file(path) == HubConfig(max_connections=10_000, read_buffer_size=2048)
    assert RetryConfig.from_file(path) == RetryConfig(
        retryable_errors=("queue_full", "timeout", "network"),
        non_retryable_errors=("user_offline", "invalid_token"),
    )
    # A key of neither is a mistake in both, and ACKConfig shares with nobody.
    content["max_retrys"] = 3
    path = written(tmp_path, suffix, {"wsc": content} if nested else content)
    for cls in (HubConfig, RetryConfig):
        assert "max_retrys (3) is no setting" in refusal(lambda cls=cls: cls.from_file(path))
    del content["max_retrys"]
    path = written(tmp_path, suffix, {"wsc": content} if nested else content)
    assert "is no setting of ACKConfig" in refusal(lambda: ACKConfig.from_file(path))
    # In tables each has its place.
    path = written(tmp_path, suffix, {"hub": {"max_retries": 3}})
    assert "max_retries (3) is no setting of HubConfig" in refusal(
        lambda: HubConfig.from_file(path)
    )


def test_no_setting_of_a_hub_is_one_of_retries() -> None:
    assert not set(HubConfig.__struct_fields__) & set(RetryConfig.__struct_fields__)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_unknown_key_is_named(tmp_path: Path, suffix: str) -> None:
    allowed = f"expected one of {', '.join(ACKConfig.__struct_fields__)}"
    unknown = "(5) is no setting of ACKConfig"
    for content, place in (
        ({"retries": 5}, "retries"),
        ({"ack": {"retries": 5}}, "ack.retries"),
        ({"wsc": {"ack": {"retries": 5}}}, "wsc.ack.retries"),
        ({"backlog": 5}, "backlog"),
        ({"_table": 5}, "_table"),
    ):
        path = written(tmp_path, suffix, content)
        error = refusal(lambda path=path: ACKConfig.from_file(path))
        assert error == f"{path}: {place} {unknown}, {allowed}"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"rety": {"jitter": True}, "ack": {}}, "rety ({'jitter': True}) stands beside tables"),
        ({"max_retries": 5, "retry": {}}, "max_retries (5) stands beside tables"),
        ({"wsc": {"jitter": True, "hub": {}}}, "wsc.jitter (True) stands beside tables"),
        ({"wsc": {}, "retry": {"jitter": True}}, "retry stands beside wsc, expected in it"),
        ({"retry": 5}, "retry is 5, expected a table of settings"),
        ({"retry": [5]}, "retry is [5], expected a table of settings"),
        ({"wsc": "x"}, "wsc is 'x', expected a table of settings"),
        ({"wsc": {"retry": "x"}}, "wsc.retry is 'x', expected a table of settings"),
    ],
)
def test_a_setting_in_the_wrong_place_is_named(
    tmp_path: Path, suffix: str, content: dict[str, Any], error: str
) -> None:
    path = written(tmp_path, suffix, content)
    text = refusal(lambda: RetryConfig.from_file(path))
    assert text.startswith(f"{path}: {error}")
    if "beside tables" in error:
        assert text.endswith("expected one of hub, retry, ack")


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.yaml", "jitter: on\njitter: off\n", "the key 'jitter' is there twice"),
        ("a.yaml", "retry: {}\nretry: {}\n", "the key 'retry' is there twice"),
        ("a.yaml", "ack:\n  timeout: 1\n  timeout: 1\n", "the key 'timeout' is there twice"),
        ("a.yaml", "jitter: [", "line 1"),
        ("a.yaml", "jitter: on\n---\njitter: off\n", "single document"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "constructor"),
        ("a.yaml", "max_retries: 2024-99-99", "month must be in 1..12"),
        ("a.yaml", "? [a]\n: 1", "unhashable key"),
        ("a.yaml", "[" * 5_000, "recursion"),
        ("a.toml", "jitter = true\njitter = true\n", "Cannot overwrite a value"),
        ("a.toml", "[retry]\n[retry]\n", "twice"),
        ("a.toml", "jitter = yes", "line 1"),
        ("a.toml", "a = " + "[" * 5_000, "recursion"),
        ("a.json", '{"jitter": true, "jitter": true}', "the key 'jitter' is there twice"),
        ("a.json", '{"retry": {}, "retry": {}}', "the key 'retry' is there twice"),
        ("a.json", "", "line 1"),
        ("a.json", "{'jitter': true}", "line 1"),
        ("a.json", "[" * 200_000, "recursion"),
        ("a.json", f'{{"max_retries": {"9" * 5_000}}}', "digit"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str, error: str
) -> None:
    path = file_of(tmp_path, name, text)
    refused = refusal(lambda: RetryConfig.from_file(path))
    assert refused.startswith(f"{path} cannot be read: ")
    assert error in refused


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.yaml", "just text", "is 'just text', expected a table of settings"),
        ("a.yaml", "- max_retries", "is ['max_retries'], expected a table of settings"),
        ("a.json", "5", "is 5, expected a table of settings"),
        ("a.json", "[]", "is [], expected a table of settings"),
        ("a.yaml", "max_retries:", "max_retries is None, expected an int"),
        ("a.yaml", "base_delay: 1e3", "base_delay is '1e3', expected a positive number"),
        ("a.yaml", "1: 5", "1 (5) is no setting of RetryConfig"),
        ("a.yaml", "max_retries: &a [*a]", "max_retries is [["),
        ("a.yaml", f"max_retries: 0x{'f' * 6_000}", "max_retries is a huge int"),
        ("a.toml", f"max_retries = 0x{'f' * 6_000}", "max_retries is a huge int"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, name: str, text: str, error: str) -> None:
    path = file_of(tmp_path, name, text)
    refused = refusal(lambda: RetryConfig.from_file(path))
    assert refused.startswith(f"{path}")
    assert error in refused


def test_values_that_do_not_go_together_in_a_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.toml", "base_delay = 60")
    assert (
        refusal(lambda: RetryConfig.from_file(path))
        == f"{path}: RetryConfig.max_delay is 30.0, expected at least base_delay (60.0)"
    )


@pytest.mark.parametrize("name", ["a.ini", "a", "yaml", ".yaml", "a.yaml.bak"])
def test_the_suffix_tells_the_format(tmp_path: Path, name: str) -> None:
    path = file_of(tmp_path, name, "")
    assert (
        refusal(lambda: RetryConfig.from_file(path))
        == f"{path} is no settings file, expected one of .yaml, .yml, .toml, .json"
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for _ in range(2):
        refused = refusal(lambda: RetryConfig.from_file(path))
        assert refused.startswith(f"{path} cannot be read: ")
        path.mkdir(exist_ok=True)  # the second time it is a folder
    path.rmdir()
    path.write_bytes(b"\xff\xfe\xff")
    assert "utf-8" in refusal(lambda: RetryConfig.from_file(path))
    assert "null byte" in refusal(lambda: RetryConfig.from_file(f"a\0{suffix}"))


def test_yaml_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = file_of(tmp_path, "a.yaml", "max_retries: 5")
    assert (
        refusal(lambda: RetryConfig.from_file(path))
        == f"{path} needs PyYAML: pip install 'wsc_fast[yaml]'"
    )
    path = file_of(tmp_path, "a.toml", "max_retries = 5")
    assert RetryConfig.from_file(path).max_retries == 5
