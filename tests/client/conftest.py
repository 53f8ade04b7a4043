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
from tests.support.fake_engine import FakeEngine
from tests.support.paths import REAL_FILMS

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
        pytest.skip(f"the real films are not here: {FILMS.name} lies beside the checkout, in shared/data")
    return FILMS


@pytest.fixture(scope="session")
def film() -> bytes:
    """An 8-bit grey PNG that holds nothing but pixels."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path, film: bytes) -> str:
    """That film in a file."""
    path = tmp_path / "film.png"
    path.write_bytes(film)
    return str(path)


class Sync:
    """Drives Client; its twin drives AsyncClient, so that each test runs against both."""

    def report(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **asked: Any) -> Report:
        with Client(url, **client or {}) as made:
            return made.report(film, **asked)

    def payload(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **asked: Any) -> bytes:
        with Client(url, **client or {}) as made:
            return made.payload(film, **asked)

    def stream(self, url: str, film: Any, *, stop_after: int | None = None, **asked: Any) -> tuple[list[str], Any]:
        """The pieces and the report; the pieces read and None if `stop_after` is given."""
        pieces: list[str] = []
        with Client(url) as made, made.stream(film, **asked) as stream:
            for piece in stream:
                pieces.append(piece)
                if len(pieces) == stop_after:
                    return pieces, None
            return pieces, stream.report

    def reports(
        self, url: str, requests: Any, *, concurrency: int = 8, stop_after: int | None = None, **client: Any
    ) -> list[Result]:
        """All results, or the first ones."""
        with Client(url, **client) as made, closing(made.reports(requests, concurrency=concurrency)) as results:
            return list(itertools.islice(results, stop_after))


class Async:
    def report(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **asked: Any) -> Report:
        async def run() -> Report:
            async with AsyncClient(url, **client or {}) as made:
                return await made.report(film, **asked)

        return asyncio.run(run())

    def payload(self, url: str, film: Any, *, client: dict[str, Any] | None = None, **asked: Any) -> bytes:
        async def run() -> bytes:
            async with AsyncClient(url, **client or {}) as made:
                return await made.payload(film, **asked)

        return asyncio.run(run())

    def stream(self, url: str, film: Any, *, stop_after: int | None = None, **asked: Any) -> tuple[list[str], Any]:
        async def run() -> tuple[list[str], Any]:
            pieces: list[str] = []
            async with AsyncClient(url) as made, made.stream(film, **asked) as stream:
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
            taken: list[Result] = []
            async with (
                AsyncClient(url, **client) as made,
                aclosing(made.reports(requests, concurrency=concurrency)) as results,
            ):
                async for result in results:
                    taken.append(result)
                    if len(taken) == stop_after:
                        break
            return taken

        return asyncio.run(run())


@pytest.fixture(params=[Sync(), Async()], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Any:
    return request.param
