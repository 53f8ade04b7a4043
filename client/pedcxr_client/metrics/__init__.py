"""Metrics of the client: hooks, a Prometheus implementation, and its exporters."""
