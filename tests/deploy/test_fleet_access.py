"""Who may use a fleet: TLS, X-Forwarded-For and keys, in the shipped files of deploy/fleet."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pedcxr_serve import cli
from tests.deploy.test_fleet import BALANCERS, FLEET, REPLICA, local_fleet, need
from tests.support.certificates import Files, make_certificate
from tests.support.servers.fleet_load import body
from tests.support.servers.gateway_server import CHAT

TRUSTED = "127.0.0.9"
FOREIGN = "203.0.113.9"


@dataclass(frozen=True)
class Front:
    """A balancer with TLS before one replica without keys; it trusts the proxy `TRUSTED`."""

    url: str
    certificate: Path

    def post(self, *words: str, film_bytes: int = 1000) -> str:
        """Send a film with curl; return the HTTP version and the status."""
        curl = f"curl -sS --http2 --cacert {self.certificate} -o /dev/null -w %{{http_version}}_%{{http_code}}"
        command = [*curl.split(), "-H", "Content-Type: application/json", "--data-binary", "@-", *words]
        command.append(self.url + CHAT)
        return subprocess.run(command, input=body(film_bytes=film_bytes), stdout=subprocess.PIPE).stdout.decode()


def with_tls(balancer: str, rendered: str, files: Files) -> str:
    """Return the file of a balancer with the TLS of the shipped one, which `local_fleet.render` removes."""
    shipped = (FLEET / local_fleet.FILES[balancer]).read_text()
    folder = files.certificate.parent
    if balancer == "haproxy":
        # Towards the replica too, as the file's comment and scale-out.md say.
        [options], [verify] = (
            re.findall(text, shipped) for text in (r"bind :::443 v4v6 (.*)", r"`(ssl verify .*)FILE`")
        )
        text = re.sub(r"(frontend api\n    bind \S+)", rf"\1 {options}", rendered)
        text = text.replace("tcp-ut 9s", f"tcp-ut 9s {verify}{files.certificate}").replace("127.0.0.0/8 ::1", TRUSTED)
    else:
        [options] = re.findall(r"listen \[::\]:443 (ssl.*) ipv6only=off;\n", shipped)
        [lines] = re.findall(r"(?:^ +ssl_.*\n)+", shipped, re.MULTILINE)
        text = re.sub(r"(    server \{\n +listen \S+);\n", rf"\1 {options};\n{lines}", rendered, count=1)
        text = text.replace("set_real_ip_from 127.0.0.1", f"set_real_ip_from {TRUSTED}")
    assert text.count(TRUSTED) == 1
    return re.sub(r"/etc/(haproxy|nginx)/pedcxr", str(folder / "pedcxr"), text)


@pytest.fixture(scope="module", params=BALANCERS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    balancer = request.param
    need(balancer)
    need("curl")
    folder = tmp_path_factory.mktemp(balancer)
    files = make_certificate(folder)
    for end, texts in {"crt": [files.certificate], "key": [files.key], "pem": [files.certificate, files.key]}.items():
        (folder / f"pedcxr.{end}").write_text("".join(path.read_text() for path in texts))
    tls = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)] if balancer == "haproxy" else []
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("SSL_CERT_FILE", str(files.certificate))
        replica = local_fleet.Replica(
            [*REPLICA, *tls], local_fleet.free_port(), local_fleet.free_port(), folder / "replica.log"
        )
        replica.start()
        stack.callback(replica.stop)
        server = local_fleet.Balancer(balancer, folder)
        server.configure([replica])
        file = folder / local_fleet.FILES[balancer]
        file.write_text(with_tls(balancer, file.read_text(), files))
        server.url = server.url.replace("http:", "https:")
        stack.callback(server.stop)
        server.start()
        yield Front(server.url, files.certificate)


def test_film_passes_over_tls_and_http_2(front: Front) -> None:
    assert front.post(film_bytes=3_000_000) == "2_200"


@pytest.mark.parametrize(
    ("proxy", "header", "answer"),
    [
        ("127.0.0.1", FOREIGN, "1.1_200"),  # not trusted: the client on this machine is the one that counts
        (TRUSTED, FOREIGN, "1.1_403"),
        (TRUSTED, f"127.0.0.1, {FOREIGN}", "1.1_403"),
        (TRUSTED, "127.0.0.1", "1.1_200"),
    ],
)
def test_other_machine_cannot_use_a_server_without_keys(front: Front, proxy: str, header: str, answer: str) -> None:
    words = ["--http1.1", "--interface", proxy, "-H", f"X-Forwarded-For: {header}", "-H", "Host: localhost"]
    assert front.post(*words) == answer


def test_refused_request_does_not_take_the_next_one(front: Front) -> None:
    """The replica refuses before the body. HAProxy 2.6 may then use the connection again without having sent the body.

    The replica would read the next request as that body, and the rest of it as a request: 400. A client that still
    sends the body may see the end of the stream instead of the 403.
    """
    words = ["--interface", TRUSTED, "-H", f"X-Forwarded-For: {FOREIGN}"]
    answers = {front.post(*words, film_bytes=100_000) for _ in range(60)}
    assert "2_403" in answers and "2_400" not in answers


def test_haproxy_does_not_stay_root() -> None:
    section = (FLEET / "haproxy.cfg").read_text().partition("global\n")[2].partition("\n\n")[0]
    assert re.findall(r"^    (user|group) (\w+)", section, re.MULTILINE) == [("user", "haproxy"), ("group", "haproxy")]


def replicas() -> dict[str, list[tuple[list[str], dict[str, str], str]]]:
    """Return command, environment and volume of each replica of an eight-GPU box, with the lines of the audit log."""
    unit = (FLEET / "pedcxr@.service").read_text().replace("\\\n", "").replace("\n#Environment", "\nEnvironment")
    instances = []
    for number in range(8):
        text = re.sub("%[St]", "/var/lib", unit.replace("%i", str(number)))
        [command] = re.findall(r"^ExecStart=\S+ (.*)", text, re.MULTILINE)
        words = " ".join(re.findall("^Environment=(.*)", text, re.MULTILINE)).split()
        instances.append((command.split(), dict(word.split("=", 1) for word in words), ""))
    compose = (FLEET / "compose.yaml").read_text().replace("  # PEDCXR_", "  PEDCXR_")
    services = [service for name, service in yaml.safe_load(compose)["services"].items() if name != "haproxy"]
    containers = [(["start", *one["command"]], one["environment"], one["volumes"][-1]) for one in services]
    return {"systemd": instances, "compose": containers}


@pytest.mark.parametrize("kind", ["systemd", "compose"])
def test_eight_replicas_need_keys_and_have_records_of_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records = set()
    for words, environment, volume in replicas()[kind]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        gateway = cli.parse([word.replace("/etc/pedcxr/serve", f"{FLEET.parent}/serve") for word in words]).gateway
        assert (gateway.host, gateway.tenants) == ("127.0.0.1", "/etc/pedcxr/tenants.toml")
        assert volume.partition(":")[2] in gateway.usage_db
        records |= {f"{volume} {path}" for path in (gateway.usage_db, gateway.audit_log) if path}
    assert len(records) == 16
