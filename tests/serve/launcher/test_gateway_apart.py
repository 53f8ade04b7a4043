"""Gateways apart from their engine, as processes, in front of a fake engine with the middleware of the real one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from pedcxr_serve import cli
from pedcxr_serve.config import secret_file
from pedcxr_serve.engine import access
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth.models import ServedAdapter
from pedcxr_serve.gateway.http.listeners import Listeners
from pedcxr_serve.launcher import start
from pedcxr_serve.launcher.console import Console
from tests.drills.rolling_restart import LAME_DUCK_S, Load, is_ready, replace_each, running
from tests.support.servers.apart import DESCRIPTION, engine_apart, reports
from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, assert_openai_error, eventually
from tests.support.servers.local_server import LocalServer, server

CLIENTS = 6
CODES = ("engine_restarting", "not_ready")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the lines that the launcher prints from now on."""
    lines: list[str] = []
    monkeypatch.setattr(Console, "print_line", lambda _self, text, *_level: lines.append(text))
    return lines


@contextmanager
def gateway(folder: Path, *flags: str) -> Iterator[LocalServer]:
    """Run a gateway as a process, which a signal can stop."""
    with server("--engine", f"unix:{folder}/engine.sock", *flags, command="gateway") as ready:
        yield ready


def with_gateway(where: str, check: Callable[[str, str], None], *flags: str) -> None:
    """Run a gateway in this process while ``check`` runs in a thread, with the roots of API and metrics."""

    async def work(listeners: Listeners) -> None:
        metrics = listeners.metrics_url.removesuffix("/metrics")
        await asyncio.to_thread(check, listeners.url.removesuffix("/v1"), metrics)

    words = ("gateway", "--engine", where, "--port", "0", "--admin-port", "0", "--drain-s", "0", *flags)
    start.gateway(cli.parse(words), work)


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=60, trust_env=False)


def ask(root: str, **more: object) -> httpx.Response:
    return httpx.post(root + CHAT, json=BODY | more, timeout=300, trust_env=False)


def engine_fields(engine: FakeEngine) -> list[tuple[str, str]]:
    return [
        (body["cache_salt"], body["messages"][0]["content"][0]["uuid"]) for body in (c.json for c in reports(engine))
    ]


def test_gateway_learns_the_adapters_from_the_engine(folder: Path, printed: list[str]) -> None:
    """The engine knows which adapters it loaded and for whom; without keys the client is no tenant of a hospital."""
    adapters = {"all": ServedAdapter("sha256:1"), "north": ServedAdapter("sha256:2", frozenset({"hospital"}))}

    def check(root: str, _: str) -> None:
        models = {model["id"]: model["pedcxr"] for model in get(root + "/v1/models").json()["data"]}
        assert {name: (one["adapter"], one["revision"]) for name, one in models.items()} == {
            "fake": (False, "rev"),
            "all": (True, "rev+sha256:1"),
        }
        assert ask(root, model="all").headers["x-pedcxr-revision"] == "rev+sha256:1"
        assert ask(root, model="north").status_code == 404

    description = msgspec.structs.replace(DESCRIPTION, revision="rev", adapters=adapters)
    with engine_apart(folder, description=description) as engine:
        engine.models = ("fake", "all", "north")
        with_gateway(f"unix:{folder}/engine.sock", check)


def test_gateway_learns_everything_from_the_engine(folder: Path, printed: list[str]) -> None:
    def check(root: str, _: str) -> None:
        answer = ask(root, max_tokens=9999)
        assert answer.json()["choices"][0]["message"]["content"] == TEXT
        assert "x-pedcxr-demo" not in answer.headers
        [model] = get(root + "/v1/models").json()["data"]
        served = {"image_size": [448, 448], "revision": None, "demo": False}
        assert model["pedcxr"] == served | {"adapter": False, "default": True}

    with engine_apart(folder) as engine:
        for number in (1, 2):
            with_gateway(f"unix:{folder}/engine.sock", check)
            assert len(reports(engine)) == number, "no warm-up report: the engine wrote one when it started"
        assert reports(engine)[0].json["max_tokens"] == 400
        assert len({*engine_fields(engine)}) == 2, "without a common secret each gateway has cache keys of its own"
        text = "\n".join(printed)
        assert "all guarantees hold" in text and "model fake" in text


