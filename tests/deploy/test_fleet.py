"""deploy/fleet under real HAProxy and nginx, before gateways with fake engines."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from pedcxr_serve.config.settings import GatewayConfig
from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.servers.fleet_load import Killing, Load, Outcome, body, send, under_load
from tests.support.servers.gateway_server import CHAT, ERROR_KEYS, eventually
from tests.support.servers.replica import POISON, SLOW

FLEET = ROOT / "deploy/fleet"
BALANCERS = ["haproxy", "nginx"]
REPLICA = [sys.executable, "-m", "tests.support.servers.replica", "start"]
LIMIT = GatewayConfig().body_limit_mib << 20


local_fleet = load_script(FLEET / "local_fleet.py")


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; Debian has a package of that name")


@pytest.fixture(scope="module")
def fleet_and_balancers() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Two replicas with eight slots each, whose reports take 0.2 s, behind each balancer that is installed."""
    kinds = [kind for kind in BALANCERS if shutil.which(kind)]
    if not kinds:
        need("haproxy")
    with local_fleet.running([*REPLICA, "--max-waiting", "8"], 2, kinds) as pair:
        yield pair


@pytest.fixture
def fleet(fleet_and_balancers: Any) -> Any:
    return fleet_and_balancers[0]


@pytest.fixture
def balancers(fleet_and_balancers: Any) -> list[tuple[str, Any]]:
    return list(fleet_and_balancers[1].items())


@pytest.fixture(params=BALANCERS)
def url(request: pytest.FixtureRequest, fleet_and_balancers: Any) -> str:
    need(request.param)
    return str(fleet_and_balancers[1][request.param].url)


def begun(fleet: Any) -> list[int]:
    """The number of reports that each replica's engine began."""
    pages = [httpx.get(replica.metrics_url, timeout=60).text for replica in fleet.replicas]
    return [int(re.findall(r"^fake_chat_requests_total (\d+)", page, re.MULTILINE)[0]) for page in pages]


def post(url: str, data: bytes, **headers: str) -> httpx.Response:
    return httpx.post(url + CHAT, content=data, headers={"Content-Type": "application/json", **headers}, timeout=60)


def burst(url: str, count: int) -> list[Outcome]:
    """Send requests at once, whose reports take longer than a busy machine takes to send all; return the outcomes."""

    async def all_at_once() -> list[Outcome]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(send(session, url, body(text=SLOW)) for _ in range(count)))

    return asyncio.run(all_at_once())


def drill(balancers: list[tuple[str, Any]], event: Callable[[], object], **counts: int) -> dict[str, Load]:
    """Drive every balancer with six users, and run an event meanwhile."""

    async def drills() -> dict[str, Load]:
        loads = {name: Load() for name, _ in balancers}
        async with asyncio.timeout(300):
            await under_load({name: balancer.url for name, balancer in balancers}, loads, 6, event, **counts)
        return loads

    loads = asyncio.run(drills())
    for name, load in loads.items():
        print(f"{name}: {load.summary()}")
    return loads


@pytest.mark.parametrize("balancer", BALANCERS)
def test_balancer_accepts_the_shipped_file(balancer: str, tmp_path: Path) -> None:
    need(balancer)
    need("openssl")
    pem = tmp_path / "pair.pem"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout {pem} -out {tmp_path}/crt.pem"
    subprocess.run(words.split(), check=True, capture_output=True)
    pem.write_text((tmp_path / "crt.pem").read_text() + pem.read_text())
    text = (FLEET / local_fleet.FILES[balancer]).read_text()
    file = tmp_path / "file"
    text = re.sub("(user|group) haproxy", r"\1 www-data", text)  # HAProxy may be unpacked without its user
    text = re.sub(r"/etc/(haproxy|nginx)/pedcxr\.(pem|crt|key)", str(pem), text)
    if balancer == "nginx":  # which may be unpacked without its folders
        text = text.replace("http {\n", "http {\n" + local_fleet.temporary_paths(tmp_path), 1)
    file.write_text(text)
    command = {"haproxy": ["haproxy", "-c", "-f", file], "nginx": ["nginx", "-t", "-c", file]}[balancer]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert not re.search("warn", completed.stdout + completed.stderr, re.IGNORECASE), completed.stderr


