"""Sizing of the engine for a device."""
