"""What is counted and timed of the endpoint, as Prometheus reads it. No label holds what a person wrote."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from orchestration.serving.request_log import OK, RequestRecord

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Those of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "t2i_requests",
            "requests for pictures; model and version are empty for those that were refused",
            ["kind", "model", "version", "code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "t2i_request_seconds",
            "from the start of a request for pictures to its reply",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._pictures = Counter("t2i_pictures", "pictures drawn", ["model", "version"], registry=self._registry)
        self._batch = Histogram(
            "t2i_batch_pictures", "pictures in the batch of a request", buckets=_BATCHES, registry=self._registry
        )
        self._in_flight = Gauge("t2i_requests_in_flight", "requests for pictures, now", registry=self._registry)
        self._refused = Counter(
            "t2i_refused", "replies that are an error, of any path", ["code"], registry=self._registry
        )

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """While a request for pictures is worked on."""
        with self._in_flight.track_inprogress():
            yield

    def count(self, record: RequestRecord, draws: bool) -> None:
        """A request that is over; draws: whether it was one for pictures."""
        if record.code != OK:
            self._refused.labels(record.code).inc()
        if not draws:
            return
        self._requests.labels(record.kind, record.model, record.version, record.code).inc()
        self._seconds.labels(record.kind).observe(record.ms / 1_000)
        if record.code == OK:
            self._pictures.labels(record.model, record.version).inc(record.count)
            self._batch.observe(record.batch)

    def text(self) -> bytes:
        """The reply of GET /metrics."""
        return generate_latest(self._registry)
