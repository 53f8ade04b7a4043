"""The commands that start a server."""
