"""How metrics leave a client: asked for, left in a file, pushed. Each through its own door, and never by themselves."""

from __future__ import annotations

import asyncio
import http.server
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from pedcxr_client import Client, ConfigurationError
from pedcxr_client.cli.main import main
from pedcxr_client.metrics import export
from pedcxr_client.metrics.prometheus import Metrics
from tests.support.fake_engine import TEXT, Answer
from tests.support.processes import spawn

DURATION = "gen_ai_client_operation_duration_seconds"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "", registry=registry).set(42)
    return registry


def samples(page: str) -> dict[str, float]:
    families = text_string_to_metric_families(page)
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.fixture
def path(tmp_path: Path, film: bytes) -> str:
    path = tmp_path / "Popescu^Ana.png"
    path.write_bytes(film)
    return str(path)


class Gateway:
    """A small real HTTP server that takes what a Pushgateway takes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.pushed = threading.Event()
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _take(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                gateway.seen.append((self.command, self.path, body))
                gateway.pushed.set()
                gateway.hold.wait(20)
                self.send_response(gateway.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_DELETE = _take

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self.seen]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    thread = threading.Thread(target=gateway.server.serve_forever)
    thread.start()
    try:
        yield gateway
    finally:
        gateway.hold.set()
        gateway.server.shutdown()
        gateway.server.server_close()
        thread.join()


def test_importing_starts_nothing():
    """Not even prometheus_client is loaded by the modules that everybody imports."""
    code = "import sys, threading, pedcxr_client, pedcxr_client.metrics.export, pedcxr_client.cli.options\n"
    code += "print(threading.active_count(), 'prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"


def test_a_program_s_own_server_mounts_the_app(registry):
    async def ask() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(export.asgi(registry))) as client:
            return (await client.get("http://x/metrics")).text

    assert samples(asyncio.run(ask())) == {"answer": 42}


def test_a_port_on_loopback_while_the_block_runs(registry):
    threads = threading.active_count()
    with export.serving(registry) as address:
        assert address.startswith("http://127.0.0.1:")
        assert samples(httpx.get(address).text) == {"answer": 42}
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    assert threading.active_count() == threads


@pytest.mark.parametrize("port", [None, 70_000, -1])
def test_a_port_that_cannot_be_had(registry, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if port is None else port
        with pytest.raises(ConfigurationError, match=f"port {port}"), export.serving(registry, port):
            pass


def test_whoever_reads_the_file_sees_a_whole_page(tmp_path):
    registry = CollectorRegistry()
    counters = [Counter(f"a{number}", "", registry=registry) for number in range(200)]
    path = tmp_path / "pedcxr.prom"
    export.write(registry, path)
    written = threading.Event()

    def again_and_again() -> None:
        for _ in range(60):
            for counter in counters:
                counter.inc()
            export.write(registry, path)
        written.set()

    writer = threading.Thread(target=again_and_again)
    writer.start()
    reads = 0
    while not written.is_set() or not reads:
        values = {value for name, value in samples(path.read_text()).items() if name.endswith("_total")}
        assert len(values) == 1 and len(samples(path.read_text())) == 400  # with the time each was made
        reads += 1
    writer.join()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_node_exporter_would_pass_over(registry, tmp_path):
    with pytest.raises(ConfigurationError, match=r"\.prom"):
        export.write(registry, tmp_path / "pedcxr.txt")


def test_a_push_replaces_its_group_and_a_deletion_ends_it(registry, gateway):
    target = export.Pushgateway(url=gateway.url + "/", instance="here:1")
    target.push(registry)
    target.delete()
    (put, where, body), (delete, there, _) = gateway.seen
    assert (put, delete, where) == ("PUT", "DELETE", there)
    assert where == "/metrics/job/pedcxr/instance/here%3A1" or where == "/metrics/job/pedcxr/instance/here:1"
    assert samples(body) == {"answer": 42}


def test_two_runs_do_not_share_a_group():
    one = export.Pushgateway(url="http://gateway:9091")
    code = "from pedcxr_client.metrics.export import Pushgateway as P; print(P(url='http://gateway:9091').instance)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert one.instance != other and one.instance.rpartition(":")[0] == other.rpartition(":")[0]


@pytest.mark.parametrize("url", ["gateway:9091", "ftp://gateway", "http://", "", "file:///etc/passwd"])
def test_an_address_that_is_none(url):
    with pytest.raises(ConfigurationError, match="http://HOST:9091"):
        export.Pushgateway(url=url)


def test_a_gateway_that_hangs_fails_and_refuses(registry, gateway):
    target = export.Pushgateway(url=gateway.url, timeout=0.2)
    gateway.hold.clear()
    with pytest.raises(OSError, match="timed out"):
        target.push(registry)
    gateway.hold.set()
    gateway.status = 400
    with pytest.raises(OSError, match="400"):
        target.push(registry)
    with nobody() as url, pytest.raises(OSError, match="refused"):
        export.Pushgateway(url=url).delete()
    with garbage() as url, pytest.raises(OSError, match="not HTTP"):
        export.Pushgateway(url=url).push(registry)


@contextmanager
def nobody() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def garbage() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\0 no HTTP\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_a_run_that_goes_on_is_published_again_and_again_and_once_more_at_its_end():
    calls, third, failures = [], threading.Event(), []

    def publish() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise OSError("for once")
        if len(calls) >= 3:
            third.set()

    with export.repeating(publish, failures.append, every=0.01):
        assert third.wait(5)
        inside = len(calls)
    assert len(calls) > inside
    assert [str(error) for error in failures] == ["for once"]


def test_the_command_leaves_a_file(engine, path, tmp_path, capsys):
    page = tmp_path / "pedcxr.prom"
    assert main(["report", path, "--url", engine.url, "--metrics-textfile", str(page)]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    text = page.read_text()
    assert samples(text)[f"{DURATION}_count"] == 1
    assert 'error_type=""' in text and "Popescu" not in text


def test_a_failure_is_published_too(engine, path, tmp_path):
    engine.answer = Answer(finish="length")
    page = tmp_path / "pedcxr.prom"
    assert main(["report", path, "--url", engine.url, "--metrics-textfile", str(page)]) == 4
    assert f'{DURATION}_count{{error_type="truncated"' in page.read_text()


def test_the_command_pushes_and_deletes(engine, path, gateway, capsys):
    flags = ["--metrics-push", gateway.url, "--metrics-linger", "0", "--model", "fake"]
    assert main(["report", path, "--url", engine.url, *flags]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    assert gateway.methods == ["PUT", "DELETE"]
    assert re.search(rf'{DURATION}_count{{.*gen_ai_request_model="fake".*}} 1.0', gateway.seen[0][2])
    assert "Popescu" not in str(gateway.seen)


def test_the_report_does_not_wait_for_the_gateway(engine, path, gateway):
    """It is on stdout before the first push is answered, and its exit code is its own."""
    gateway.hold.clear()
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "--url", engine.url]
    command += ["--metrics-push", gateway.url, "--metrics-linger", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == TEXT.splitlines()[0] + "\n"
        assert gateway.pushed.wait(10)
        gateway.hold.set()
        process.stdout.read()
    assert process.returncode == 0


@pytest.mark.parametrize("trouble", ["away", "refuses"])
def test_no_trouble_of_the_gateway_s_harms_the_report(engine, path, gateway, capsys, trouble):
    gateway.status = 500
    with nobody() as away:
        url = away if trouble == "away" else gateway.url
        assert main(["report", path, "--url", engine.url, "--metrics-push", url, "--metrics-linger", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert "--metrics-push: the push failed" in err and "--metrics-push: the deletion failed" in err
    assert "Traceback" not in err


def test_the_command_answers_scrapes_until_it_ends(engine, path):
    engine.answer = Answer(stall_after=1)
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "--stream", "--url", engine.url]
    command += ["--metrics-port", "0"]
    with spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stderr.readline().removeprefix("pedcxr: metrics at ").strip()
        process.stdout.read(1)  # a report is under way, and stays so
        assert samples(httpx.get(address).text)["pedcxr_client_in_flight"] == 1
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metrics-textfile", "pedcxr.txt"], ".prom"),
        (["--metrics-textfile", "/no/such/folder/pedcxr.prom"], "No such file"),
        (["--metrics-textfile", "nul\0.prom"], "not a valid path"),
        (["--metrics-push", "gateway"], "http://HOST:9091"),
        (["--metrics-port", "70000"], "port 70000"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(engine, path, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(["report", path, "--url", engine.url, *flags]) == 2
    assert words in capsys.readouterr().err
    assert engine.requests == []


def test_without_the_options_nothing_is_imported(engine, path):
    code = "import sys; from pedcxr_client.cli.main import main; code = main(sys.argv[1:])\n"
    code += "sys.exit(code or 'prometheus_client' in sys.modules)"
    command = [sys.executable, "-c", code, "report", path, "--url", engine.url]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_several_clients_may_share_one_page(engine, film):
    registry = CollectorRegistry()
    metrics = Metrics(registry, models=["fake"])
    with Client(engine.url, metrics=metrics) as one, Client(engine.url, metrics=metrics) as other:
        one.report(film)
        other.report(film)
    with export.serving(registry) as address:
        assert samples(httpx.get(address).text)[f"{DURATION}_count"] == 2
