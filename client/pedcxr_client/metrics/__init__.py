"""Metrics of the client: the hook protocol, a Prometheus implementation and its exporters.

Importing this package does not import prometheus_client. ``Metrics`` and the exporters import it when they are used.
"""

from pedcxr_client.metrics.export import Pushgateway, asgi, serving, write
from pedcxr_client.metrics.hooks import Hook, Outcome
from pedcxr_client.metrics.prometheus import Metrics

__all__ = ["Hook", "Metrics", "Outcome", "Pushgateway", "asgi", "serving", "write"]
