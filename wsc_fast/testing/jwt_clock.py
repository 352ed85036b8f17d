"""PyJWT's clock, moved with the hub's: it reads the machine's by `datetime.now`."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

import wsc_fast._core.clock as clock


class _LikeDatetime(type):
    # PyJWT asks whether a claim is a datetime: all are, as before.
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class MovedDatetime(datetime, metaclass=_LikeDatetime):
    """datetime, whose `now` is the hub's."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """The time by the hub's wall clock."""
        return datetime.now(tz) + timedelta(seconds=clock.moved_by())


def move() -> None:
    """Has PyJWT read the hub's clock, if it is installed."""
    _set(MovedDatetime)


def give_back() -> None:
    """Has PyJWT read the machine's clock."""
    _set(datetime)


def _set(kind: type[datetime]) -> None:
    try:
        from jwt import api_jwt
    except ImportError:
        return
    api_jwt.datetime = kind  # type: ignore[attr-defined]
