"""The HTTP server: protocol limits, TLS, listeners, access log."""
