"""What is refused for its size alone."""

MAX_PIXELS = 50_000_000
"""Most pixels an image may have: the largest detectors make about 20 million."""

MAX_BYTES = 100 * 1024 * 1024
"""Largest file that is read, in bytes."""
