"""The processes of a server on the same machine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from pedcxr_client.bench import watch
from tests.support.http_server import Handler, serving

PROGRAM = "import sys; sys.stdin.read()"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-P", "-W", "ignore", "-m", "tokenize"], "tokenize"),
        (["-B", "reader.py"], "reader.py"),
        (["-c", PROGRAM], "python"),
    ],
)
def test_a_process_is_named_after_its_module_or_script(tmp_path: Path, words: list[str], name: str) -> None:
    (tmp_path / "reader.py").write_text(PROGRAM)
    with subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, cwd=tmp_path) as process:
        (shown,) = watch.processes(process.pid)
        process.communicate(b"")
    assert shown.name.startswith(name)
    assert (shown.pid, process.returncode) == (process.pid, 0)
    assert watch.processes(process.pid) == []


PAGES = {
    "/a": 'vllm:mm_cache_hits_total{engine="0"} 3.0\nprocess_start_time_seconds 100.0\nvllm:kv_cache_usage_perc 0.2\n',
    "/b": "vllm:mm_cache_hits_total 4.0\nprocess_start_time_seconds 200.0\nvllm:kv_cache_usage_perc 0.6",
}


@pytest.mark.parametrize(
    ("paths", "counters", "kv"),
    [
        (["/a"], {"vllm:mm_cache_hits_total": 3, "process_start_time_seconds": 100}, 0.2),
        (["/a", "/b"], {"vllm:mm_cache_hits_total": 7, "process_start_time_seconds": 300}, 0.4),
        (["/a", "/absent"], {}, None),
        ([], {}, None),
    ],
    ids=str,
)
def test_pages_of_replicas_are_added_up(paths: list[str], counters: dict[str, float], kv: float | None) -> None:
    class Pages(Handler):
        def do_GET(self) -> None:
            page = PAGES.get(self.path, "")
            self.answer(page.encode(), status=200 if page else 404, kind="text/plain")

    async def read(port: int) -> tuple[dict[str, float], watch.Scrapes]:
        scrapes = watch.Scrapes()
        async with aiohttp.ClientSession() as session:
            metrics = watch.Metrics(session, [f"http://127.0.0.1:{port}{path}" for path in paths])
            following = asyncio.create_task(metrics.follow(scrapes, lambda: 1.5))
            values = await metrics.counters()
            while kv is not None and not scrapes.series:
                await asyncio.sleep(0.01)
            following.cancel()
        return values, scrapes

    with serving(Pages) as port:
        values, scrapes = asyncio.run(read(port))
    assert values == counters
    assert scrapes.series == ([] if kv is None else [{"time": 1.5, "kv": pytest.approx(kv)}])
