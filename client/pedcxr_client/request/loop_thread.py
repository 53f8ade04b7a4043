"""An event loop in a background thread, through which the synchronous client uses the asynchronous code.

``anyio.from_thread.start_blocking_portal`` does the same, but its generator stops the loop with a blocking call when it
is garbage collected. That call never returns in a forked process, or when the collector runs in the loop's own thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar, TypeVarTuple, Unpack

from pedcxr_client.errors import ConfigurationError

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class LoopThread:
    """Runs coroutines on an event loop in a daemon thread, which the first call starts.

    Args:
        at_end: awaited on the loop when it stops, after the cancellation of all running coroutines.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end = at_end
        self._lock = threading.Lock()
        self._process: int | None = None
        self._thread: threading.Thread | None = None
        self.stopped = False

    def start(self) -> None:
        """Start the thread unless it runs already.

        Raises:
            ConfigurationError: in a process that was forked after the start; the thread exists in the parent only.
            RuntimeError: after :meth:`stop`.
        """
        self._check_process()
        with self._lock:
            self._start()

    def run(self, function: Callable[[Unpack[Arguments]], Coroutine[Any, Any, T]], *arguments: *Arguments) -> T:
        """Run a coroutine function on the loop and wait for its result.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the coroutine and propagates at once.

        Raises:
            ConfigurationError, RuntimeError: as :meth:`start` does.
        """
        self._check_process()
        if threading.current_thread() is self._thread:
            raise RuntimeError("the client cannot be used in its own thread, such as from a metrics hook")
        with self._lock:
            self._start()
            future = asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the client was closed during the call") from None
        finally:
            future.cancel()
            del future  # an exception's traceback refers to this frame, and the future to the exception

    def stop(self, timeout: float | None = None) -> None:
        """Cancel what runs, await ``at_end`` and end the thread; wait for that up to ``timeout`` seconds."""
        if self._process not in (None, os.getpid()):
            return
        with self._lock:
            self.stopped = True
            thread = self._thread
            if thread is not None and thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop_event.set)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _check_process(self) -> None:
        if self._process not in (None, os.getpid()):
            raise ConfigurationError("client: is in use by the parent process; create one client in each process")

    def _start(self) -> None:
        if self.stopped:
            raise RuntimeError("the client is closed")
        if self._thread is None:
            ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
            thread = threading.Thread(target=_serve, args=(ready, self._at_end), name="pedcxr-client", daemon=True)
            thread.start()
            self._loop, self._stop_event = ready.result()
            self._thread, self._process = thread, os.getpid()


def _serve(
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]], at_end: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await at_end()

    try:
        with asyncio.Runner() as runner:
            runner.run(main())
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)  # such as too many open files
