"""`wsc-fast top URL`: a hub at work, from its metrics."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsc_fast.cli import options
from wsc_fast.cli.output import (
    Failure,
    UsageFailure,
    console,
    harmless,
    reason_of,
    unwrapped,
    write_json,
)

if TYPE_CHECKING:
    import ssl
    from urllib.request import BaseHandler

    from rich.console import RenderableType
    from rich.table import Table

    from wsc_fast.cli.exposition import Metrics

_TIMEOUT = 5.0
_MOST_BYTES = 1 << 24
# Hints, by the status of an answer.
_HINTS = {
    401: " (--token or --header shows who you are)",
    404: " (hub.enable_metrics() serves the metrics)",
}
_PERCENTILES = (50, 90, 99)

_GAUGES = {
    "clients": "wsc_connected_clients",
    "connections": "wsc_open_connections",
    "rooms": "wsc_rooms",
    "queued_messages": "wsc_queued_messages",
    "queued_bytes": "wsc_queued_bytes",
    "acks_pending": "wsc_acks_pending",
}
_RATES = {
    "connections": "wsc_connections_total",
    "messages_in": "wsc_messages_received_total",
    "bytes_in": "wsc_received_bytes_total",
    "messages_out": "wsc_messages_sent_total",
    "bytes_out": "wsc_sent_bytes_total",
    "deliveries": "wsc_deliveries_total",
    "conflated": "wsc_conflated_messages_total",
    "drops": "wsc_dropped_messages_total",
    "refusals": "wsc_refusals_total",
    "closes": "wsc_closes_total",
}
_TOTALS = {
    "slow_consumers": "wsc_slow_consumer_disconnects_total",
    "callback_errors": "wsc_callback_errors_total",
    "protocol_errors": "wsc_protocol_errors_total",
    "heartbeat_timeouts": "wsc_heartbeat_timeouts_total",
    "store_errors": "wsc_store_errors_total",
}
_BY_REASON = {
    "refusals": "wsc_refusals_total",
    "drops": "wsc_dropped_messages_total",
    "closes": "wsc_closes_total",
    "limits": "wsc_limit_hits_total",
    "acks": "wsc_acks_total",
}
_TIMES = {
    "flush": "wsc_flush_seconds",
    "flush_send": "wsc_flush_send_seconds",
    "loop_lag": "wsc_loop_lag_seconds",
    "ack": "wsc_ack_latency_seconds",
    "store": "wsc_store_latency_seconds",
    "heartbeat": "wsc_heartbeat_round_trip_seconds",
}

_EPILOG = unwrapped(
    """
    The hub has to serve its metrics: hub.enable_metrics("/metrics"). Percentiles are of the time
    since the picture before.

    Examples:

    wsc-fast top localhost:8080

    wsc-fast top https://example.org/metrics --token $TOKEN --once --json

    Exit codes: 0 shown; 1 the metrics cannot be read at the start; 2 wrong usage; 130 Ctrl-C.
    """
)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command(epilog=_EPILOG)(top)


def top(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="Of the metrics; without a path, /metrics is meant."),
    ],
    interval: Annotated[
        float,
        typer.Option("--interval", "-i", min=0.1, max=86_400, help="Seconds between two looks."),
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Two looks, one picture, and the end.")
    ] = False,
    header: options.HEADERS = None,
    token: options.TOKEN = None,
    insecure: options.INSECURE = False,
    cafile: Annotated[
        Path | None, typer.Option(help="Authorities (PEM) to trust instead of the system's.")
    ] = None,
    as_json: options.AS_JSON = False,
) -> None:
    """Shows a hub at work: clients, rates, refusals, drops, and how long things take."""
    endpoint = _Endpoint(
        _checked_url(url), options.fields_of(header, token), options.tls_context(insecure, cafile)
    )
    before = endpoint.read()
    if once or as_json or not console().is_terminal:
        while True:
            time.sleep(interval)
            now = endpoint.read()
            view = view_of(before, now)
            if as_json:
                write_json({"url": endpoint.url, **view})
            else:
                console().print(picture_of(endpoint.url, view))
            if once:
                return
            before = now
    _watch(endpoint, before, interval)


def _watch(endpoint: _Endpoint, before: Metrics, interval: float) -> None:
    from rich.live import Live

    view = view_of(None, before)
    with Live(
        picture_of(endpoint.url, view), console=console(), screen=True, auto_refresh=False
    ) as picture:
        picture.refresh()
        while True:
            time.sleep(interval)
            trouble = ""
            try:
                now = endpoint.read()
            except Failure as failure:
                trouble = str(failure)
            else:
                before, view = now, view_of(before, now)
            picture.update(picture_of(endpoint.url, view, trouble), refresh=True)


# --- reading ---


def _checked_url(url: str) -> str:
    from urllib.parse import urlsplit, urlunsplit

    if "://" not in url:
        url = f"http://{url}"
    scheme, _, rest = url.partition("://")
    url = f"{ {'ws': 'http', 'wss': 'https'}.get(scheme.lower(), scheme.lower()) }://{rest}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageFailure(f"{url} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise UsageFailure(f"{url} is no URL of metrics, expected http://host:port/metrics")
    path = parts.path if parts.path not in ("", "/") else "/metrics"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class _Endpoint:
    """The metrics of a hub."""

    def __init__(self, url: str, fields: list[tuple[str, str]], context: ssl.SSLContext) -> None:
        self.url = url
        self._fields, self._context = fields, context

    def read(self) -> Metrics:
        """The metrics of now.

        Raises:
            Failure: there are none.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import HTTPSHandler, Request, build_opener

        from wsc_fast.cli.exposition import Metrics

        request = Request(self.url, headers=dict(self._fields))
        try:
            # Nothing is followed elsewhere, since the token would go there too.
            opener = build_opener(HTTPSHandler(context=self._context), _no_redirects())
            with opener.open(request, timeout=_TIMEOUT) as answer:
                text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
            found = Metrics(text, time.monotonic())
        except HTTPError as error:
            error.close()
            hint = _HINTS.get(error.code, "")
            raise Failure(f"{self.url} answers {error.code} {error.reason}{hint}") from None
        except URLError as error:
            reason = error.reason
            said = reason_of(reason) if isinstance(reason, Exception) else reason
            raise Failure(f"{self.url} cannot be reached: {said}") from None
        except (OSError, HTTPException) as error:
            raise Failure(f"{self.url} cannot be read: {reason_of(error)}") from None
        except ValueError:
            raise Failure(f"{self.url} serves no metrics, but something else") from None
        if not found.has("wsc_"):
            raise Failure(f"{self.url} has no metrics of a hub (wsc_...)")
        return found


