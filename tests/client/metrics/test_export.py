"""Export of client metrics by scrape, text file and Pushgateway."""

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
from tests.support.http_server import reserved_port
from tests.support.servers.fake_engine import TEXT, Answer

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
    """An HTTP server that accepts the requests of a Pushgateway client."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.pushed = threading.Event()
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _receive(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                gateway.requests.append((self.command, self.path, body))
                gateway.pushed.set()
                gateway.hold.wait(20)
                self.send_response(gateway.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_DELETE = _receive

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self.requests]


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
    """The package and the command-line options do not import prometheus_client or start a thread."""
    code = "import sys, threading, pedcxr_client, pedcxr_client.metrics, pedcxr_client.cli.options\n"
    code += "print(threading.active_count(), 'prometheus_client' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout == "1 False\n"


def test_asgi_app_answers_a_scrape(registry):
    async def scrape() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(export.asgi(registry))) as client:
            return (await client.get("http://x/metrics")).text

    assert samples(asyncio.run(scrape())) == {"answer": 42}


def test_serving_listens_on_loopback_while_the_block_runs(registry):
    threads = threading.active_count()
    with export.serving(registry) as address:
        assert address.startswith("http://127.0.0.1:")
        assert samples(httpx.get(address, timeout=60).text) == {"answer": 42}
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    assert threading.active_count() == threads


@pytest.mark.parametrize("port", [None, 70_000, -1])
def test_unusable_port_raises(registry, port):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if port is None else port
        with pytest.raises(ConfigurationError, match=f"port {port}"), export.serving(registry, port):
            pass


def test_readers_of_the_file_always_see_a_complete_page(tmp_path):
    registry = CollectorRegistry()
    counters = [Counter(f"a{number}", "", registry=registry) for number in range(200)]
    path = tmp_path / "pedcxr.prom"
    export.write(registry, path)
    finished = threading.Event()

    def rewrite() -> None:
        for _ in range(60):
            for counter in counters:
                counter.inc()
            export.write(registry, path)
        finished.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    reads = 0
    while not finished.is_set() or not reads:
        totals = [value for name, value in samples(path.read_text()).items() if name.endswith("_total")]
        assert len(totals) == 200 and len(set(totals)) == 1
        reads += 1
    writer.join()
    assert list(tmp_path.iterdir()) == [path]


def test_file_name_must_end_in_prom(registry, tmp_path):
    with pytest.raises(ConfigurationError, match=r"\.prom"):
        export.write(registry, tmp_path / "pedcxr.txt")


def test_push_replaces_the_group_and_delete_removes_it(registry, gateway):
    target = export.Pushgateway(url=gateway.url + "/", instance="here:1")
    target.push(registry)
    target.delete()
    (put, where, body), (delete, there, _) = gateway.requests
    assert (put, delete, where) == ("PUT", "DELETE", there)
    assert where == "/metrics/job/pedcxr/instance/here%3A1" or where == "/metrics/job/pedcxr/instance/here:1"
    assert samples(body) == {"answer": 42}


def test_each_process_has_its_own_group():
    one = export.Pushgateway(url="http://gateway:9091")
    code = "from pedcxr_client.metrics.export import Pushgateway as P; print(P(url='http://gateway:9091').instance)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert one.instance != other and one.instance.rpartition(":")[0] == other.rpartition(":")[0]


@pytest.mark.parametrize("url", ["gateway:9091", "ftp://gateway", "http://", "", "file:///etc/passwd"])
def test_invalid_pushgateway_url_raises(url):
    with pytest.raises(ConfigurationError, match="http://HOST:9091"):
        export.Pushgateway(url=url)


def test_pushgateway_failures_raise_oserror(registry, gateway):
    gateway.hold.clear()
    with pytest.raises(OSError, match="timed out"):
        export.Pushgateway(url=gateway.url, timeout=0.2).push(registry)
    gateway.hold.set()
    gateway.status = 400
    with pytest.raises(OSError, match="400"):
        export.Pushgateway(url=gateway.url).push(registry)
    with unused_address() as url, pytest.raises(OSError, match="refused"):
        export.Pushgateway(url=url).delete()
    with server_without_http() as url, pytest.raises(OSError, match="not HTTP"):
        export.Pushgateway(url=url).push(registry)


@contextmanager
def unused_address() -> Iterator[str]:
    with reserved_port() as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def server_without_http() -> Iterator[str]:
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


def test_repeating_publishes_at_the_interval_and_at_the_end():
    calls, third, failures = [], threading.Event(), []

    def publish() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise OSError("temporary failure")
        if len(calls) >= 3:
            third.set()

    with export.repeating(publish, failures.append, every=0.01):
        assert third.wait(30)
        inside = len(calls)
    assert len(calls) > inside
    assert [str(error) for error in failures] == ["temporary failure"]


def test_command_writes_the_text_file(engine, path, tmp_path, capsys):
    page = tmp_path / "pedcxr.prom"
    assert main(["report", path, "--url", engine.url, "--metrics-textfile", str(page)]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    text = page.read_text()
    assert samples(text)[f"{DURATION}_count"] == 1
    assert 'error_type=""' in text and "Popescu" not in text


def test_failed_report_is_published(engine, path, tmp_path):
    engine.answer = Answer(finish="length")
    page = tmp_path / "pedcxr.prom"
    assert main(["report", path, "--url", engine.url, "--metrics-textfile", str(page)]) == 4
    assert f'{DURATION}_count{{error_type="truncated"' in page.read_text()


def test_command_pushes_and_deletes(engine, path, gateway, capsys):
    flags = ["--metrics-push", gateway.url, "--metrics-linger", "0", "--model", "fake"]
    assert main(["report", path, "--url", engine.url, *flags]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    assert gateway.methods == ["PUT", "DELETE"]
    assert re.search(rf'{DURATION}_count{{.*gen_ai_request_model="fake".*}} 1.0', gateway.requests[0][2])
    assert "Popescu" not in str(gateway.requests)


def test_report_is_printed_before_the_push_completes(engine, path, gateway):
    """The report is on stdout before the Pushgateway responds, and the push does not change the exit code."""
    gateway.hold.clear()
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "--url", engine.url]
    command += ["--metrics-push", gateway.url, "--metrics-linger", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == TEXT.splitlines()[0] + "\n"
        assert gateway.pushed.wait(30)
        gateway.hold.set()
        process.stdout.read()
    assert process.returncode == 0


@pytest.mark.parametrize("failure", ["unreachable", "error"])
def test_pushgateway_failure_does_not_affect_the_report(engine, path, gateway, capsys, failure):
    gateway.status = 500
    with unused_address() as address:
        url = address if failure == "unreachable" else gateway.url
        assert main(["report", path, "--url", engine.url, "--metrics-push", url, "--metrics-linger", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert "--metrics-push: the push failed" in err and "--metrics-push: the deletion failed" in err
    assert "Traceback" not in err


def test_command_answers_scrapes_until_it_ends(engine, path):
    engine.answer = Answer(stall_after=1)
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "--stream", "--url", engine.url]
    command += ["--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stderr.readline().removeprefix("pedcxr: metrics at ").strip()
        process.stdout.read(1)  # the report is in flight and stays in flight
        assert samples(httpx.get(address, timeout=60).text)["pedcxr_client_in_flight"] == 1
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics-textfile", "pedcxr.txt"], ".prom"),
        (["--metrics-textfile", "/no/such/folder/pedcxr.prom"], "No such file"),
        (["--metrics-textfile", "nul\0.prom"], "not a valid path"),
        (["--metrics-push", "gateway"], "http://HOST:9091"),
        (["--metrics-port", "70000"], "port 70000"),
    ],
)
def test_invalid_options_fail_before_the_first_request(engine, path, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", path, "--url", engine.url, *flags]) == 2
    assert message in capsys.readouterr().err
    assert engine.requests == []


def test_command_without_metrics_options_does_not_import_prometheus_client(engine, path):
    code = "import sys; from pedcxr_client.cli.main import main; code = main(sys.argv[1:])\n"
    code += "sys.exit(code or 'prometheus_client' in sys.modules)"
    command = [sys.executable, "-c", code, "report", path, "--url", engine.url]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_clients_can_share_one_metrics_object(engine, film):
    registry = CollectorRegistry()
    metrics = Metrics(registry, models=["fake"])
    with Client(engine.url, metrics=metrics) as one, Client(engine.url, metrics=metrics) as other:
        one.report(film)
        other.report(film)
    with export.serving(registry) as address:
        assert samples(httpx.get(address, timeout=60).text)[f"{DURATION}_count"] == 2
