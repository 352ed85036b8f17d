"""The part of the hub's face that watches the hub: a base of Hub.

observing.py and counting.py do the work of these calls, but for those about clients, which the
engine does. observing.py is imported by the first call that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from wsc_fast._core.calls import Calls
from wsc_fast._core.connection import Client
from wsc_fast.errors import ValidationError
from wsc_fast.observe.needs import Needs
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.stats import HubStats

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from wsc_fast.observe.endpoint import MayScrape
    from wsc_fast.observe.observing import Observing


class ObserveFace(Calls):
    """Base of Hub: counters, metrics, traces, and a look at the clients."""

    _calls: ThreadCalls
    _observe_needs: Needs
    _observing: Observing | None = None

    def enable_metrics(
        self,
        path: str | None = "/metrics",
        *,
        authenticate: MayScrape | None = None,
        port: int | None = None,
        host: str = "127.0.0.1",
        registry: CollectorRegistry | None = None,
        name: str = "",
    ) -> None:
        """Has Prometheus scrape the hub; needs prometheus-client (`wsc_fast[metrics]`).

        The metrics are read from the hub's counters when they are scraped. They are in the registry
        too, for an application that has an endpoint of its own.

        Args:
            path: served as a route of the hub; None: by nobody, they are in the registry alone.
            authenticate: `authenticate(request) -> bool`, plain: whether a request may scrape. Else
                it gets 401, or 403 where it has shown an Authorization. None lets all, on the
                hub's own port also the public.
            port: a port of their own, on which the path is served instead, from the start to the
                stop of the hub; 0 chooses a free one, see `metrics_port`.
            host: an address or a name, for that port.
            registry: prometheus-client's; None: its global one.
            name: the value of a label `hub`, for several hubs in one process; "" for no label. A
                hub whose name another one has in the registry gets a number behind it.

        Raises:
            ImportError: prometheus-client is not installed.
            HubStateError: enabled already, or with a port while the hub runs.
            ConfigError: the registry has other metrics of these names.
            ValidationError: a path that cannot be served or is served already, or another argument
                of the wrong kind.

        Thread-safety: any thread.
        """
        self._calls.run(
            lambda: self._observed().enable_metrics(path, authenticate, host, port, registry, name)
        )

    @property
    def metrics_port(self) -> int | None:
        """int | None: the port of `enable_metrics(port=...)`; None where none is listened on."""
        return None if self._observing is None else self._observing.port

    def enable_tracing(self, tracer_provider: TracerProvider | None = None) -> None:
        """Has OpenTelemetry trace the hub; needs opentelemetry-api (`wsc_fast[otel]`).

        There are spans around the callbacks `on_client_connected`, `on_message_received` and
        `on_client_disconnected`, and around the sends to users. To be called before the start.

        Args:
            tracer_provider: OpenTelemetry's; None: its global one.

        Raises:
            ImportError: opentelemetry-api is not installed.
            HubStateError: enabled already.

        Thread-safety: any thread.
        """
        self._calls.run(partial(self._enable_tracing, tracer_provider))

    def _enable_tracing(self, tracer_provider: TracerProvider | None) -> None:
        from wsc_fast.observe.tracing import SENDS

        tracing = self._observed().enable_tracing(tracer_provider)
        # Attributes of this hub stand before its class's methods, which cost nothing elsewhere.
        for name in SENDS:
            vars(self)[name] = tracing.wrap_send(getattr(self, name))

    def _observed(self) -> Observing:
        from wsc_fast.observe.observing import Observing

        if self._observing is None:
            self._observing = Observing(self._observe_needs)
        return self._observing

    # --- clients ---

    def iter_clients(self) -> Iterator[Client]:
        """The clients that are connected at this moment.

        Returns:
            Iterator[Client]: in no particular order; one may have gone by the time it is reached.

        Thread-safety: any thread.
        """
        return iter(self._engine.open_clients())

    def slowest_clients(self, n: int = 10) -> list[Client]:
        """The clients for which the most bytes wait, and of equal ones the most messages.

        Args:
            n: how many at most, from 1.

        Returns:
            list[Client]: the slowest first; none for which nothing waits.

        Raises:
            ValidationError: n is no int from 1.

        Thread-safety: any thread; on the hub's loop it takes a moment for 100,000 clients.
        """
        if type(n) is not int or n < 1:
            raise ValidationError(f"n must be an int from 1, not {n!r}")
        return self._calls.run(partial(self._engine.slowest_clients, n))

    # --- stats ---

    def get_stats(self) -> HubStats:
        """A snapshot of the hub's counters and gauges.

        Returns:
            HubStats.

        Thread-safety: any thread. Source: go-wsc `GetStats`.
        """
        return self._calls.run(self._observe_needs.counting.snapshot)

    def reset_stats(self) -> None:
        """Sets every counter to zero; gauges and the start time stay.

        Thread-safety: any thread. Source: go-wsc `ResetStats`.
        """
        self._calls.run(self._observe_needs.counting.reset)
