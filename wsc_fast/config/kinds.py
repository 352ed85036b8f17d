"""The kinds of settings: their values, with bounds, texts and errors.

A setting is declared once, as a field of its class: the annotation has its kind and its bounds
(`Annotated[int, Meta(ge=1, le=100), LIVE]`), and all checks are made from that.
"""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wsc_fast.addresses import is_origin_entry, parse_host, parse_network
from wsc_fast.errors import ConfigError, shown

# The longest time that a thread can wait, 292 years on Linux: a longer one is cut to it.
FOREVER = threading.TIMEOUT_MAX
# A token (RFC 9110 section 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch

# A part of the name of a hub, which keys on the bus, ids of clients and log lines hold.
_LABEL = re.compile(r"[0-9A-Za-z_-]{0,63}").fullmatch

# As Go writes durations: "100ms", "1.5s", "2m", "1h30m".
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(_UNITS)})")
_DURATION = re.compile(rf"(?:{_PART.pattern})+").fullmatch

_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def _passing(passes: Callable[[str], object], allowed: str) -> Meta:
    """Of a text, or of each item of a tuple: it passes this, and else the error says that."""
    return Meta(extra={"passes": passes, "allowed": allowed})


# A running hub reads it at each use, so that `set_config` may change it.
LIVE = Meta(extra={"live": True})

Seconds = Annotated[float, Meta(gt=0, extra={"seconds": True})]
SecondsFromZero = Annotated[float, Meta(ge=0, extra={"seconds": True})]
Rate = Annotated[float, Meta(ge=0)]
Factor = Annotated[float, Meta(ge=1)]
Names = tuple[str, ...]
Label = Annotated[str, _passing(_LABEL, "at most 63 of the characters A-Z, a-z, 0-9, - and _")]
Tokens = Annotated[Names, _passing(_TOKEN, "a token (RFC 9110 section 5.6.2)")]
Networks = Annotated[Names, _passing(parse_network, "an IP address or network")]
Hosts = Annotated[Names, _passing(parse_host, "'host[:port]'")]
Origins = Annotated[
    Names,
    _passing(
        is_origin_entry,
        "'https://host[:port]', 'host[:port]', '*.host', 'null', '*', or the origin of an app, "
        "such as 'capacitor://localhost'",
    ),
]


class Kind:
    """The values that one setting may have.

    Attributes:
        type: as msgspec describes it, with its bounds.
        words: texts that stand beside the type.
        live: whether `set_config` may change it while the hub runs.
        is_seconds: whether it is a time, of which a text may say the unit.
    """

    def __init__(self, declared: msgspec.inspect.Type) -> None:
        extra: dict[str, Any] = {}
        if isinstance(declared, msgspec.inspect.Metadata):
            extra = declared.extra or {}
            declared = declared.type
        self.words: tuple[Any, ...] = ()
        if isinstance(declared, msgspec.inspect.UnionType):
            words, declared = sorted(
                declared.types, key=lambda each: not isinstance(each, msgspec.inspect.LiteralType)
            )
            assert isinstance(words, msgspec.inspect.LiteralType)
            self.words = words.values
        self.type = declared
        self.live: bool = bool(extra.get("live"))
        self.is_seconds: bool = bool(extra.get("seconds"))
        self._passes: Callable[[str], object] = extra.get("passes", bool)
        self._allowed: str = extra.get("allowed", "")

    def checked(self, called: str, value: Any) -> Any:
        """The value as the setting keeps it.

        Raises:
            ConfigError: it cannot work; the text names it by `called`, and says what is allowed.
        """
        kind = self.type
        if isinstance(value, str) and value in self.words:
            return value
        match kind:
            case msgspec.inspect.IntType(ge=low, le=high):
                assert low is not None
                assert high is not None
                if type(value) is not int or not low <= value <= high:
                    either = "".join(f"{word!r} or " for word in self.words)
                    raise wrong(called, value, f"{either}an int from {low} to {high}")
            case msgspec.inspect.FloatType():
                return self._checked_number(called, value, kind)
            case msgspec.inspect.BoolType():
                if type(value) is not bool:
                    raise wrong(called, value, "True or False")
            case msgspec.inspect.LiteralType(values=choices):
                if value not in choices:
                    raise wrong(called, value, f"one of {', '.join(map(str, choices))}")
            case msgspec.inspect.StrType():
                if type(value) is not str or not self._passes(value):
                    raise wrong(called, value, self._allowed)
            case _:
                return self._checked_passing(called, value)
        return value

    def _checked_number(self, called: str, value: Any, kind: msgspec.inspect.FloatType) -> float:
        number = type(value) in (int, float) and value <= sys.float_info.max
        fits = number and (value >= kind.ge if kind.ge is not None else value > 0)
        if not self.is_seconds:
            if not fits:
                raise wrong(called, value, f"a number of at least {kind.ge}")
            return float(value)
        if not fits:
            from_zero = kind.ge is not None
            expected = "seconds, 0 or more" if from_zero else "a positive number of seconds"
            raise wrong(called, value, expected)
        return float(min(value, FOREVER))

    def _checked_passing(self, called: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (tuple, list)) or not all(
            isinstance(item, str) and item for item in value
        ):
            raise wrong(called, value, "a tuple or list of non-empty str")
        for item in value:
            if not self._passes(item):
                raise wrong(called, item, self._allowed)
        return tuple(map(str, value))

    def parsed(self, called: str, text: str) -> Any:
        """The value that the text of an environment variable stands for, to be checked."""
        if text in self.words:
            return text
        match self.type:
            case msgspec.inspect.BoolType():
                if text.lower() not in _BOOLEANS:
                    raise wrong(called, text, f"one of {', '.join(_BOOLEANS)}")
                return _BOOLEANS[text.lower()]
            case msgspec.inspect.VarTupleType():
                return tuple(item.strip() for item in text.split(",") if item.strip())
            case msgspec.inspect.IntType() | msgspec.inspect.FloatType() as kind:
                make = int if isinstance(kind, msgspec.inspect.IntType) else float
                try:
                    return make(text)
                except ValueError:
                    return self.in_seconds(text)
        return text

    def in_seconds(self, value: Any) -> Any:
        """The seconds of a duration in text, where there may be one; any other value as it is."""
        if not self.is_seconds or not isinstance(value, str) or not _DURATION(value):
            return value  # then the check refuses a text
        return math.fsum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


@cache
def kinds_of(cls: type[msgspec.Struct]) -> dict[str, Kind]:
    """The settings of a class, and what each may be."""
    declared = msgspec.inspect.type_info(cls)
    assert isinstance(declared, msgspec.inspect.StructType)
    return {field.name: Kind(field.type) for field in declared.fields}


def wrong(called: str, value: Any, expected: str) -> ConfigError:
    """The error for a value that cannot work."""
    return ConfigError(f"{called} is {shown(value)}, expected {expected}")
