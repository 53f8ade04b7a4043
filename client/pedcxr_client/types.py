"""Values that every part of the package shares; imports nothing of ours."""

__version__ = "0.1.0"
