"""The synchronous client's background thread: start, end, fork, interrupts and interpreter exit."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any

import pytest

from pedcxr_client import Client, ConfigurationError, ConnectionFailed, FilmRequest
from pedcxr_client.request.connection import LoopThread
from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pedcxr-client"]


def run_python(code: str, engine: FakeEngine, path: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code, engine.url, path]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_first_call_starts_the_thread_and_close_ends_it(engine, film):
    with Client(engine.url) as client:
        assert client_threads() == []
        client.report(film)
        assert len(client_threads()) == 1
    assert client_threads() == []
    for call in (client.report, client.payload, lambda film: list(client.reports([FilmRequest(film)]))):
        with pytest.raises(ConfigurationError, match="client: is closed"):
            call(film)
    client.close()


def test_calls_reuse_one_connection(engine, film):
    with Client(engine.url) as client:
        for _ in range(3):
            client.report(film)
        with client.stream(film) as stream:
            list(stream)
        list(client.reports([FilmRequest(film)]))
    assert len({request.peer for request in engine.requests}) == 1


def test_garbage_collection_ends_the_thread(engine, film):
    assert Client(engine.url).report(film).text == TEXT
    gc.collect()
    assert client_threads() == []


def test_a_stream_keeps_its_client(engine, film):
    with Client(engine.url).stream(film) as stream:
        gc.collect()
        assert "".join(stream) == TEXT


def test_threads_share_a_client(engine, film):
    engine.answer = Answer(gap=0.01)
    texts = []
    with Client(engine.url) as client:
        threads = [threading.Thread(target=lambda: texts.append(client.report(film).text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == [TEXT] * 8


def test_close_during_a_call_in_another_thread_ends_the_call(engine, film):
    engine.answer = Answer(stall_after=1)
    errors: list[BaseException] = []
    client = Client(engine.url)

    def report() -> None:
        try:
            client.report(film)
        except ConfigurationError as error:
            errors.append(error)

    thread = threading.Thread(target=report)
    thread.start()
    while not engine.chats:
        time.sleep(0.005)
    client.close()
    thread.join(60)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])
    assert engine.chats[0].disconnected.wait(30)


def test_a_client_can_be_closed_twice_at_once(engine, film):
    client = Client(engine.url)
    client.report(film)
    threads = [threading.Thread(target=client.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client_threads() == []


def test_a_closed_client_leaves_streams_quietly(engine, film):
    engine.answer = Answer(stall_after=1)
    client = Client(engine.url)
    with client.stream(film) as stream:
        next(stream)
        client.close()
    assert engine.chats[0].disconnected.wait(30)


def test_a_closed_client_leaves_reports_quietly(engine, film):
    engine.answer = Answer(stall_after=1)
    engine.reply(Answer())
    client = Client(engine.url)
    with closing(client.reports((FilmRequest(film) for _ in range(9)), concurrency=2)) as results:
        next(results)
        client.close()


def test_a_forked_process_ends_and_may_use_an_unused_client(engine, path):
    code = """
import os, sys
from pedcxr_client import Client
used, unused = Client(sys.argv[1]), Client(sys.argv[1])
used.report(sys.argv[2])
child = os.fork()
if child == 0:
    unused.report(sys.argv[2])
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process = run_python(code, engine, path, "-W", "ignore::DeprecationWarning")  # 3.12 warns of a fork with threads
    assert (process.returncode, process.stderr) == (0, "")
    assert len(engine.chats) == 2


@pytest.mark.parametrize("last_line", ["client.report(sys.argv[2])", "next(client.stream(sys.argv[2]).__enter__())"])
def test_the_interpreter_exits_without_close(engine, path, last_line):
    if "stream" in last_line:
        engine.answer = Answer(stall_after=2)
    code = f"import sys\nfrom pedcxr_client import Client\nclient = Client(sys.argv[1])\n{last_line}\n"
    process = run_python(code, engine, path, "-W", "error")
    assert (process.returncode, process.stderr) == (0, "")
    end = time.monotonic() + 60
    while not (engine.chats[0].answered.is_set() or engine.chats[0].disconnected.wait(0.05)):
        assert time.monotonic() < end, "the request is still open"


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("client.report(sys.argv[2])", Answer(first=60)),
        ("client.report(sys.argv[2])", Answer(stall_after=1)),
        ("with client.stream(sys.argv[2]) as stream: list(stream)", Answer(stall_after=1)),
        ("list(client.reports([FilmRequest(sys.argv[2])]))", Answer(stall_after=1)),
        ("client.model()", Answer(first=60)),
    ],
    ids=["before the response", "during the response", "stream", "reports", "model"],
)
def test_ctrl_c_ends_a_call_at_once_and_closes_the_request(engine, path, call, answer):
    engine.answer = answer
    if "model" in call:
        engine.models_answer = answer
    code = f"""
import signal, sys, threading, time
from pedcxr_client import Client, FilmRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
client = Client(sys.argv[1], model={None if "model" in call else "fake"!r})
def interrupt():
    sys.stdin.readline()
    interrupt.time = time.monotonic()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    {call}
except KeyboardInterrupt:
    print(time.monotonic() - interrupt.time, flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", code, engine.url, path]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        while not engine.requests:
            time.sleep(0.005)
        process.stdin.write("\n")
        process.stdin.flush()
        assert float(process.stdout.readline()) < 20, "the answer would take 60 s, or never come"
        assert engine.requests[-1].disconnected.wait(30), "the process still runs and has closed the request"
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("call", ["report", "reports"])
def test_a_thread_that_cannot_start_is_an_error(engine, film, monkeypatch, call):
    client = Client(engine.url)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(ConnectionFailed, match=r"can't start|no thread can start"):
        list(client.reports([FilmRequest(film)])) if call == "reports" else client.report(film)


def test_a_loop_that_cannot_start_is_an_error(engine, film, monkeypatch):
    def fail() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "new_event_loop", fail)
    with Client(engine.url) as client, pytest.raises(ConnectionFailed, match="Too many open files"):
        list(client.reports([FilmRequest(film)]))


def test_a_call_from_the_clients_own_thread_is_an_error():
    async def nothing() -> None: ...

    async def call_itself() -> None:
        loop.run(nothing)

    loop = LoopThread(nothing)
    with pytest.raises(RuntimeError, match="its own thread"):
        loop.run(call_itself)
    loop.stop()