def test_gateways_with_a_common_secret_share_the_caches(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "cache.secret"
    with engine_apart(folder) as engine:
        for _ in range(2):
            with_gateway(
                f"unix:{folder}/engine.sock",
                lambda root, _: ask(root),
                "--cache-secret-file",
                str(secret),  # type: ignore[arg-type, return-value]
            )
        assert len(reports(engine)) == 2 and len({*engine_fields(engine)}) == 1
    assert secret.stat().st_mode & 0o777 == 0o600


def test_two_gateways_divide_the_slots(folder: Path) -> None:
    """Of 12 requests at each gateway, the engine gets 3 and 5 at once. A gateway that ends leaves the engine alone."""
    flags = ("--drain-s", "0", "--slots")
    with (
        engine_apart(folder) as engine,
        gateway(folder, *flags, "3") as one,
        gateway(folder, *flags, "5") as two,
        ThreadPoolExecutor(24) as pool,
    ):
        engine.answer = Answer(first=300)
        answers = [pool.submit(ask, running.root) for running in (one, two) for _ in range(12)]
        for running in (one, two):
            eventually(lambda running=running: in_flight(running) == 12)  # type: ignore[misc]
        eventually(lambda: len(reports(engine)) == 8)
        assert [running.stop(signal.SIGTERM) for running in (one, two)] == [0, 0]
        codes = {answer.result().json()["error"]["code"] for answer in answers}
        assert codes <= {"engine_lost", "engine_restarting", "not_ready"}
        assert len(reports(engine)) == 8
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(engine.uds)), base_url="http://engine") as client:
            assert client.get("/health").status_code == 200


def in_flight(running: LocalServer) -> float:
    return float(re.search(r"^pedcxr_requests_in_flight (\S+)$", get(running.metrics_url).text, re.M)[1])  # type: ignore[index]


def test_engine_goes_away_and_comes_back_as_another(folder: Path, printed: list[str]) -> None:
    first, other = contextlib.ExitStack(), msgspec.structs.replace(DESCRIPTION, model="other", slots=2, revision="new")

    def replica(admin: str) -> list[str]:
        return re.findall(r'pedcxr_replica_info{replica="r",(.*)} 1', get(admin + "/metrics").text)

    def check(root: str, admin: str) -> None:
        assert replica(admin) == ['revision="",vllm="0.32.0"']
        first.close()
        eventually(lambda: not is_ready(root))
        assert_openai_error(ask(root), 503, "not_ready")
        with engine_apart(folder) as engine:
            engine.version = "0.33.0"
            eventually(lambda: any("runs vLLM 0.33.0" in line for line in printed))
            assert_openai_error(ask(root), 503, "not_ready")
            assert reports(engine) == [], "a replacement that is not accepted gets no request"
        with engine_apart(folder, description=other) as engine:
            engine.models, engine.version = ("other",), "0.32.9"
            eventually(lambda: is_ready(root))
            assert replica(admin) == ['revision="new",vllm="0.32.9"'], "those of the engine, not of this environment"
            assert ask(root).status_code == 200
            assert reports(engine)[0].json["model"] == "other"
            assert 'pedcxr_engine_restarts_total{reason="ended"} 1.0' in get(admin + "/metrics").text

    first.enter_context(engine_apart(folder))
    with first:
        with_gateway(f"unix:{folder}/engine.sock", check, "--replica", "r")


def test_engine_that_stops_completes_its_reports_and_gets_no_others(folder: Path) -> None:
    refusal_seen = threading.Event()  # until then, the engine writes its report

    def check(root: str, _: str) -> None:
        with ThreadPoolExecutor() as pool:
            report = pool.submit(ask, root, stream=True)
            eventually(lambda: reports(engine))
            draining = pool.submit(asyncio.run, access.drain(folder))
            eventually((folder / "stopping").exists)
            # The gateway notices within a second; until then the engine refuses, and the request may be sent again.
            refused = ask(root)
            assert (refused.status_code, refused.json()["error"]["code"] in CODES) == (503, True), refused.text
            assert refused.headers["retry-after"] and refused.headers["x-should-retry"] == "true"
            refusal_seen.set()
            assert report.result().text.endswith("data: [DONE]\n\n")
            draining.result()
        eventually(lambda: not is_ready(root))

    with engine_apart(folder) as engine:
        engine.answer = Answer(hold=refusal_seen)
        with_gateway(f"unix:{folder}/engine.sock", check)
        assert len(reports(engine)) == 1


