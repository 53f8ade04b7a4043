"""Many films at once: bounded in what is under way, in what is read ahead and in what waits to be taken."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future

from pedcxr_client.errors import ConfigurationError, PedcxrError
from pedcxr_client.reports.report import Report
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.result import Result

Write = Callable[[FilmRequest], Awaitable[Report]]
OpenWriter = Callable[[], contextlib.AbstractAsyncContextManager[Write]]


async def as_they_finish(
    write: Write, requests: Iterable[FilmRequest], concurrency: int
) -> AsyncGenerator[Result, None]:
    """Write reports of ``requests``, ``concurrency`` at a time. Ends early without leaving one under way.

    Reads at most ``2 * concurrency`` requests beyond those whose results were taken.
    """
    _check(concurrency)
    source = enumerate(requests)
    results: asyncio.Queue[Result | Exception | None] = asyncio.Queue(concurrency)

    async def work() -> None:
        end: Exception | None = None
        try:
            for index, request in source:  # shared: whoever is free takes the next one
                await results.put(await settled(write, index, request))
        except Exception as error:
            end = error  # of the iterable, or a bug: the caller's to see
        await results.put(end)

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        working = concurrency
        while working:
            result = await results.get()
            if isinstance(result, Exception):
                raise result
            if result is None:
                working -= 1
            else:
                yield result
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def as_they_finish_in_a_thread(
    open_writer: OpenWriter, requests: Iterable[FilmRequest], concurrency: int
) -> Generator[Result, None, None]:
    """:func:`as_they_finish` for those who have no event loop, or are inside one that must not be blocked.

    The iterable is asked in the caller's thread; the requests run on a loop in a thread of its own, so that leaving
    early can close them, which a thread that waits for a socket could not.
    """
    _check(concurrency)
    finished: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    slots = asyncio.Semaphore(concurrency)
    with _loop_in_a_thread(open_writer) as (loop, write):

        async def one(index: int, request: FilmRequest) -> Result:
            async with slots:
                return await settled(write, index, request)

        under_way = 0
        for index, request in enumerate(requests):
            asyncio.run_coroutine_threadsafe(one(index, request), loop).add_done_callback(finished.put)
            under_way += 1
            while under_way >= 2 * concurrency or not finished.empty():
                under_way -= 1
                yield finished.get().result()
        for _ in range(under_way):
            yield finished.get().result()


async def settled(write: Write, index: int, request: FilmRequest) -> Result:
    """The result of one request; its error is its own and nobody else's."""
    if not isinstance(request, FilmRequest):
        raise ConfigurationError(
            "reports: takes FilmRequests; wrap each film, as in reports(FilmRequest(film) for film in films)"
        )
    try:
        return Result(index=index, request=request, report=await write(request))
    except PedcxrError as error:
        return Result(index=index, request=request, error=error)


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise ConfigurationError(f"concurrency: {concurrency} must be 1 or more")


@contextlib.contextmanager
def _loop_in_a_thread(open_writer: OpenWriter) -> Iterator[tuple[asyncio.AbstractEventLoop, Write]]:
    """An event loop and a writer on it; what still runs at the end is cancelled and waited for."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, Write]] = Future()

    async def main() -> None:
        async with open_writer() as write:
            over = asyncio.Event()
            ready.set_result((asyncio.get_running_loop(), over, write))
            await over.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="pedcxr-reports", daemon=True)
    thread.start()
    loop, over, write = ready.result()
    try:
        yield loop, write
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
