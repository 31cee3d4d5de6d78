"""What the server counts, for Prometheus. The words are those of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from corral.schema.sandbox import State

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meter:
    """One server's figures. `states` counts sandboxes by state when it is asked, `encrypted` tells whether disks are encrypted at rest."""

    def __init__(self, states: Callable[[], Mapping[State, int]], encrypted: Callable[[], bool]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_States(states))
        at_rest = Gauge("corral_encrypted_at_rest", "1 when what sandboxes write is encrypted on the disk.", registry=self._registry)
        at_rest.set_function(encrypted)
        self.phases = Histogram(
            "corral_create_seconds", "Seconds of a sandbox's creation, by phase; `total` is all of it.", ["phase"], buckets=_SECONDS, registry=self._registry
        )
        self.processes = Counter("corral_processes_started", "Processes started through the API.", registry=self._registry)
        self.executions = Counter("corral_code_executions", "Executions of code in contexts of the code interpreter.", registry=self._registry)
        self._bytes = Counter("corral_bytes", "Bytes of user data, by what they are and where they go.", ["what", "direction"], registry=self._registry)
        self._errors = Counter("corral_errors", "Requests answered with an error, by its code.", ["code"], registry=self._registry)
        self.stdin = self._bytes.labels("stdin", "in")
        self.output = self._bytes.labels("output", "out")
        self.uploaded = self._bytes.labels("file", "in")
        self.downloaded = self._bytes.labels("file", "out")

    def created(self, timing: Mapping[str, float]) -> None:
        """A sandbox was created in these phases (seconds)."""
        for phase, seconds in timing.items():
            if phase != "cold":
                self.phases.labels(phase).observe(seconds)

    def error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _States(Collector):
    def __init__(self, states: Callable[[], Mapping[State, int]]) -> None:
        self._states = states

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("corral_sandboxes", "Living sandboxes, by state.", labels=["state"])
        for state, count in self._states().items():
            family.add_metric([state], count)
        yield family
