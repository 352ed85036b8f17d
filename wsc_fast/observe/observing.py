"""The part of a hub that others watch it by: metrics and traces, once they are asked for.

Their modules are imported then, since most hubs have neither.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING

from wsc_fast.errors import ConfigError, HubStateError, ValidationError
from wsc_fast.listen.arguments import check_path
from wsc_fast.log import log
from wsc_fast.observe.counting import Counting
from wsc_fast.observe.needs import Needs

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from wsc_fast.observe.endpoint import MayScrape, MetricsPort
    from wsc_fast.observe.lag import LoopLag
    from wsc_fast.observe.readings import Reading
    from wsc_fast.observe.tracing import Tracing


class Observing:
    """The metrics and traces of one hub.

    Args:
        needs: of the hub.

    Attributes:
        counting: the counters and gauges.
        tracing: the traces; None before `enable_tracing`.

    Thread-safety: the loop's thread, but for `read`.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._lag: LoopLag | None = None
        self._has_metrics = False
        self._port: MetricsPort | None = None
        self.counting: Counting = needs.counting
        self.tracing: Tracing | None = None

    # --- metrics ---

    def enable_metrics(
        self,
        path: str | None,
        authenticate: MayScrape | None,
        host: str,
        port: int | None,
        registry: CollectorRegistry | None,
        name: str,
    ) -> None:
        """See `Hub.enable_metrics`."""
        try:
            import prometheus_client
        except ImportError as error:
            raise ImportError(
                "enable_metrics needs prometheus-client: wsc_fast[metrics]"
            ) from error
        from wsc_fast.observe import metrics
        from wsc_fast.observe.endpoint import Endpoint, MetricsPort

        if self._has_metrics:
            raise HubStateError("metrics are enabled already")
        check_metrics_arguments(path, authenticate, host, port, name)
        loop = self._needs.engine.loop
        if port is not None and loop is not None:
            raise HubStateError("enable_metrics with a port comes before the hub starts")
        if registry is None:
            registry = prometheus_client.REGISTRY
        elif not isinstance(registry, prometheus_client.CollectorRegistry):
            raise ValidationError(
                f"registry must be a CollectorRegistry of prometheus_client, not {registry!r}"
            )
        count = self._needs.engine.count_rejected
        endpoint = Endpoint(registry, authenticate, lambda: count("auth"))
        # All that may fail comes first, so that nothing is kept of a call that has failed.
        try:
            collector = metrics.collector_in(registry)
        except ValueError as error:
            raise ConfigError(
                f"the registry has other metrics of these names already: {error}"
            ) from error
        if path is not None and port is None:
            self._needs.add_route(path, endpoint.answer)
        name = collector.add(self, name)
        if name:
            log.info("the metrics of this hub have the label hub=%r", name)
        self._has_metrics = True
        self.watch_loop()
        if path is not None and port is not None:
            self._port = MetricsPort(endpoint, path, host, port, self._needs.report)
            self._needs.accompany(self._port)

    def watch_loop(self) -> None:
        """Measures the lag of the loop from now on, which `read` needs."""
        from wsc_fast.observe.lag import LoopLag

        if self._lag is not None:
            return
        self._lag = LoopLag()
        self._needs.accompany(self._lag)
        if self._needs.engine.loop is not None:
            self._lag.begin(self._needs.engine.loop)

    @property
    def port(self) -> int | None:
        """The port that the metrics are listened for on; None where there is none."""
        return None if self._port is None else self._port.port

    def read(self) -> Reading:
        """The counters of this moment.

        Raises:
            HubStateError: the loop does not answer, or is gone.

        Thread-safety: any thread.
        """
        return self._needs.calls.run(self._read)

    def _read(self) -> Reading:
        from wsc_fast.observe.readings import Reading, read_all

        assert self._lag is not None
        histograms = {**self._needs.engine.read_histograms(), "loop_lag": self._lag.seconds}
        return Reading(
            self.counting.snapshot(),
            read_all(histograms),
            read_all(self._needs.stores()),
            replace(self.counting.cluster),
        )

    # --- traces ---

    def enable_tracing(self, tracer_provider: TracerProvider | None) -> Tracing:
        """See `Hub.enable_tracing`; returns the traces."""
        if self.tracing is not None:
            raise HubStateError("tracing is enabled already")
        from wsc_fast.observe.tracing import Tracing

        self.tracing = Tracing(tracer_provider)
        self._needs.watch_upgrades(self.tracing.upgraded)
        self._needs.wrap_callbacks(self.tracing.wrap_callback)
        return self.tracing


def check_metrics_arguments(
    path: str | None, authenticate: MayScrape | None, host: str, port: int | None, name: str
) -> None:
    """Raises ValidationError for what `enable_metrics` cannot take."""
    if port is not None and (type(port) is not int or not 0 <= port <= 65_535):
        raise ValidationError(f"port must be None or 0 to 65535, not {port!r}")
    if port is not None and path is None:
        raise ValidationError("a port needs a path")
    if port is not None:
        check_path("path", path)
    if type(host) is not str or not host:
        raise ValidationError(f"host must be an address or a name, not {host!r}")
    if type(name) is not str:
        raise ValidationError(f"name must be a str, not {type(name).__name__}")
    if authenticate is None:
        return
    if not callable(authenticate) or inspect.iscoroutinefunction(authenticate):
        raise ValidationError(
            "authenticate must be a plain function, not async: it decides at once"
        )
    if path is None:
        raise ValidationError("authenticate needs a path: a registry asks nobody")
