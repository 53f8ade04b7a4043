"""A client in forked processes: each has connections of its own and the reports of its own films."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers.fake_engine import Answer, FakeEngine

START = """
import asyncio, os, sys, warnings
from pedcxr_client import AsyncClient, Client, ConfigurationError, FilmRequest
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of a fork with threads
url, path, film = sys.argv[1], sys.argv[2], open(sys.argv[2], "rb").read()

def fork(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child

def check(*children):
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)

def refused(call, words):
    try:
        call()
    except ConfigurationError as error:
        assert words in str(error), error
    else:
        raise AssertionError("not refused")
"""

FOUR_FORKS = {
    "sync": """
client = Client(url)
def report(years):
    texts = [client.report(film, age=f"{years}y").text]
    texts += [result.report.text for result in client.reports([FilmRequest(film, age=f"{years}y")])]
    assert all(f"{years}-year-old" in text for text in texts), (years, texts)
""",
    "async": """
client, runners = AsyncClient(url), {}
def report(years):
    async def run():
        return [(await client.report(film, age=f"{years}y")).text for _ in range(2)]
    texts = runners.setdefault(os.getpid(), asyncio.Runner()).run(run())
    assert all(f"{years}-year-old" in text for text in texts), (years, texts)
""",
}


def run(code: str, engine: FakeEngine, path: str) -> None:
    command = [sys.executable, "-c", START + code, engine.url, path]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("twin", FOUR_FORKS)
def test_four_forks_of_a_used_client_get_their_own_reports(engine, path, twin):
    engine.answer = Answer(echo_age=True, gap=0.001, pieces=("FINDINGS:", *[" The lungs are clear."] * 3))
    code = """
report(2)
for _ in range(4):
    children = [fork(lambda years=years: (report(years), report(years + 4))) for years in (3, 4, 5, 6)]
    report(2)
    check(*children)
"""
    run(FOUR_FORKS[twin] + code, engine, path)
    assert len(engine.chats) == 2 * (1 + 4 * 9)


def test_a_fork_leaves_the_calls_and_connections_of_its_parent(engine, path):
    engine.answer = Answer(echo_age=True)
    code = """
import openai
client = Client(url)
client.report(film, age="6y")
def in_the_child():
    client.openai
    client.close()
    refused(lambda: client.report(film), "closed")
check(fork(in_the_child))
with client.stream(film, age="7y") as stream:
    pieces = [next(stream)]
    check(fork(lambda: refused(lambda: next(stream), "parent process")))
    check(fork(lambda: stream.__exit__(None, None, None)))
    pieces += stream
assert "7-year-old" in "".join(pieces) == stream.report.text
results = client.reports([FilmRequest(film, age="8y")] * 3, concurrency=1)
next(results)
check(fork(lambda: refused(lambda: next(results), "parent process")), fork(results.close))
assert len(list(results)) == 2
other = Client(url, http_client=openai.DefaultAsyncHttpxClient())
other.report(film, age="9y")
check(fork(lambda: refused(lambda: other.report(film), "http_client")))
"""
    run(code, engine, path)
    assert len({request.peer for request in engine.chats}) == 2, "one connection for each of the two clients"
