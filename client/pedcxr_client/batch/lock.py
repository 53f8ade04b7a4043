"""The lock of the output file: flock, or a lock file where the file system has no flock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime

from pedcxr_client.errors import ConfigurationError

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class OutputLock:
    """Keeps other runs from writing the open file ``file`` at ``path`` until `release`.

    A file ``PATH.lock`` with the host and the process takes the place of flock where that is not supported. The file
    is never taken over: two runs that start at once after a crash could both do so.

    Attributes:
        notice: a sentence for the user if a lock file is used, else None.

    Raises:
        ConfigurationError: if another run holds the lock, or the file cannot be locked.
    """

    def __init__(self, file: int, path: str) -> None:
        self.notice: str | None = None
        self._path: str | None = None
        lock_file = f"{path}.lock"
        _check_absent(lock_file)  # a run on another machine may use it although flock works on this one
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:  # EWOULDBLOCK or EAGAIN
            raise ConfigurationError(
                "-o: another run is writing this file; wait for it to end, or give another file name"
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise ConfigurationError(f"-o: cannot be locked: {error.strerror}; give another file name") from error
            _create(lock_file)
            self._path = lock_file
            self.notice = (
                f"-o: this file system does not support file locks ({error.strerror}); "
                "the lock is the output file's name with .lock appended"
            )

    def release(self) -> None:
        """Remove the lock file, if there is one. Closing the output file releases flock."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _create(path: str) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _check_absent(path)
        raise ConfigurationError("-o: another run is ending; run the same command again") from None
    except OSError as error:
        raise ConfigurationError(f"-o: its lock file cannot be created: {error.strerror}") from error
    with os.fdopen(file, "w") as lock:
        json.dump(holder, lock)


def _check_absent(path: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            holder = json.loads(file.read(1000))
            host, pid = str(holder["host"])[:100], int(holder["pid"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigurationError(
            "-o: the lock file beside it (.lock) does not state its process; delete it if no run is writing"
        ) from None
    if host == socket.gethostname() and not _is_running(pid):
        raise ConfigurationError(
            f"-o: process {pid} on this machine ended without removing its lock file; "
            "delete the file with .lock appended to the output's name, and run the same command again"
        )
    raise ConfigurationError(
        f"-o: process {pid} on {host} is writing this file, says the lock file beside it (.lock); wait for it to end. "
        "If that process is not a run of pedcxr batch, delete the lock file"
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
