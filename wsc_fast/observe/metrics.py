"""The metrics of hubs for prometheus-client, read from their counters when they are scraped.

A registry has one collector of ours, however many hubs it has, so that each family stands once in
a scrape. It knows the hubs weakly: a registry lives as long as the process, and may not keep a hub.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from wsc_fast.errors import HubStateError
from wsc_fast.log import log
from wsc_fast.observe.readings import FAMILIES, Family, Reading

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


class Readable(Protocol):
    """A hub, as far as its metrics are concerned."""

    def read(self) -> Reading:
        """The counters of this moment; any thread.

        Raises:
            HubStateError: its loop does not answer, or is gone.
        """


class HubsCollector:
    """The hubs of one registry, as a collector of prometheus-client.

    Thread-safety: any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hubs: dict[str, weakref.ref[Readable]] = {}

    def add(self, hub: Readable, name: str) -> str:
        """Adds a hub; returns its name, which no other one has.

        Args:
            hub: known weakly.
            name: the value of the label `hub`; "" for none. If another hub has it, a number is
                added, from 2.
        """
        with self._lock:
            chosen, number = name, 2
            while (other := self._hubs.get(chosen)) is not None and other() is not None:
                chosen, number = f"{name}{number}", number + 1
            self._hubs[chosen] = weakref.ref(hub)
        return chosen

    def _readings(self) -> dict[str, Reading]:
        with self._lock:
            hubs = {name: hub for name, ref in self._hubs.items() if (hub := ref()) is not None}
            self._hubs = {name: self._hubs[name] for name in hubs}
        readings = {}
        for name, hub in hubs.items():
            try:
                readings[name] = hub.read()
            except HubStateError as error:
                # The other metrics of the registry are to be scraped all the same.
                log.warning("the metrics of a hub cannot be read: %s", error)
        return readings

    def describe(self) -> list[Metric]:
        """The families without values (prometheus-client calls it)."""
        return [_metric(family, {}) for family in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """The families with the values of this moment (prometheus-client calls it)."""
        readings = self._readings()
        if readings:
            for family in FAMILIES:
                yield _metric(family, readings)


def _metric(family: Family, readings: dict[str, Reading]) -> Metric:
    """A family with its values.

    Args:
        family: which.
        readings: of each hub, by its name; the one without a name has no label `hub`.
    """
    from prometheus_client import core

    kinds = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily}
    histogram = family.kind == "histogram"
    metric: Metric = (
        core.HistogramMetricFamily(family.name, family.text)
        if histogram
        else kinds[family.kind](family.name, family.text)
    )
    suffix = "_total" if family.kind == "counter" else ""
    for name, reading in readings.items():
        of_hub = {"hub": name} if name else {}
        if histogram:
            for label, (buckets, total) in family.distributions(reading).items():
                labels = {**of_hub, **({family.label: label} if family.label else {})}
                for bound, count in buckets:
                    le = _bound(bound)
                    metric.add_sample(f"{family.name}_bucket", {**labels, "le": le}, count)
                metric.add_sample(f"{family.name}_count", labels, buckets[-1][1])
                metric.add_sample(f"{family.name}_sum", labels, total)
            continue
        for label, value in family.values(reading).items():
            labels = {**of_hub, **({family.label: label} if family.label else {})}
            metric.add_sample(family.name + suffix, labels, value)
    return metric


def _bound(bound: float) -> str:
    """The bound of a bucket as prometheus-client writes it."""
    from prometheus_client.utils import floatToGoString

    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text


# Registry -> the collector in it.
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, HubsCollector] = (
    weakref.WeakKeyDictionary()
)
_registering = threading.Lock()


def collector_in(registry: CollectorRegistry) -> HubsCollector:
    """The collector of a registry, made and registered where there is none.

    Raises:
        ValueError: the registry has metrics of these names of somebody else's.
    """
    with _registering:
        collector = _collectors.get(registry)
        if collector is None:
            collector = HubsCollector()
            registry.register(collector)
            _collectors[registry] = collector
    return collector
