"""The private folder that holds the engine's Unix socket while a server runs, and folders that killed servers left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pedcxr_serve.config import paths
from pedcxr_serve.errors import AlreadyRunning, ConfigError

_SOCKET = "engine.sock"
_LOCK = "lock"
_PREFIX = "pedcxr-"
SCRATCH_PREFIX = "pedcxr-engine-"
"""Prefix of the engine's own folders of temporary files."""
_SCRATCH_LOCK = ".pedcxr-lock"
_MIN_AGE_S = 60.0  # a new folder may not be locked yet
# Linux's sun_path has 108 bytes including a final NUL. The longest file name created here is a UUID, vLLM's RPC socket.
_MAX_FOLDER_BYTES = 107 - len("/") - 36


def engine_socket(folder_name: str) -> Path:
    """Return the path of the engine's socket in a folder."""
    return Path(folder_name).absolute() / _SOCKET


@contextlib.contextmanager
def socket_folder(folder_name: str = "") -> Iterator[Path]:
    """Lock a folder of mode 0700 for one server and yield the path for the engine's socket in it.

    Args:
        folder_name: the folder to use, created if absent; empty for a new temporary folder. A folder that was created
            here is removed at the end.

    Raises:
        AlreadyRunning: if another server has locked the folder.
        ConfigError: if the folder belongs to another user, is accessible to others, or its path is too long for a
            socket.
    """
    folder = Path(folder_name).absolute() if folder_name else _temporary_folder()
    temporary = not folder_name or not paths.exists(folder)
    try:
        with _locked(folder):
            remove_sockets(folder)  # a server killed by SIGKILL leaves its socket, and the next could not bind to it
            try:
                yield folder / _SOCKET
            finally:
                remove_sockets(folder)
    finally:
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError as error:
        raise ConfigError(
            f"the folder of temporary files cannot be written ({error.strerror}); free space on its disk, or set TMPDIR"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
        raise _unusable(folder, f"is too long for Unix sockets; use at most {_MAX_FOLDER_BYTES} bytes")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise _unusable(folder, "belongs to another user; use a folder of your own")
        if stat.S_IMODE(status.st_mode) != 0o700:
            raise _unusable(folder, "is accessible to other users; chmod 700 it")
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(folder, f"cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"engine.socket_dir: {folder} is in use by a running server; stop it, or use another folder"
            raise AlreadyRunning(message) from None
        yield
    finally:
        os.close(lock)


def lock_scratch(folder: Path) -> int:
    """Mark a folder of temporary files as in use while this process lives; return the open file of the lock."""
    lock = os.open(folder / _SCRATCH_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def remove_stale_folders(parent: Path | None = None) -> list[Path]:
    """Remove the temporary folders of this user's servers that were killed; return them.

    Such a folder has a lock file that no process holds. Of a folder of sockets only the sockets are removed, and the
    folder if nothing else is in it, because `socket_folder` may be given an ordinary folder with such a name.

    Args:
        parent: default is the system's folder of temporary files.
    """
    removed = []
    if parent is None:
        try:
            parent = Path(tempfile.gettempdir())
        except OSError:  # none can be written, which `socket_folder` reports
            return []
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_scratch = folder.name.startswith(SCRATCH_PREFIX)
            recent = time.time() - status.st_mtime < _MIN_AGE_S
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or recent:
                continue
            lock = os.open(folder / (_SCRATCH_LOCK if is_scratch else _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_folder(folder, is_scratch=is_scratch)
                removed.append(folder)
            finally:
                os.close(lock)
    return removed


def _remove_folder(folder: Path, *, is_scratch: bool) -> None:
    if is_scratch:
        shutil.rmtree(folder, ignore_errors=True)
        return
    remove_sockets(folder)
    if {path.name for path in folder.iterdir()} == {_LOCK}:
        (folder / _LOCK).unlink()
        folder.rmdir()


def remove_sockets(folder: Path) -> None:
    """Remove the sockets in a locked folder; other files stay, since the folder may be configured by mistake."""
    for path in folder.iterdir():
        if path.is_socket():
            path.unlink(missing_ok=True)


def _unusable(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"engine.socket_dir: {folder} {reason}")
