"""Inspection of a checkpoint folder before it is served."""
