"""What a server counts, for Prometheus."""

from typing import Any

import prometheus_client as prometheus

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
  """The counters of one server, in a registry of their own."""

  def __init__(self):
    self.registry = prometheus.CollectorRegistry()
    own: Any = {"registry": self.registry}
    self.requests = prometheus.Counter(
      "subtune_requests", "Requests to /predict, by the status of the answer.", ["code"], **own
    )
    self.seconds = prometheus.Histogram(
      "subtune_request_seconds", "From the first byte of a request to its answer.",
      buckets=_SECONDS, **own,
    )  # fmt: skip
    self.batches = prometheus.Histogram(
      "subtune_batch_pictures", "Pictures that ran together.", buckets=(1, 2, 4, 8, 16, 32, 64),
      **own,
    )  # fmt: skip
    self.waiting = prometheus.Gauge("subtune_waiting_pictures", "Pictures in the queue.", **own)

  def text(self) -> bytes:
    """The exposition format."""
    return prometheus.generate_latest(self.registry)
