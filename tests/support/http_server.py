"""A small HTTP server on loopback, in the place of a service that the tests cannot have, and a port without one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers without a log. A subclass has ``do_GET`` or ``do_POST``."""

    def body(self) -> bytes:
        """Return the body of the request."""
        return self.rfile.read(int(self.headers["content-length"]))

    def answer(self, body: bytes = b"", *, status: int = 200, kind: str = "application/json") -> None:
        """Send the whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[Handler]) -> Iterator[int]:
    """Serve until the end of the block; yield the port on 127.0.0.1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of 127.0.0.1 until the end of the block.

    It refuses connections unless the test listens there, with ``SO_REUSEADDR``. A port that was closed instead could
    be given to another process.
    """
    with socket.socket() as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        plug.bind(("127.0.0.1", 0))
        yield plug.getsockname()[1]