def test_body_limits_equal_the_gateways() -> None:
    haproxy, nginx = ((FLEET / name).read_text() for name in ("haproxy.cfg", "nginx.conf"))
    assert f"content-length) gt {LIMIT} " in haproxy and f"client_max_body_size {LIMIT >> 20}m;" in nginx
    assert all(f"larger than {LIMIT:,} bytes" in text for text in (haproxy, nginx))


def test_lame_duck_is_longer_than_two_probes() -> None:
    every = float(re.findall(r"check inter (\d+)s .*fall 1 ", (FLEET / "haproxy.cfg").read_text())[0])
    assert 2 * every + 0.5 <= local_fleet.LAME_DUCK_S


def test_ports_differ_between_calls_and_between_processes() -> None:
    path = "deploy/fleet/local_fleet.py"
    code = f"import runpy; free = runpy.run_path('{path}')['free_port']; print(*(free() for _ in range(20)))"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    ports = [int(word) for one in both for word in one.communicate()[0].split()]
    assert len(set(ports)) == len(ports) == 40


@pytest.mark.parametrize(
    ("cores", "count", "lists"),
    [
        ({0, 1}, 2, ["0", "1"]),
        ({0, 1}, 3, ["0", "1", "0"]),
        ({3}, 2, ["3", "3"]),
        ({4, 5, 6, 7, 9}, 2, ["4,6,9", "5,7"]),
    ],
    ids=str,
)
def test_replicas_on_a_cpu_share_no_core_if_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: set[int], count: int, lists: list[str]
) -> None:
    monkeypatch.setattr(local_fleet.os, "sched_getaffinity", lambda _: cores)
    fleet = local_fleet.LocalFleet(["none"], count, tmp_path)
    assert [replica.env["VLLM_CPU_OMP_THREADS_BIND"] for replica in fleet.replicas] == lists
    assert len({replica.env["PEDCXR_GATEWAY_USAGE_DB"] for replica in fleet.replicas}) == count


