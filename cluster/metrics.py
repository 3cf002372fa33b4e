"""Metrics to Ray's exporter, from any process of the cluster; Prometheus reads them on each node.

What Ray 2.60 does, tried on a local cluster: ``vlaw_x`` is exported as ``ray_vlaw_x``; a counter
gets ``_total`` if its name lacks it. Every process is a series of its own (label ``WorkerId``).
Counters and histograms of a process that died stay as they were, and its successor begins a new
series. **A gauge that is not set again for 20 to 30 s disappears**, so this module sets them again.
The ``_sum`` of a histogram is made of the middles of its buckets: use it for nothing exact.
"""

import atexit
import threading
from dataclasses import dataclass, field
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from contracts.metrics import Metric

AGAIN_S = 5.0  # a gauge is exported for at least 20 s after it was set


@dataclass
class _Exporter:
    """The instruments of this process, and the newest value of each gauge."""

    instruments: dict[str, Any] = field(default_factory=dict)
    gauges: dict[tuple[str, tuple[str, ...]], tuple[float, dict[str, str]]] = field(
        default_factory=dict
    )
    lock: threading.RLock = field(default_factory=threading.RLock)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def instrument(self, metric: Metric) -> Any:
        with self.lock:
            if metric.name not in self.instruments:
                self.instruments[metric.name] = _instrument(metric)
            return self.instruments[metric.name]

    def keep(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        with self.lock:
            self.gauges[metric.name, tuple(tags.values())] = value, tags
            if self.thread is None:
                self.thread = threading.Thread(target=self._set_again, daemon=True, name="gauges")
                self.thread.start()
                atexit.register(self._end)

    def _set_again(self) -> None:
        while not self.ended.wait(AGAIN_S):
            self.set_all()

    def set_all(self) -> None:
        with self.lock:
            for (name, _), (value, tags) in self.gauges.items():
                self.instruments[name].set(value, tags)

    def _end(self) -> None:
        """The thread must not be inside Ray's library while the interpreter goes."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join(timeout=AGAIN_S)


_exporter = _Exporter()


def _instrument(metric: Metric) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.help, metric.tags)
        case "gauge":
            return Gauge(metric.name, metric.help, metric.tags)
        case "histogram":
            return Histogram(metric.name, metric.help, list(metric.boundaries), metric.tags)


@dataclass(frozen=True, slots=True)
class RayMeter:
    """A Meter whose values Ray exports. It holds nothing, so it can be made and sent anywhere."""

    def count(self, metric: Metric, amount: float | int = 1, **tags: object) -> None:
        named = metric.checked("counter", tags)
        if amount > 0:  # Ray refuses 0
            _exporter.instrument(metric).inc(amount, named)

    def set(self, metric: Metric, value: float | int, **tags: object) -> None:
        named = metric.checked("gauge", tags)
        _exporter.instrument(metric).set(value, named)
        _exporter.keep(metric, value, named)

    def observe(self, metric: Metric, value: float | int, **tags: object) -> None:
        named = metric.checked("histogram", tags)
        _exporter.instrument(metric).observe(value, named)
