"""Locate, inspect and identify a checkpoint before it is served."""