def _no_redirects() -> BaseHandler:
    from urllib.request import HTTPRedirectHandler

    class NoRedirects(HTTPRedirectHandler):
        def redirect_request(self, *args: Any) -> None:
            return None

    return NoRedirects()


# --- the view ---


def view_of(before: Metrics | None, now: Metrics) -> dict[str, Any]:
    """The figures that are shown, as --json has them; times in milliseconds."""
    from wsc_fast.cli.exposition import Change

    change = Change(before, now)
    return {
        "uptime_seconds": now.longest("wsc_uptime_seconds"),
        "now": {name: int(now.value(metric)) for name, metric in _GAUGES.items()},
        "per_second": {name: round(change.rate(metric), 2) for name, metric in _RATES.items()},
        "totals": {name: int(now.value(metric)) for name, metric in _TOTALS.items()},
        "by_reason": {
            name: {reason: int(count) for reason, count in now.by_label(metric).items()}
            for name, metric in _BY_REASON.items()
        },
        "latency_ms": {
            name: {
                f"p{percent}": _milliseconds(change.percentile(metric, percent))
                for percent in _PERCENTILES
            }
            for name, metric in _TIMES.items()
        },
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1_000, 3)


def picture_of(url: str, view: dict[str, Any], trouble: str = "") -> RenderableType:
    """The view as it is shown in a terminal."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    uptime = timedelta(seconds=int(view["uptime_seconds"]))
    head = Text.assemble((harmless(url), "bold"), f"  up {uptime}  ")
    if trouble:
        head.append(harmless(trouble), "red")
    tables = [_numbers("now", view["now"]), _numbers("a second", view["per_second"])]
    times = _times(view["latency_ms"])
    reasons = [
        _numbers(name, {reason: n for reason, n in counts.items() if n}, _style(name))
        for name, counts in view["by_reason"].items()
        if any(counts.values())
    ]
    totals = _numbers("trouble", view["totals"], "yellow")
    wide = (0, 4)
    return Group(
        head,
        "",
        Columns([*tables, times], padding=wide),
        "",
        Columns([totals, *reasons], padding=wide),
    )


def _style(name: str) -> str:
    return "yellow" if name in ("refusals", "drops", "limits") else ""


def _numbers(title: str, numbers: dict[str, float], style: str = "") -> Table:
    from rich.text import Text

    table = _empty(title)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, number in numbers.items():
        shown = _short(number) if "bytes" in name else f"{number:,.0f}"
        cells = Text(harmless(name.replace("_", " "))), Text(shown, style if number else "dim")
        table.add_row(*cells)
    return table


def _times(times: dict[str, dict[str, float | None]]) -> Table:
    table = _empty("milliseconds")
    table.show_header = True
    table.add_column("")
    for percent in _PERCENTILES:
        table.add_column(f"p{percent}", justify="right")
    for name, figures in times.items():
        cells = ("-" if each is None else f"{each:,.2f}" for each in figures.values())
        table.add_row(name.replace("_", " "), *cells)
    return table


def _empty(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_header=False,
        pad_edge=False,
        show_edge=False,
    )


def _short(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1_000 or unit == "GB":
            break
        number /= 1_000
    return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
