"""Many invalid requests and connections at a gateway process: its memory stays constant and others are served."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pedcxr_serve.gateway.request.validation import SCHEMA
from tests.benchmarks import processes
from tests.benchmarks.processes import ENGINE_SOCKET, Gateway
from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import CHAT, ERROR_KEYS, eventually

BODIES = 5_000
CONNECTIONS = 10_000
WAVE = 1_000
WARM_UP = 3  # waves until the allocator has reserved its memory
GROWTH_MIB = 24.0
"""Memory that the gateway may grow by: allocators do not return all free memory."""
FILM = "data:image/png;base64," + "iVBORw0KGgoA" * 40
REQUEST: dict[str, Any] = {
    "model": "bench",
    "messages": [
        {"role": "system", "content": "You are an expert radiologist."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": FILM, "detail": "auto"}},
                {"type": "text", "text": "Generate a report."},
            ],
        },
    ],
    "max_tokens": 300,
    "temperature": 0.2,
    "stop": ["###"],
    "stream": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flood")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[FakeEngine]:
    with FakeEngine(uds=folder / ENGINE_SOCKET) as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(folder: Path, engine: FakeEngine) -> Iterator[Gateway]:
    with processes.gateway(folder, "hostile", "other") as gateway:
        yield gateway


class Caller:
    """One tenant on one connection, which is opened again after the gateway closes it."""

    def __init__(self, gateway: Gateway, tenant: str) -> None:
        self._headers = {"Authorization": f"Bearer {gateway.keys[tenant]}", "Content-Type": "application/json"}
        self._line = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, http.client.HTTPMessage, bytes]:
        self._line.request("POST", CHAT, body, self._headers | (headers or {}))
        answer = self._line.getresponse()
        return answer.status, answer.headers, answer.read()

    def require_report(self) -> None:
        status, _, body = self.post(json.dumps(REQUEST).encode())
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, TEXT)

    def close(self) -> None:
        self._line.close()


@pytest.fixture
def hostile(gateway: Gateway) -> Iterator[Caller]:
    with contextlib.closing(Caller(gateway, "hostile")) as caller:
        yield caller


@pytest.fixture
def other(gateway: Gateway) -> Iterator[Caller]:
    with contextlib.closing(Caller(gateway, "other")) as caller:
        yield caller


def cut_at(where: float, raw: bytes, put: bytes, over: int) -> bytes:
    at = int(where * len(raw))
    return raw[:at] + put + raw[at + over :]


def with_value(path: tuple[Any, ...], value: object) -> bytes:
    """Return `REQUEST` with one value inserted at a path."""
    request: Any = json.loads(json.dumps(REQUEST))
    place = request
    for step in path[:-1]:
        place = place[step]
    if isinstance(place, list):
        place[path[-1] :] = [value]
    else:
        place[path[-1]] = value
    return json.dumps(request).encode()


PARENTS: tuple[tuple[Any, ...], ...] = (
    (),
    ("messages",),
    ("messages", 0),
    ("messages", 1),
    ("messages", 1, "content"),
    ("messages", 1, "content", 0),
    ("messages", 1, "content", 0, "image_url"),
    ("messages", 1, "content", 1),
)
LISTS = (("messages",), ("messages", 1, "content"))
FIELDS = {field.name for field in SCHEMA.walk()}
NAMES = (*FIELDS, "uuid", "priority", "tools", "__class__", "\ud800", "", FILM, "a" * 5000)
ODD = (
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "\ud83d", "\udc00\ud800", "\u202e", "x" * 65, "x" * 9_000, "x" * 40_000, "user", "system", "1",
    FILM, "data:image/png;base64,", "data:image/png;base64,A", "data:image/png,", "data:text/plain;base64,AAAA",
    "http://169.254.169.254/", "file:///etc/passwd", [], {}, [[]], [None], [""], ["x"] * 5, [[[[[[]]]]]],
    {"type": "text"}, {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": FILM}},
    {"role": "user", "content": "x"}, {"role": "user", "content": []}, {"url": FILM}, {"": ""}, ["x"] * 200,
)  # fmt: skip
TOKENS = (
    b"NaN", b"-Infinity", b"1e999999", b"9" * 5000, b'"\\ud800"', b'"\\x"', b"[" * 20_000, b'{"a":' * 20_000, b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", b'"', b'\\"', b'"data:image/png;base64,AAAA"', b"'", b",", b"}", b"]", b"{}", b"[]",
    b'"stream":true,"stream":false,', b'"n":1,"\\u006e":1,', b"/*x*/", b"01", b"+1", b".5", b"tru", b"\\", b"\r\n" * 99,
)  # fmt: skip
PLACES = st.floats(0, 1, exclude_max=True)
VALUES = st.sampled_from(ODD) | st.recursive(
    st.integers() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
RAW = json.dumps(REQUEST).encode()
WITH_VALUE = st.builds(
    lambda parent, name, value: with_value((*parent, 1 if parent in LISTS else name), value),
    st.sampled_from(PARENTS),
    st.sampled_from(NAMES),
    VALUES,
)
WITH_TOKEN = st.builds(cut_at, PLACES, st.just(RAW), st.sampled_from(TOKENS), st.integers(0, 9))
DAMAGED = st.builds(cut_at, PLACES, st.just(RAW), st.binary(max_size=8), st.integers(0, 400))
ORDINARY = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(-0.5, 2.5) | st.integers(0, 2),
        "max_tokens": st.integers(-1, 2_000_000),
        "stream": st.booleans(),
        "stop": st.text(max_size=70) | st.lists(st.text(max_size=4), max_size=5),
        "seed": st.integers(),
        "user": st.text(max_size=9),
        "n": st.integers(1, 2),
    },
).map(lambda more: json.dumps(REQUEST | more).encode())
BODY_OF = ORDINARY | WITH_VALUE | WITH_TOKEN | DAMAGED | st.binary(max_size=80)


@pytest.mark.slow
def test_five_thousand_bodies(gateway: Gateway, hostile: Caller, other: Caller) -> None:
    statuses: dict[int, int] = {}
    count, memory = itertools.count(), [0.0]

    @settings(
        max_examples=BODIES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(BODY_OF)
    def send(body: bytes) -> None:
        number = next(count)
        status, headers, answer = hostile.post(body, {"X-Request-Id": f"r{number}"})
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (200, 400, 404), (status, answer)
        assert headers["X-Request-Id"] == f"r{number}"
        if status != 200:
            error = json.loads(answer)["error"]
            assert set(error) == ERROR_KEYS
            assert len(answer) < 2_000, "an error does not repeat the request"
        if number % 100 == 0:
            other.require_report()
        if number == BODIES // 5:
            memory[0] = gateway.memory_mib()

    send()
    other.require_report()
    assert sum(statuses.values()) >= BODIES
    assert statuses[200] > BODIES / 20 and statuses[400] > BODIES / 2, statuses
    assert gateway.memory_mib() - memory[0] < GROWTH_MIB


def silent(_: socket.socket) -> None:
    pass


def half_a_line(plug: socket.socket) -> None:
    plug.sendall(b"POST /v1/chat/comp")


def half_a_body(plug: socket.socket) -> None:
    plug.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n{" % CHAT.encode())


def noise(plug: socket.socket) -> None:
    plug.sendall(bytes(range(256)))


def reset(plug: socket.socket) -> None:
    plug.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.slow
def test_ten_thousand_connections(gateway: Gateway, other: Caller) -> None:
    address = urlsplit(gateway.url).hostname, urlsplit(gateway.url).port
    ways: tuple[Callable[[socket.socket], None], ...] = (silent, half_a_line, half_a_body, noise, reset)

    def wave() -> None:
        plugs = [socket.create_connection(address, timeout=60) for _ in range(WAVE)]
        for plug, way in zip(plugs, itertools.cycle(ways)):
            with contextlib.suppress(OSError):
                way(plug)
        other.require_report()
        for plug in plugs:
            plug.close()
        eventually(lambda: gateway.open_files() <= files)

    other.require_report()  # its connection to the engine may still be open
    files, began = gateway.open_files(), time.monotonic()
    for _ in range(WARM_UP):
        wave()
    memory = gateway.memory_mib()
    for _ in range(CONNECTIONS // WAVE - WARM_UP):
        wave()
    other.require_report()
    eventually(lambda: gateway.open_files() <= files)
    assert gateway.memory_mib() - memory < GROWTH_MIB
    assert time.monotonic() - began < 60


def test_unread_answers_are_not_buffered(gateway: Gateway, engine: FakeEngine, other: Caller) -> None:
    """Each of 50 clients has an answer of 20 MB and reads nothing; the gateway buffers less than 2 MiB for each."""
    engine.reply(*[Answer(pieces=("x" * 100_000,) * 200)] * 50)
    body = json.dumps(REQUEST | {"stream": True}).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {gateway.keys['hostile']}"]
    request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    address, before, earlier = urlsplit(gateway.url), gateway.memory_mib(), len(engine.chats)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            plug = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
            plug.sendall(request)
        eventually(lambda: len(engine.chats) == earlier + 50)
        chats = engine.chats[earlier : earlier + 50]
        for _ in range(50):
            other.require_report()
        assert gateway.memory_mib() - before < 50 * 2
    assert all(chat.disconnected.wait(30) for chat in chats)


def test_refused_body_is_released(gateway: Gateway, hostile: Caller) -> None:
    hostile.post(RAW)
    before = gateway.memory_mib()
    for _ in range(40):
        status, _, _ = hostile.post(b'{"messages": "' + b"x" * 8_000_000 + b'"}')
        assert status == 400
    assert gateway.memory_mib() - before < GROWTH_MIB + 2 * 8