def test_engine_at_a_tcp_address_with_a_key(folder: Path, tmp_path: Path, printed: list[str]) -> None:
    def check(root: str, admin: str) -> None:
        assert ask(root).status_code == 200
        assert "fake_chat_requests_total" in get(admin + "/metrics").text, "the engine's metrics need the key too"

    key_file = tmp_path / "engine.key"
    key = secret_file.read_or_create(key_file)
    with engine_apart(folder, key_file=key_file, tcp=True) as engine:
        with_gateway(engine.url.removesuffix("/v1"), check, "--key-file", str(key_file))
        assert {request.headers.get("authorization") for request in reports(engine)} == {f"Bearer {key}"}
    text = "\n".join(printed)
    assert "all guarantees hold" in text and key not in text


def test_admin_port_asks_for_its_token(folder: Path, tmp_path: Path) -> None:
    token = secret_file.read_or_create(tmp_path / "token")

    def check(_: str, admin: str) -> None:
        for path in ("/metrics", "/usage", "/other"):
            assert get(admin + path).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert "pedcxr_ready 1.0" in httpx.get(admin + "/metrics", headers=headers, timeout=60, trust_env=False).text

    flags = ("--admin-token-file", str(tmp_path / "token"), "--admin-host", "0.0.0.0")
    with engine_apart(folder):
        with_gateway(f"unix:{folder}/engine.sock", check, *flags)


def test_engine_of_somebody_else_is_served_with_what_does_not_hold(tmp_path: Path, printed: list[str]) -> None:
    def check(root: str, _: str) -> None:
        assert ask(root).status_code == 200

    where = f"unix:{tmp_path}/engine.sock"
    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        engine.version = "0.33.0"
        flags = ("--allow-engine-version", "0.33", "--allow-plain-vllm", "--slots", "4")
        with_gateway(where, check, *flags)
        for count, text in enumerate(["0.33.0, and this gateway was tested", "16-bit film", "gateway.slots"]):
            with pytest.raises(ConfigError, match=text):
                with_gateway(where, check, *flags[: (0, 2, 3)[count]])
    assert any("DOES NOT HOLD  a film that the engine would change" in line for line in printed)


def test_gateway_with_ipv6_addresses_only(folder: Path, printed: list[str]) -> None:
    def check(root: str, admin: str) -> None:
        assert root.startswith("http://[::1]:") and admin.startswith("http://[::1]:")
        assert ask(root).status_code == 200
        assert "pedcxr_ready 1.0" in get(admin + "/metrics").text

    with engine_apart(folder):
        with_gateway(f"unix:{folder}/engine.sock", check, "--host", "::1", "--admin-host", "::1")
    assert any("API      http://[::1]:" in line for line in printed)


def test_gateway_says_that_no_engine_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pedcxr_serve", "gateway", "--port", "0", "--admin-port", "0"]
    for flags, code, text in (
        (("--engine", f"unix:{tmp_path}/engine.sock", "--start-timeout-s", "1"), 4, "no engine answered at unix:"),
        ((), 2, "--engine"),
    ):
        process = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120, check=False)
        assert (process.returncode, text in process.stderr) == (code, True), process.stderr
        assert "Traceback" not in process.stderr


def test_rolling_restart_under_load_loses_no_report(folder: Path, tmp_path: Path) -> None:
    """Each of two gateways is replaced once. The engine gets every request exactly once. `make drill` uses vLLM."""
    flags = ("--slots", "16", "--lame-duck-s", LAME_DUCK_S, "--cache-secret-file", str(tmp_path / "secret"))
    with engine_apart(folder) as engine, contextlib.ExitStack() as stack:
        engine.answer = Answer(gap=0.05)

        def start() -> LocalServer:
            return stack.enter_context(gateway(folder, *flags))

        servers = [start(), start()]
        load = Load([one.root for one in servers], lambda number: BODY | {"stream": bool(number % 2)})
        with running(load, CLIENTS):
            replace_each(load, servers, start, CLIENTS)
    print(f"\n{load.finished} reports, {load.resent} refused by a stopping gateway and sent again")
    assert {*load.outcomes} == {"complete"}
    assert len(reports(engine)) == load.finished, "no request reached the engine twice"
    assert len({*engine_fields(engine)}) == 1, "the caches stay warm"
