"""Count and time what the server does, for Prometheus.

``docs/operating/serving.md`` lists every metric. ``model_name`` is the name of the line, as KServe calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

UNKNOWN = "unknown"
"""The name under which requests for lines that are not served are counted: strangers choose no label."""

REQUESTS = Counter("csflow_requests", "Requests for scores by how they ended", ("model_name", "outcome"))
"""Outcomes are ``answered``, ``refused`` (the client's mistake), ``failed`` (ours), ``overloaded``, ``late`` and
``abandoned``; canaries are judged by them."""

RESPONSES = Counter(
    "csflow_responses", "Responses to all requests, refusals on the wire included", ("protocol", "status")
)
IN_FLIGHT = Gauge("csflow_requests_in_flight", "Requests that are being received or answered", ("protocol",))
IMAGES = Counter("csflow_images", "Images scored, by decision", ("model_name", "version", "decision"))

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SECONDS = Histogram(
    "csflow_request_seconds",
    "Seconds from request to response",
    ("model_name", "version", "protocol"),
    buckets=_SECONDS,
)
PHASES = Histogram(
    "csflow_phase_seconds",
    "Seconds of a request in a phase: wait, decode, compute, encode",
    ("model_name", "version", "phase"),
    buckets=_SECONDS,
)
P_VALUES = Histogram(
    "csflow_p_value",
    "P-values of images; those of good parts are uniform",
    ("model_name", "version"),
    buckets=(0.001, 0.005, 0.01, 0.02, 0.05, *(n / 10 for n in range(1, 11))),
)
SCORES = Histogram(
    "csflow_score_to_threshold",
    "Scores of images divided by the threshold",
    ("model_name", "version"),
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
)


class Queues(Collector):
    """Gauges that are read when somebody asks.

    Args:
        waiting: Returns the number of waiting images by line.
        bodies: Returns the bytes of requests in memory.
        loaded: Returns the lines whose detectors are in memory.
    """

    def __init__(
        self,
        waiting: Callable[[], Mapping[str, int]],
        bodies: Callable[[], int],
        loaded: Callable[[], Iterable[str]],
    ) -> None:
        self._waiting, self._bodies, self._loaded = waiting, bodies, loaded
        REGISTRY.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges as they are now."""
        images = GaugeMetricFamily("csflow_waiting_images", "Images that wait for a worker", labels=("model_name",))
        waiting = self._waiting()
        for name in sorted({*self._loaded(), *waiting}):
            images.add_metric((name,), waiting.get(name, 0))
        yield images
        yield GaugeMetricFamily("csflow_request_bytes", "Bytes of requests in memory", value=self._bodies())
        loaded = GaugeMetricFamily("csflow_loaded_detectors", "Detectors in memory", value=len(list(self._loaded())))
        yield loaded
