from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pedcxr_client import AsyncClient, Client, Report, Result
from tests.support.paths import REAL_FILMS
from tests.support.servers.fake_engine import FakeEngine

FILMS = REAL_FILMS


@pytest.fixture(scope="session")
def one_engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def engine(one_engine: FakeEngine) -> FakeEngine:
    one_engine.reset()
    return one_engine


@pytest.fixture
def films() -> Path:
    if not FILMS.is_dir():
        pytest.skip(f"the real films are absent; expected in {FILMS.name} of shared/data beside the checkout")
    return FILMS


@pytest.fixture(scope="session")
def film() -> bytes:
    """An 8-bit grayscale PNG without metadata."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path, film: bytes) -> str:
    """The path of a file that contains ``film``."""
    path = tmp_path / "film.png"
    path.write_bytes(film)
    return str(path)


class Sync:
    """Calls Client. :class:`Async` calls AsyncClient the same way, so that one test covers both."""

    def report(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **options: Any) -> Report:
        with Client(url, **client or {}) as instance:
            return instance.report(film, **options)

    def payload(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **options: Any) -> bytes:
        with Client(url, **client or {}) as instance:
            return instance.payload(film, **options)

    def stream(self, url: str, film: Any, *, stop_after: int | None = None, **options: Any) -> tuple[list[str], Any]:
        """Return the pieces and the report, or the first ``stop_after`` pieces and None."""
        pieces: list[str] = []
        with Client(url) as instance, instance.stream(film, **options) as stream:
            for piece in stream:
                pieces.append(piece)
                if len(pieces) == stop_after:
                    return pieces, None
            return pieces, stream.report

    def reports(
        self, url: str, requests: Any, *, concurrency: int = 8, stop_after: int | None = None, **client: Any
    ) -> list[Result]:
        """Return all results, or the first ``stop_after``."""
        with (
            Client(url, **client) as instance,
            closing(instance.reports(requests, concurrency=concurrency)) as results,
        ):
            return list(itertools.islice(results, stop_after))


class Async:
    def report(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **options: Any) -> Report:
        async def run() -> Report:
            async with AsyncClient(url, **client or {}) as instance:
                return await instance.report(film, **options)

        return asyncio.run(run())

    def payload(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **options: Any) -> bytes:
        async def run() -> bytes:
            async with AsyncClient(url, **client or {}) as instance:
                return await instance.payload(film, **options)

        return asyncio.run(run())

    def stream(self, url: str, film: Any, *, stop_after: int | None = None, **options: Any) -> tuple[list[str], Any]:
        async def run() -> tuple[list[str], Any]:
            pieces: list[str] = []
            async with AsyncClient(url) as instance, instance.stream(film, **options) as stream:
                async for piece in stream:
                    pieces.append(piece)
                    if len(pieces) == stop_after:
                        return pieces, None
                return pieces, stream.report

        return asyncio.run(run())

    def reports(
        self, url: str, requests: Any, *, concurrency: int = 8, stop_after: int | None = None, **client: Any
    ) -> list[Result]:
        async def run() -> list[Result]:
            first: list[Result] = []
            async with (
                AsyncClient(url, **client) as instance,
                aclosing(instance.reports(requests, concurrency=concurrency)) as results,
            ):
                async for result in results:
                    first.append(result)
                    if len(first) == stop_after:
                        break
            return first

        return asyncio.run(run())


@pytest.fixture(params=[Sync(), Async()], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Any:
    return request.param
