"""Settings of a client and options of a call: types, headers, certificates, proxies, transports and timeouts."""

from __future__ import annotations

import copy
import inspect
import pickle
import ssl
import threading
import typing
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import openai
import pytest

import pedcxr_client
from pedcxr_client import (
    AsyncClient,
    BlockedFilm,
    Check,
    Client,
    ConfigurationError,
    FilmRequest,
    PedcxrError,
    RequestError,
    TimedOut,
    Timeouts,
)
from pedcxr_client.metrics import Metrics
from tests.support.certificates import make_certificate
from tests.support.servers.fake_engine import TEXT, Answer


def errors(kind: type[PedcxrError] = PedcxrError) -> list[type[PedcxrError]]:
    return [kind, *(error for child in kind.__subclasses__() for error in errors(child))]


@pytest.mark.parametrize("kind", errors())
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_every_error_can_be_copied_and_pickled(kind, copied):
    error = kind("what: why; what to do")
    if isinstance(error, RequestError):
        error.text, error.status_code, error.code, error.reason = "half a", 429, "budget_spent", "used up"
    if isinstance(error, BlockedFilm):
        error.checks = (Check("age", "block", "31 years"),)
    result = copied(error)
    assert type(result) is kind
    assert (str(result), vars(result)) == (str(error), vars(error))


