"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from sidestep.serve.queueing import Answer

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SHARES = tuple(n / 10 for n in range(1, 11))


class Meters:
    """All that a server counts; several workers write into one folder, which Prometheus' client reads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ("model",)
        self.requests = Counter(
            "sidestep_requests", "Requests for inference, by status.", ("model", "code"), registry=registry
        )
        self.seconds = Histogram(
            "sidestep_image_seconds",
            "From the arrival of an image to its answer.",
            model,
            registry=registry,
            buckets=_SECONDS,
        )
        self.waited = Histogram(
            "sidestep_queue_seconds", "That images waited.", model, registry=registry, buckets=_SECONDS
        )
        self.budgets = Histogram(
            "sidestep_budget", "Budgets of answers.", model, registry=registry, buckets=_SHARES
        )
        self.allowed = Gauge(
            "sidestep_budget_allowed",
            "Largest budget that the load allows.",
            model,
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.waiting = Gauge(
            "sidestep_queue_images",
            "Images that wait.",
            model,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.exits = Counter(
            "sidestep_exits", "Images by the exit at which they left.", ("model", "exit"), registry=registry
        )
        self.units = Counter(
            "sidestep_units", "Images by unit and option.", ("model", "unit", "option"), registry=registry
        )
        self.macs = Counter("sidestep_macs", "MACs of all answers.", model, registry=registry)
        self.shed = Counter("sidestep_shed_images", "Images that were refused.", model, registry=registry)
        self.expired = Counter(
            "sidestep_expired_images", "Images whose timeout ended first.", model, registry=registry
        )
        self.cancelled = Counter(
            "sidestep_cancelled_requests", "Requests whose client had gone.", model, registry=registry
        )

    def page(self) -> bytes:
        """Return all of it, in Prometheus' format."""
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Telemetry:
    """What is counted of one model.

    Args:
        meters: of the server.
        model: its name.
    """

    def __init__(self, meters: Meters, model: str) -> None:
        self._meters, self._model = meters, model
        self._seconds = meters.seconds.labels(model)
        self._waited = meters.waited.labels(model)
        self._budgets = meters.budgets.labels(model)
        self._allowed = meters.allowed.labels(model)
        self._waiting = meters.waiting.labels(model)
        self._macs = meters.macs.labels(model)
        self._shed = meters.shed.labels(model)
        # By unit and option, by exit, and by status, as they come.
        self._units: dict[tuple[int, int], Counter] = {}
        self._exits: dict[int, Counter] = {}
        self._replies: dict[int, Counter] = {}

    def answered(self, answer: Answer, budget: float) -> None:
        """Count an answer."""
        row = answer.row
        self._seconds.observe(1e-3 * answer.ms)
        self._waited.observe(1e-3 * answer.queue_ms)
        self._budgets.observe(budget)
        self._macs.inc(row.macs)
        if row.exit not in self._exits:
            self._exits[row.exit] = self._meters.exits.labels(self._model, str(row.exit))
        self._exits[row.exit].inc()
        for place in enumerate(row.path.tolist()):
            if place[1] >= 0:
                if place not in self._units:
                    self._units[place] = self._meters.units.labels(self._model, *map(str, place))
                self._units[place].inc()

    def budget(self, budget: float) -> None:
        """Note the largest budget that the load allows."""
        self._allowed.set(budget)

    def waiting(self, count: int) -> None:
        """Note how many images wait."""
        self._waiting.set(count)

    def shed(self, count: int) -> None:
        """Count images that were refused."""
        self._shed.inc(count)

    def expired(self) -> None:
        """Count an image whose timeout has ended."""
        self._meters.expired.labels(self._model).inc()

    def cancelled(self) -> None:
        """Count a request whose client has gone."""
        self._meters.cancelled.labels(self._model).inc()

    def replied(self, code: int) -> None:
        """Count a response."""
        if code not in self._replies:
            self._replies[code] = self._meters.requests.labels(self._model, str(code))
        self._replies[code].inc()
