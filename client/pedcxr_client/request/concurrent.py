"""Reports of many films at once, with a limit on the requests in flight and on those read ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from pedcxr_client.errors import ConfigurationError, PedcxrError
from pedcxr_client.reports.report import Report
from pedcxr_client.request.film_request import FilmRequest, Result

Write = Callable[[FilmRequest], Awaitable[Report]]


class ReportPool:
    """Requests in flight and their results, on one event loop."""

    def __init__(self, write: Write, concurrency: int) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"concurrency: {concurrency} must be 1 or more")
        self._write, self._concurrency = write, concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[Result]] = set()
        self._finished: asyncio.Queue[asyncio.Task[Result]] = asyncio.Queue()

    @property
    def is_empty(self) -> bool:
        """Whether the caller has read the result of every request."""
        return not self._tasks

    @property
    def must_read(self) -> bool:
        """Whether the caller must read a result before the next request: one is ready, or the pool is full.

        The pool holds ``2 * concurrency`` requests, so that it stays busy while the caller handles a result.
        """
        return len(self._tasks) >= 2 * self._concurrency or not self._finished.empty()

    async def add(self, index: int, request: FilmRequest) -> None:
        """Start a request as soon as fewer than ``concurrency`` are in flight."""
        if not isinstance(request, FilmRequest):
            raise ConfigurationError(
                "reports: takes FilmRequest objects; wrap each film: reports(FilmRequest(film) for film in films)"
            )
        task = asyncio.create_task(self._run(index, request))
        self._tasks.add(task)
        task.add_done_callback(self._finished.put_nowait)
        await asyncio.sleep(0)  # let it start before the caller reads the next request

    async def result(self) -> Result:
        """Wait for the next result."""
        task = await self._finished.get()
        self._tasks.discard(task)
        return task.result()

    async def close(self) -> None:
        """Cancel the requests in flight, on the server too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, index: int, request: FilmRequest) -> Result:
        async with self._slots:
            try:
                return Result(index=index, request=request, report=await self._write(request))
            except PedcxrError as error:
                return Result(index=index, request=request, error=error)


async def as_they_finish(
    write: Write, requests: Iterable[FilmRequest], concurrency: int
) -> AsyncGenerator[Result, None]:
    """Yield the results of ``requests`` in the order in which they finish.

    Reads at most ``2 * concurrency`` requests ahead of the results. Closing the generator cancels all requests.
    """
    pool = ReportPool(write, concurrency)
    try:
        for index, request in enumerate(requests):
            await pool.add(index, request)
            while pool.must_read:
                yield await pool.result()
        while not pool.is_empty:
            yield await pool.result()
    finally:
        await pool.close()
