"""The errors that the launcher and the gateway raise deliberately.

::

    ServeError                     exit code
    ├── ConfigError                2   usage or configuration: file, key, value, what is allowed
    │   ├── PortInUse              2   the address is in use
    │   └── AlreadyRunning         2   another server uses the socket folder
    ├── AuditError                 3   the audit log is incomplete or was changed: file and line
    ├── CheckpointError            3   the model folder cannot be served: what is missing and the remedy
    │   └── AdapterError           3   an adapter cannot be served with the model, or has no effect
    ├── DataError                  3   the films or reports of a training are rejected: lines and reasons
    ├── TrainingError              4   a training stopped: memory, disk, or a loss that is not finite
    └── EngineError                4   vLLM failed: has its last log lines
        ├── EngineNotReady         4   no warm-up report in time
        └── EngineDied             4   the process exited unexpectedly

A message says what is wrong, where (file and key, or path), and what to do. The command prints it without a traceback;
the cause is chained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ServeError(Exception):
    """Base class of all errors; `exit_code` is the exit code of the command."""

    exit_code: ClassVar[int] = 4


class ConfigError(ServeError):
    """A setting, option, folder or environment variable is wrong or missing."""

    exit_code = 2


class PortInUse(ConfigError):
    """An address of the gateway is in use by another process."""


class AlreadyRunning(ConfigError):
    """Another server uses the socket folder."""


class AuditError(ServeError):
    """The audit log was changed, or lines of it are missing."""

    exit_code = 3


class CheckpointError(ServeError):
    """The model folder cannot be served."""

    exit_code = 3


class AdapterError(CheckpointError):
    """An adapter does not fit the model, or does not change its answers."""


class DataError(ServeError):
    """The films or reports of a training are rejected."""

    exit_code = 3


class TrainingError(ServeError):
    """A training stopped before its end. Its last complete state is kept."""


class EngineError(ServeError):
    """vLLM failed.

    Args:
        message: What happened and what to do.
        tail: The last log lines of the engine, oldest first.
    """

    exit_code = 4

    def __init__(self, message: str, *, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tail = tuple(tail)


class EngineNotReady(EngineError):
    """The engine did not become ready within `gateway.start_timeout_s`."""


class EngineDied(EngineError):
    """The engine process exited without a request to stop."""
