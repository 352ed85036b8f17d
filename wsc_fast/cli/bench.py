"""`wsc-fast bench URL`: a load on a running hub, and what came of it."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsc_fast.cli import options
from wsc_fast.cli.output import Failure, UsageFailure, console, say, unwrapped, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from wsc_fast.cli.load import Counts, Load

_PERCENTILES = (50, 90, 99, 99.9)
# Seconds between two pictures on a terminal.
_REFRESH = 1.0
# Messages a second of `broadcast` where nothing is said.
_BROADCAST_RATE = 10.0
# Beyond this the generator itself may be what is slow.
_AT_ITS_LIMIT = 0.9

_EPILOG = unwrapped(
    """
    echo: each client sends, and measures until its own message is back. Without --rate it sends
    the next one at once, so that one message a client is under way.

    broadcast: one client sends, and all measure when it reaches them; the hub has to pass it on
    to all.

    listen: the clients send nothing, and count what the hub sends.

    Latency begins when a message was due, so that a hub that falls behind is not flattered. One
    process makes the load: where it says that it is at its limit, start several.

    Examples:

    wsc-fast bench ws://localhost:8080/ws --clients 500

    wsc-fast bench localhost:8080/ws --mode broadcast --clients 2000 --rate 20 --size 512 --json

    Exit codes: 0 every client connected and stayed, and messages came; 1 otherwise; 2 wrong
    usage; 130 Ctrl-C, with the figures so far.
    """
)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command(epilog=_EPILOG)(bench)


def bench(
    url: options.URL,
    mode: Annotated[
        Literal["echo", "broadcast", "listen"],
        typer.Option(help="The work of the clients; see below."),
    ] = "echo",
    clients: Annotated[
        int, typer.Option("--clients", "-c", min=1, max=100_000, help="Connections at once.")
    ] = 100,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", "-r", min=0.001, max=1e7, help="Messages a second, of all together."
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--size", "-s", min=42, max=1 << 24, help="Bytes of a message.")
    ] = 128,
    duration: Annotated[
        float, typer.Option("--duration", "-d", min=0.1, max=1e7, help="Seconds to measure.")
    ] = 10.0,
    header: options.HEADERS = None,
    token: options.TOKEN = None,
    origin: options.ORIGIN = None,
    subprotocol: options.SUBPROTOCOL = None,
    insecure: options.INSECURE = False,
    cafile: options.CAFILE = None,
    as_json: options.AS_JSON = False,
) -> None:
    """Measures a running hub under load: messages a second, and how long they take."""
    import uvloop

    from wsc_fast.cli.load import Load

    if mode == "listen" and rate is not None:
        raise UsageFailure("--rate has no use with --mode listen, which sends nothing")
    if rate is None:
        rate = _BROADCAST_RATE if mode == "broadcast" else 0.0
    peer = options.peer_of(url, header, token, origin, subprotocol, insecure, cafile)
    load = Load(peer, mode, clients, rate, size, duration)
    _allow_files(clients)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_watched(load, live=not as_json))
    finally:
        summary = summary_of(load, peer.url)
        if as_json:
            write_json(summary)
        else:
            _print(load, summary)
    if load.errors or not _has_measured(load):
        raise Failure(_fault(load))


def _has_measured(load: Load) -> bool:
    # A hub may send messages of its own, which tell nothing of how long those of the load take.
    return bool(load.total.received if load.mode == "listen" else load.total.latency.count)


def _fault(load: Load) -> str:
    if load.errors:
        return f"{load.errors.total()} of {load.clients} clients failed"
    if load.mode == "listen":
        return "no message came"
    answer = "answers each" if load.mode == "echo" else "passes each on to all clients"
    return (
        f"no message of the load came back: --mode {load.mode} needs a hub that {answer}; "
        "--mode listen counts what a hub sends by itself"
    )


def _allow_files(clients: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + 64
    if soft < needed:
        if needed > hard:
            raise Failure(f"{clients} clients need {needed} open files, and {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _watched(load: Load, *, live: bool) -> None:
    from rich.live import Live

    from wsc_fast.cli.load import Counts

    out = console()
    if not live or not out.is_terminal:
        await load.run()
        return
    with Live(_table(load, Counts()), console=out, transient=True, auto_refresh=False) as picture:
        running = asyncio.ensure_future(load.run())
        try:
            while not running.done():
                await asyncio.wait([running], timeout=_REFRESH)
                picture.update(_table(load, load.take_recent()), refresh=True)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait([running])
        await running


def summary_of(load: Load, url: str) -> dict[str, Any]:
    """The figures of a run, as --json has them."""
    total, latency = load.total, load.total.latency
    seconds = max(load.elapsed, 1e-9)
    percentiles = {f"p{each:g}": latency.percentile(each) / 1_000 for each in _PERCENTILES}
    return {
        "url": url,
        "mode": load.mode,
        "clients": load.clients,
        "connected": load.connected,
        "seconds": round(load.elapsed, 3),
        "sent": total.sent,
        "received": total.received,
        "received_bytes": total.received_bytes,
        "sent_per_second": round(total.sent / seconds, 1),
        "received_per_second": round(total.received / seconds, 1),
        "latency_ms": percentiles
        | {"max": latency.longest / 1_000, "mean": round(latency.mean / 1_000, 3)}
        if latency.count
        else None,
        "held_back": load.held_back,
        "errors": dict(load.errors),
        "generator_busy": round(load.busy, 3),
    }


def _table(load: Load, recent: Counts | None) -> Table:
    """A picture of the run; without `recent` the last one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{load.mode}, {load.elapsed:.0f} of {load.duration:g} s"
    if not load.elapsed:
        title = f"{load.mode}, connecting"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("")
    columns = [("whole run", load.total, load.elapsed)]
    if recent is not None:
        columns.insert(0, ("last second", recent, _REFRESH))
    for name, _, _ in columns:
        table.add_column(name, justify="right", min_width=12)

    def row(name: str, *cells: str, style: str = "") -> None:
        table.add_row(name, *cells, style=style)

    def each(name: str, figure: Any) -> None:
        row(name, *(figure(counts, max(seconds, 1e-9)) for _, counts, seconds in columns))

    row("clients", *[""] * (len(columns) - 1), f"{load.connected:,} of {load.clients:,}")
    each("messages out/s", lambda counts, seconds: f"{counts.sent / seconds:,.0f}")
    each("messages in/s", lambda counts, seconds: f"{counts.received / seconds:,.0f}")
    each("MB in/s", lambda counts, seconds: f"{counts.received_bytes / seconds / 1e6:,.2f}")
    if load.mode != "listen":
        for percent in _PERCENTILES:
            each(f"latency p{percent:g}", lambda counts, _, p=percent: _ms(counts.latency, p))
        each("latency max", lambda counts, _: _ms(counts.latency, 100))
    blank = [""] * (len(columns) - 1)
    if load.held_back:
        row("held back", *blank, f"{load.held_back:,}", style="yellow")
    errors = f"{load.errors.total():,}"
    row("errors", *blank, errors, style="red" if load.errors else "")
    return table


def _ms(latency: Any, percent: float) -> str:
    if not latency.count:
        return "-"
    return f"{latency.percentile(percent) / 1_000:,.2f} ms"


def _print(load: Load, summary: dict[str, Any]) -> None:
    out = console()
    out.print(_table(load, None))
    for text, count in load.errors.most_common(5):
        say(f"{count} times: {text}", "red")
    if summary["generator_busy"] > _AT_ITS_LIMIT:
        busy = f"{summary['generator_busy']:.0%}"
        say(
            f"this process was busy for {busy} of the time: the hub may do more than that", "yellow"
        )