@pytest.mark.parametrize("create", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeouts": 30}, r"^timeouts: .*Timeouts\(total=30\)"),
        ({"retries": "2"}, "^retries: "),
        ({"retries": None}, "^retries: "),
        ({"model": 7}, "^model: "),
        ({"url": 7}, "^url: "),
        ({"url": None}, "^url: "),
        ({"url": "http://127.0.0.1/v1\x7f"}, "^url: "),
        ({"headers": {"X-Tenant": "secrét"}}, "^headers: "),
        ({"headers": {"X-Tenant": "secret\n"}}, "^headers: "),
        ({"headers": {"X Tenant": "secret"}}, "^headers: "),
        ({"headers": {"X-Tenant": 7}}, "^headers: "),
        ({"headers": ["X-Tenant"]}, "^headers: "),
        ({"headers": {"authorization": "Bearer secret"}}, "^headers: authorization .*api_key"),
        ({"url": "https://127.0.0.1/v1", "verify": "missing.pem"}, "^verify: "),
        ({"url": "https://127.0.0.1/v1", "verify": __file__}, "^verify: "),
        ({"url": "https://127.0.0.1/v1", "verify": False}, "^verify: "),
        ({"http_client": openai.DefaultHttpxClient()}, r"^http_client: .*AsyncClient"),
        ({"http_client": "proxy"}, r"^http_client: .*AsyncClient"),
        ({"http_client": openai.DefaultAsyncHttpxClient(), "verify": "x.pem"}, "^verify: .*http_client"),
    ],
)
def test_an_invalid_setting_is_a_configuration_error(create, arguments, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        create(**arguments)
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize("create", [Client, AsyncClient])
@pytest.mark.parametrize("proxy", ["socks5://user:secret@proxy:1080", "ftp://proxy", "proxy:port"])
def test_an_unusable_proxy_of_the_environment_is_a_configuration_error(monkeypatch, create, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match=r"^proxy: .*ALL_PROXY") as caught:
        create("https://reports.example.org/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [500.5, "500", None, 0, -1])
def test_max_tokens_is_an_integer_above_0(engine, film, twin, value):
    with pytest.raises(ConfigurationError, match=r"^max_tokens: .* 1 or more"):
        twin.report(engine.url, film, max_tokens=value)
    assert engine.requests == []


@pytest.mark.parametrize("value", [30, (1, 2), {"total": 3}])
def test_timeouts_of_a_call_are_timeouts(value):
    with pytest.raises(ConfigurationError, match=r"Timeouts\(total=30\)"):
        FilmRequest(b"", timeouts=value)
    with pytest.raises(ConfigurationError, match="must be a number of seconds above 0"):
        Timeouts(total="3")


def test_timeouts_of_a_call_replace_those_of_the_client(engine, film, twin):
    engine.answer = Answer(stall_after=1)
    requests = [FilmRequest(film, timeouts=Timeouts(total=0.3), key=1), FilmRequest(film, timeouts=Timeouts(gap=0.3))]
    results = twin.reports(engine.url, requests, model="fake")
    assert [type(result.error) for result in results] == [TimedOut] * 2
    assert {"within 0.3 s" in str(result.error) for result in results if result.request.key == 1} == {True}


def test_timeouts_of_a_stream_replace_those_of_the_client(engine, film, twin):
    engine.answer = Answer(stall_after=1)
    with pytest.raises(TimedOut, match=r"within 0\.3 s"):
        twin.stream(engine.url, film, timeouts=Timeouts(total=0.3))


def test_headers_reach_the_server_with_every_request(engine, film, twin):
    twin.report(engine.url, film, client={"headers": {"X-Tenant": "ward 3"}, "api_key": "k"})
    assert [request.headers["x-tenant"] for request in engine.requests] == ["ward 3"] * 2
    assert {request.headers["authorization"] for request in engine.requests} == {"Bearer k"}


def test_http_client_sends_the_requests(engine, film, twin):
    class Transport(httpx2.AsyncHTTPTransport):
        count = 0

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            Transport.count += 1
            return await super().handle_async_request(request)

    http_client = httpx2.AsyncClient(transport=Transport(), follow_redirects=True)
    engine.reply(Answer(status=307, headers={"location": engine.url + "/elsewhere"}))
    with pytest.raises(pedcxr_client.ServerFailed):
        twin.report(engine.url, film, client={"http_client": http_client})
    assert [request.path for request in engine.requests] == ["/v1/models", "/v1/chat/completions"]
    assert Transport.count == 2
    assert http_client.is_closed


def test_http_client_has_no_blocking_sdk(engine):
    with (
        Client(engine.url, http_client=openai.DefaultAsyncHttpxClient()) as client,
        pytest.raises(ConfigurationError, match=r"^openai: "),
    ):
        _ = client.openai


@pytest.mark.parametrize("as_context", [False, True], ids=["file", "context"])
def test_verify_names_the_trusted_certificates(tmp_path, twin, film, monkeypatch, as_context):
    files = make_certificate(tmp_path)

    class Teapot(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(418)

        def log_message(self, *_: object) -> None: ...

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server = HTTPServer(("127.0.0.1", 0), Teapot)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"https://127.0.0.1:{server.server_port}/v1"
    try:
        with pytest.raises(pedcxr_client.ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"):
            twin.report(url, film, client={"retries": 0})
        verify = ssl.create_default_context(cafile=files.certificate) if as_context else files.certificate
        with pytest.raises(pedcxr_client.BadRequest, match="418"):
            twin.report(url, film, client={"retries": 0, "verify": verify})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_certificates_replaced_after_creation_do_not_matter(tmp_path, monkeypatch, engine, film):
    path = tmp_path / "ca.pem"
    path.write_bytes(make_certificate(tmp_path).certificate.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with Client("https://127.0.0.1:1/v1", retries=0) as client:
        path.write_text("no certificate")
        [result] = client.reports([FilmRequest(film)])
    assert type(result.error) is pedcxr_client.ConnectionFailed


def public_functions() -> list[object]:
    functions: list[object] = [Metrics]
    for name in pedcxr_client.__all__:
        value = getattr(pedcxr_client, name)
        if inspect.isclass(value) and name != "Film":  # its pixels are a Pillow image, which is imported when needed
            functions.append(value)
            functions += [
                member
                for member_name, member in inspect.getmembers(value, inspect.isfunction)
                if not member_name.startswith("_") or (member_name == "__init__" and "Stream" not in name)
            ]
    return functions


@pytest.mark.parametrize("function", public_functions(), ids=lambda value: value.__qualname__)
def test_type_hints_can_be_resolved(function):
    typing.get_type_hints(function)


@pytest.mark.parametrize("twin_client", [Client, AsyncClient])
def test_a_stream_that_is_not_open_says_how_to_open_it(engine, film, twin_client):
    stream = twin_client(engine.url).stream(film)
    iterate, words = (iter, r"write: with ") if twin_client is Client else (aiter, "write: async with ")
    with pytest.raises(RuntimeError, match=words):
        iterate(stream)
    assert stream.text == ""


def test_a_stream_has_its_text_so_far(engine, film):
    with Client(engine.url) as client, client.stream(film) as stream:
        assert stream.text == ""
        pieces = [next(stream), next(stream)]
        assert stream.text == "".join(pieces)
        list(stream)
        assert stream.text == TEXT
