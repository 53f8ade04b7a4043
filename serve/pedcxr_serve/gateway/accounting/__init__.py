"""Metrics, usage and the audit log."""
