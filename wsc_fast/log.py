"""The package's logger, which cannot raise, and cannot flood.

An exception of the application's handler or filter would otherwise end a connection, or keep a
callback from being called. A peer can cause an event a thousand times a second, such as a refused
upgrade. So of each kind of line there is one in a PERIOD. Lines of level INFO, which tell of the
life of a hub, and lines about actions of operators are not bounded. Lines of one text may be told
apart by a reason, so that a crowd that has one reason hides no other one.

The next line of a kind tells how many were left out before it. Where none follows, `tell_counts`
does, which the heartbeat of each hub calls, and its stop.

Each line has fields for structured logging (`extra`): `event` says which line it is, and the others
are of client_id, user_id, address, room, reason, setting, error, suppressed, and numbers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol

# Seconds in which each kind has one line.
PERIOD = 1.0
# The form of a line of text.
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Kinds that are remembered; more than that are of a text that somebody else makes up.
_MOST_KINDS = 1_000
# Reasons of one kind that have a line each in a PERIOD: somebody else may make them up.
_MOST_REASONS = 10
# Characters of a text that a peer has sent that go into a line.
_MOST_SHOWN = 200

Fields = Mapping[str, object]


class _Kind:
    """The lines of one kind.

    Attributes:
        level: of its lines.
        said_at: when one was written last.
        said: that line.
        left_out: how many were left out since then.
    """

    __slots__ = ("fields", "left_out", "level", "said", "said_at")

    def __init__(self, level: int) -> None:
        self.level = level
        self.said_at = 0.0
        self.said = ""
        self.fields: dict[str, object] = {}
        self.left_out = 0


class SafeLogger:
    """The standard logger of a name; its failures go to standard error, as logging's own do.

    Each method takes `extra`: fields of the record, beside its text. None of their names may be an
    attribute of every record, such as `name` or `message`. A line's kind is its text before the
    arguments, or `kind` where that is given, and its `reason`.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._kinds: dict[str, _Kind] = {}
        # Of each kind that has reasons: those of this period, and since when it lasts.
        self._reasons: dict[str, tuple[float, set[str]]] = {}

    def debugs(self) -> bool:
        """Whether DEBUG lines are wanted: for callers that would make their fields for nothing."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, text: str, *arguments: Any, extra: Fields | None = None) -> None:
        self._log(logging.DEBUG, text, arguments, extra)

    def info(self, text: str, *arguments: Any, extra: Fields | None = None) -> None:
        self._log(logging.INFO, text, arguments, extra)

    def warning(
        self,
        text: str,
        *arguments: Any,
        extra: Fields | None = None,
        kind: str | None = None,
        reason: str = "",
    ) -> None:
        self._log(logging.WARNING, text, arguments, extra, kind=kind, reason=reason)

    def audit(self, text: str, *arguments: Any, extra: Fields | None = None) -> None:
        """Writes what an operator has done: a WARNING of which none is left out.

        Its caller bounds how often that happens.
        """
        self._log(logging.WARNING, text, arguments, extra, bounded=False)

    def error(
        self,
        text: str,
        *arguments: Any,
        exc_info: BaseException | None = None,
        extra: Fields | None = None,
        kind: str | None = None,
        reason: str = "",
    ) -> None:
        self._log(logging.ERROR, text, arguments, extra, error=exc_info, kind=kind, reason=reason)

    def exception(self, text: str, *arguments: Any, extra: Fields | None = None) -> None:
        self._log(logging.ERROR, text, arguments, extra, error=sys.exc_info()[1])

    def tell_counts(self, *, at_once: bool = False) -> None:
        """Writes for each kind how many lines were left out, where no line of it has told.

        Args:
            at_once: also of the kinds of which a line may still follow. All kinds are then new.
        """
        try:
            now = monotonic()
            for name, kind in list(self._kinds.items()):
                # A flood's next line has come within two periods.
                if kind.left_out and (at_once or now - kind.said_at >= 2 * PERIOD):
                    self._tell_count(kind, now)
                elif now - kind.said_at >= 2 * PERIOD:
                    self._kinds.pop(name, None)
            if at_once:
                self._kinds.clear()
                self._reasons.clear()
        except Exception as failure:
            _say_failure(failure)

    def _tell_count(self, kind: _Kind, now: float) -> None:
        left_out, seconds = kind.left_out, now - kind.said_at
        kind.left_out, kind.said_at = 0, now
        self._logger.log(
            kind.level,
            "%d more in the last %.1f s like: %s",
            left_out,
            seconds,
            kind.said,
            extra={**kind.fields, "suppressed": left_out},
        )

    def _log(
        self,
        level: int,
        text: str,
        arguments: tuple[Any, ...],
        extra: Fields | None,
        *,
        error: BaseException | None = None,
        kind: str | None = None,
        reason: str = "",
        bounded: bool = True,
    ) -> None:
        try:
            if not self._logger.isEnabledFor(level):
                return
            fields = dict(extra) if extra else {}
            if bounded and level != logging.INFO:
                now = monotonic()
                name = kind or text
                if reason:
                    name = self._with_reason(name, reason, now)
                known = self._kinds.get(name)
                if known is None:
                    known = self._new_kind(name, level)
                elif now - known.said_at < PERIOD:
                    known.left_out += 1
                    return
                left_out, seconds = known.left_out, now - known.said_at
                known.left_out, known.said_at = 0, now
                known.said, known.fields = text % arguments if arguments else text, fields
                if left_out:
                    fields = {**fields, "suppressed": left_out}
                    text += " (%d more in the last %.1f s)"
                    arguments += (left_out, seconds)
            self._logger.log(level, text, *arguments, exc_info=error, extra=fields, stacklevel=3)
        except Exception as failure:
            _say_failure(failure)

    def _with_reason(self, name: str, reason: str, now: float) -> str:
        """The kind of the lines that have this reason; many reasons in a period share one."""
        since, reasons = self._reasons.get(name, (-PERIOD, set()))
        if now - since >= PERIOD:
            reasons = set()
            self._reasons[name] = now, reasons
        if reason not in reasons:
            if len(reasons) >= _MOST_REASONS:
                return name
            reasons.add(reason)
        return f"{name}: {reason}"

    def _new_kind(self, name: str, level: int) -> _Kind:
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.pop(next(iter(self._kinds)), None)
        kind = self._kinds[name] = _Kind(level)
        return kind


def _say_failure(failure: Exception) -> None:
    if logging.raiseExceptions and sys.stderr is not None:
        print(f"wsc_fast: logging raised {failure!r}", file=sys.stderr)


class _Client(Protocol):
    """The attributes of a client that a line tells."""

    @property
    def id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def remote_address(self) -> str: ...


def about(client: _Client | None, event: str, **fields: object) -> dict[str, object]:
    """The fields of a line about a client.

    Args:
        client: None where nobody knows which.
        event: which line it is.
        **fields: others.
    """
    if client is None:
        return {"event": event, **fields}
    return {
        "event": event,
        "client_id": client.id,
        "user_id": client.user_id,
        "address": client.remote_address,
        **fields,
    }


def formatter(as_json: bool) -> logging.Formatter:
    """The form of the lines that the package writes itself, as `HubConfig.log_format` says."""
    if as_json:
        from wsc_fast.observe.json_log import JsonFormatter

        return JsonFormatter()
    return logging.Formatter(TEXT_FORMAT)


def quoted(text: str) -> str:
    """A text that a peer has sent, for a line: escaped, and cut."""
    return ascii(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


log: SafeLogger = SafeLogger("wsc_fast")
