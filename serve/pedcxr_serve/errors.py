"""Every error that the launcher and the gateway raise on purpose.

::

    ServeError                     exit code
    ├── ConfigError                2   usage or configuration: file, key, value, what is allowed
    │   ├── PortTaken              2   somebody listens on the address already
    │   └── AlreadyRunning         2   another server owns the socket folder
    ├── AuditError                 3   the audit log is not whole: file and line
    ├── CheckpointError            3   the model folder was refused; it says what is missing and the remedy
    └── EngineError                4   vLLM: carries its last lines
        ├── EngineNotReady         4   did not answer a warm-up report in time
        └── EngineDied             4   the process ended by itself

A message says what is wrong, where (file and key, or path), and what to do next. It is written for the person
at the terminal and is printed without a traceback; the cause is chained for those who want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "AlreadyRunning",
    "AuditError",
    "CheckpointError",
    "ConfigError",
    "EngineDied",
    "EngineError",
    "EngineNotReady",
    "PortTaken",
    "ServeError",
]


class ServeError(Exception):
    """The root of the tree; `exit_code` is what the command ends with."""

    exit_code: ClassVar[int] = 4


class ConfigError(ServeError):
    """A wrong or missing setting, flag, folder or environment variable."""

    exit_code = 2


class PortTaken(ConfigError):
    """An address that the gateway was told to listen on is in use."""


class AlreadyRunning(ConfigError):
    """Another server holds the socket folder."""


class AuditError(ServeError):
    """The audit log was changed, or lines of it are missing."""

    exit_code = 3


class CheckpointError(ServeError):
    """The model folder cannot be served as it is."""

    exit_code = 3


class EngineError(ServeError):
    """vLLM failed.

    Args:
        message: What happened and what to do next.
        tail: The engine's last lines of output, oldest first.
    """

    exit_code = 4

    def __init__(self, message: str, *, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tail = tuple(tail)


class EngineNotReady(EngineError):
    """The engine did not become ready within `gateway.start_timeout_s`."""


class EngineDied(EngineError):
    """The engine's process ended although nobody asked it to."""
