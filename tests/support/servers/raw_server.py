"""A server for tests that sends fixed bytes and then breaks: it closes, falls silent, or ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def raw_server(answer: bytes, *, stall: bool = False) -> Iterator[str]:
    """Serve until the end of the block and yield the base URL.

    Each request gets ``answer``. Then the server closes the connection, or with ``stall`` sends nothing more.
    """
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client, or the end of the block, may close the connection first
            while _read_request(connection):
                connection.sendall(answer)
                if not stall:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def _read_request(connection: socket.socket) -> bool:
    """Read one request to its end. Return False if the client has closed the connection."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return False
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-len")]
        left = sum(lengths) - len(body)
        while left > 0:
            left -= len(connection.recv(65536)) or left
    except OSError:
        return False
    return True
