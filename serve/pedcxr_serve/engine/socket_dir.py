"""The private folder that holds the engine's socket while a server runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pedcxr_serve.errors import AlreadyRunning, ConfigError

_SOCKET = "engine.sock"
_LOCK = "lock"
# sun_path of Linux's sockaddr_un less its closing zero, less the longest name made here: a UUID of vLLM's own sockets.
_LONGEST_FOLDER = 107 - len("/") - 36


@contextlib.contextmanager
def socket_folder(chosen: str = "") -> Iterator[Path]:
    """Hold a folder of mode 0700 for one server and yield the path of the socket to be made in it.

    Args:
        chosen: a folder to use, made if absent; empty for a fresh one, removed at the end.

    Raises:
        AlreadyRunning: if another server holds the folder.
        ConfigError: if it is another user's, can be entered by others, or its path is too long for a socket.
    """
    folder = Path(chosen).absolute() if chosen else Path(tempfile.mkdtemp(prefix="pedcxr-"))
    made = not chosen or not folder.exists()
    try:
        with _held(folder):
            clear(folder)  # a server killed by SIGKILL leaves its socket, on which the next cannot bind
            try:
                yield folder / _SOCKET
            finally:
                clear(folder)
    finally:
        if made:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        raise _refused(folder, f"is too long for Unix sockets; use at most {_LONGEST_FOLDER} bytes")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise _refused(folder, "belongs to another user; choose a folder of your own")
        if stat.S_IMODE(status.st_mode) != 0o700:
            raise _refused(folder, "can be entered by others; chmod 700 it")
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(folder, f"cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"engine.socket_dir: {folder} is held by a server that runs; stop it, or choose another folder"
            raise AlreadyRunning(message) from None
        yield
    finally:
        os.close(lock)


def clear(folder: Path) -> None:
    """Remove the sockets in a held folder."""
    for leftover in folder.iterdir():
        if leftover.is_socket():  # nothing else: a folder may be named by mistake
            leftover.unlink(missing_ok=True)


def _refused(folder: Path, why: str) -> ConfigError:
    return ConfigError(f"engine.socket_dir: {folder} {why}")
