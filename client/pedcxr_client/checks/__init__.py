"""Checks of the intended use, applied before anything is sent."""
