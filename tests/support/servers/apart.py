"""A fake engine that runs apart from its gateways, with the middleware of the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from pedcxr_serve.engine import access
from pedcxr_serve.engine.access import EngineAccess
from pedcxr_serve.engine.description import EngineDescription
from tests.support.servers.fake_engine import FakeEngine, RecordedRequest

DESCRIPTION = EngineDescription(
    model="fake", max_new_tokens=400, slots=32, max_preparing=2, max_starting=8, image_tokens=64, image_size=(448, 448)
)


@contextmanager
def engine_apart(
    folder: Path, *, key_file: Path | None = None, tcp: bool = False, description: EngineDescription = DESCRIPTION
) -> Iterator[FakeEngine]:
    """Run the engine until the end of the block, on the socket ``engine.sock`` in the folder or on a free port."""
    folder.mkdir(mode=0o700, exist_ok=True)
    variables = access.prepare(folder, description, key_file)
    with mock.patch.dict(os.environ, variables):
        engine = FakeEngine(uds=None if tcp else folder / "engine.sock", middleware=EngineAccess)
        engine.has_plugin = True
        engine.__enter__()
    try:
        yield engine
    finally:
        engine.__exit__()


def reports(engine: FakeEngine) -> list[RecordedRequest]:
    """Return the requests for reports that the engine got, without the probes of gateways that are idle."""
    return [request for request in engine.chats if "cache_salt" in request.json]