class TestAnswers:
    def test_reports_pass_unchanged(self, fleet: Any, url: str) -> None:
        direct = post(fleet.replicas[0].url, body()).json()
        answer = post(url, body())
        assert answer.json() == direct
        assert answer.headers["x-pedcxr-demo"] == "1" and answer.headers["x-request-id"]

    def test_requests_are_spread(self, fleet: Any, url: str) -> None:
        before = begun(fleet)
        burst(url, 8)
        assert [now - then for now, then in zip(begun(fleet), before, strict=True)] == [4, 4]

    def test_events_leave_one_by_one(self, url: str) -> None:
        def chunks() -> int:
            with httpx.stream("POST", url + CHAT, content=body(stream=True), timeout=60) as answer:
                return sum(bool(chunk) for chunk in answer.iter_raw())

        # Of 20 tokens, 10 ms apart; in lumps they are 2 or 3 chunks, each time. A process that pauses reads several at
        # once, so that one try is not enough.
        eventually(lambda: chunks() > 10)

    @pytest.mark.parametrize("path", ["/metrics", "/v1/completions", "/usage", "/v1/chat/completions/x", "/tokenize"])
    def test_other_paths_reach_no_replica(self, url: str, path: str) -> None:
        answer = httpx.post(url + path, content=body(), timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "x-pedcxr" not in str(answer.headers)

    def test_body_over_the_limit_is_413(self, url: str) -> None:
        answer = post(url, b" " * (LIMIT + 1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert set(answer.json()["error"]) == ERROR_KEYS

    def test_body_at_the_limit_passes(self, url: str) -> None:
        data = body(film_bytes=(LIMIT - 1000) * 3 // 4)
        assert LIMIT - 1000 < len(data) <= LIMIT
        assert post(url, data).status_code == 200

    def test_errors_of_a_replica_pass(self, url: str) -> None:
        answer = post(url, b"{")
        assert (answer.status_code, set(answer.json()["error"])) == (400, ERROR_KEYS)

    def test_request_id_is_kept_or_made(self, url: str) -> None:
        assert post(url, body(), **{"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert post(url, body(), **{"X-Request-Id": "not valid/"}).headers["x-request-id"] != "not valid/"

    def test_log_names_client_and_request(self, balancers: list[tuple[str, Any]]) -> None:
        # The replica sees the address of the balancer only: audit and log are matched by the id.
        for name, balancer in balancers:
            assert post(balancer.url, body(), **{"X-Request-Id": f"logged-{name}"}).status_code == 200
            line = re.compile(rf"127\.0\.0\.1.*logged-{name}|logged-{name}.*127\.0\.0\.1")
            eventually(lambda line=line, balancer=balancer: line.search(balancer.log.read_text()))

    def test_poison_film_reaches_one_engine(self, fleet: Any, url: str) -> None:
        before = begun(fleet)
        answer = post(url, body(text=POISON))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_lost")
        assert answer.headers["x-should-retry"] == "false"
        assert sum(begun(fleet)) - sum(before) == 1

    def test_flood_does_not_take_the_replicas_out(self, url: str) -> None:
        # nginx with max_fails=1 would answer 502 for 2 s after the 503 of both replicas.
        assert {one.kind for one in burst(url, 80)} == {"ok", "queue_full"}
        assert post(url, body()).status_code == 200


class TestDrills:
    def test_rolling_restart_loses_nothing(self, fleet: Any, balancers: list[tuple[str, Any]]) -> None:
        for name, load in drill(balancers, fleet.rolling_restart).items():
            assert load.failures == [], name
            assert len(load.outcomes) > 100

    def test_reload_loses_nothing(self, balancers: list[tuple[str, Any]]) -> None:
        def event() -> None:
            for _ in range(3):
                for _, balancer in balancers:
                    balancer.reload()
                time.sleep(0.5)

        for name, load in drill(balancers, event).items():
            assert load.failures == [], name

    def test_canary_gets_its_share(self, fleet: Any, fleet_and_balancers: Any) -> None:
        need("haproxy")
        balancer = fleet_and_balancers[1]["haproxy"]
        file = balancer.log.with_name("haproxy.cfg")
        shipped = file.read_text()
        backend = re.search(r"^backend replicas\n(.*?)^(?=\S)", shipped, re.MULTILINE | re.DOTALL)
        assert backend is not None
        canary = re.sub(r" +server replica0 .*\n", "", backend[0]).replace("backend replicas", "backend canary")
        text = re.sub(r" +server replica1 .*\n", "", shipped).replace("# use_backend canary", "use_backend canary")
        file.write_text(text.replace("lt 5 }", "lt 20 }") + "\n" + canary)
        balancer.reload()
        eventually(
            lambda: 'backend_status{proxy="canary",state="UP"} 1' in httpx.get(balancer.metrics_url, timeout=60).text
        )
        before = begun(fleet)
        for _ in range(60):  # one at a time: by weights, an idle fleet would give the canary half of them
            assert post(balancer.url, body()).status_code == 200
        assert 0 < begun(fleet)[1] - before[1] < 26  # 12 are expected; 26 is 4.5 standard deviations more
        file.write_text(shipped)
        balancer.reload()

    def test_killed_replica_loses_only_what_it_ran(self, fleet: Any, balancers: list[tuple[str, Any]]) -> None:
        killing = Killing(fleet.replicas[1], fleet.replicas[:1])
        loads = drill(balancers, killing, after=60)
        assert killing.faults(*loads.values()) == []
        for name, load in loads.items():
            assert len(load.failures) <= 6, name
            # Those whose answer had not begun get `server_lost`, which is safe to resend.
            lost = [one for one in load.failures if one.kind == "server_lost"]
            assert all((one.status, one.retry_after) == (503, "2") for one in lost), name

    def test_no_replica_left_is_a_typed_503(self, fleet: Any, balancers: list[tuple[str, Any]]) -> None:
        for replica in fleet.replicas:
            replica.kill()
        for name, balancer in balancers:
            answer = post(balancer.url, body())
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), name
            assert set(answer.json()["error"]) == ERROR_KEYS
            assert answer.json()["error"]["code"] in ("server_lost", "no_server")
