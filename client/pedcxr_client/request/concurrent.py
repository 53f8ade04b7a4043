"""Reports of many films at once, with a limit on the requests in flight and on those read ahead."""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from pedcxr_client.errors import ConfigurationError, ConnectionFailed, PedcxrError
from pedcxr_client.reports.report import Report
from pedcxr_client.request.connection import check_process
from pedcxr_client.request.film_request import FilmRequest, Result

T = TypeVar("T")
Write = Callable[[FilmRequest], Awaitable[Report]]


class ReportPool:
    """Requests in flight and their results, on one event loop.

    At most ``concurrency`` requests are in flight. The pool holds twice as many, so that it stays busy while the caller
    handles a result. It reads the next request while it waits for a result, but only if no result is ready.
    """

    def __init__(self, write: Write, requests: AsyncIterator[FilmRequest], concurrency: int) -> None:
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigurationError(f"concurrency: {concurrency!r} must be an integer, 1 or more")
        self._write, self._requests, self._concurrency = write, requests, concurrency
        self._process = os.getpid()
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[Result]] = set()
        self._finished: deque[asyncio.Task[Result]] = deque()
        self._reading: asyncio.Future[FilmRequest] | None = None
        self._count = 0
        self._at_end = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    async def next(self) -> Result | None:
        """Return the next result as soon as it exists, or None after the last one. Raise an error of the iterable."""
        check_process(self._process)
        while True:
            if self._finished:
                task = self._finished.popleft()
                self._tasks.discard(task)
                return task.result()
            if self._error is not None:
                raise self._error
            if not self._at_end and self._reading is None and len(self._tasks) < 2 * self._concurrency:
                self._reading = asyncio.ensure_future(anext(self._requests))
                self._reading.add_done_callback(self._start_request)
            elif self._at_end and not self._tasks:
                return None
            else:
                await self._changed.wait()
                self._changed.clear()

    async def close(self) -> None:
        """Cancel the requests in flight, on the server too. In a forked process, leave those of the parent."""
        if self._process != os.getpid():
            return
        self._at_end = True
        tasks: list[asyncio.Future[Any]] = [*self._tasks, *([] if self._reading is None else [self._reading])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_request(self, reading: asyncio.Future[FilmRequest]) -> None:
        self._reading = None
        self._changed.set()
        if reading.cancelled():
            return
        error = reading.exception()
        if isinstance(error, StopAsyncIteration):
            self._at_end = True
        elif error is not None:
            self._error = error
        elif not isinstance(reading.result(), FilmRequest):
            self._error = ConfigurationError(
                "reports: takes FilmRequest objects; wrap each film: reports(FilmRequest(film) for film in films)"
            )
        elif not self._at_end:
            task = asyncio.ensure_future(self._run(self._count, reading.result()))
            self._count += 1
            self._tasks.add(task)
            task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[Result]) -> None:
        self._finished.append(task)
        self._changed.set()

    async def _run(self, index: int, request: FilmRequest) -> Result:
        async with self._slots:
            try:
                return Result(index=index, request=request, report=await self._write(request))
            except PedcxrError as error:
                return Result(index=index, request=request, error=error)
            except Exception as error:  # an unforeseen error of one film must not end the others
                unforeseen = PedcxrError(f"unexpected {type(error).__name__}; see the error's __cause__")
                unforeseen.__cause__ = error
                return Result(index=index, request=request, error=unforeseen)


async def as_they_finish(
    write: Write, requests: Iterable[FilmRequest] | AsyncIterable[FilmRequest], concurrency: int
) -> AsyncGenerator[Result, None]:
    """Yield the results of ``requests`` in the order in which they finish.

    Reads at most ``2 * concurrency`` requests ahead of the results. Closing the generator cancels all requests.
    """
    source = aiter(requests) if isinstance(requests, AsyncIterable) else _read_on_the_loop(requests)
    pool = ReportPool(write, source, concurrency)
    try:
        while (result := await pool.next()) is not None:
            yield result
    finally:
        await pool.close()
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _read_on_the_loop(iterable: Iterable[T]) -> AsyncGenerator[T, None]:
    for item in iterable:
        yield item


class ThreadedIterator(AsyncIterator[T]):
    """Reads an iterable, which may block, in a daemon thread of its own: one item for each ``anext``.

    The thread has a copy of the context variables of the thread that creates this object. It starts on creation.

    Raises:
        ConnectionFailed: if the thread cannot start.
    """

    def __init__(self, iterable: Iterable[T]) -> None:
        self._iterator = iter(iterable)
        self._jobs: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[T]] | None]
        self._jobs = queue.SimpleQueue()
        self._is_reading = False
        self._process = os.getpid()
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._serve,), name="pedcxr-requests", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise ConnectionFailed("no thread can start to read the requests; free some resources") from error

    async def __anext__(self) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._is_reading = True
        self._jobs.put((loop, future))
        return await future

    def close(self) -> None:
        """End the thread and close the iterable. If the iterable blocks now, its thread ends when it returns."""
        if self._process == os.getpid():
            self._jobs.put(None)
            if not self._is_reading and threading.current_thread() is not self._thread:
                self._thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future = job
            try:
                deliver: Callable[[], None] = partial(_set_result, future, next(self._iterator))
            except StopIteration:
                deliver = partial(_set_exception, future, StopAsyncIteration())
            except BaseException as error:
                deliver = partial(_set_exception, future, error)
            self._is_reading = False
            try:
                loop.call_soon_threadsafe(deliver)
            except RuntimeError:  # the client was closed, and its loop with it
                break
            del loop, future, deliver, job
        if (close := getattr(self._iterator, "close", None)) is not None:
            close()


def _set_result(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
