"""The files of deploy/ are checked against the program that they start, without a container engine."""

from __future__ import annotations

import configparser
import http.server
import importlib.util
import json
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from packaging.requirements import Requirement

from pedcxr_serve import cli
from pedcxr_serve.config import load
from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.engine import supervisor
from pedcxr_serve.errors import CheckpointError, ConfigError
from pedcxr_serve.gateway.http.server import FLUSH_S
from tests.support.certificates import make_certificate
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GATEWAY = GatewayConfig()
STOP_S = GATEWAY.drain_s + supervisor._STOP_GRACE_S + 2 * FLUSH_S
CONFIG = "/etc/pedcxr/serve.toml"
HOME = "/var/lib/pedcxr"
DOCKERFILES = ["Dockerfile", "Dockerfile.cpu"]
# ADD, ARG, EXPOSE, SHELL and VOLUME are not needed.
INSTRUCTIONS = {"FROM", "COPY", "RUN", "ENV", "WORKDIR", "USER", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions(name: str) -> list[tuple[str, str]]:
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in logical if line.strip())]


def of(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == instruction]


def services() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return compose["services"]


def unit(name: str = "pedcxr.service") -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / name).read_text())
    return parser


def drop_in() -> configparser.ConfigParser:
    return unit("pedcxr-teams.conf")


def command_lines() -> dict[str, list[str]]:
    lines = {name: [*json.loads(of(name, "ENTRYPOINT")[-1]), *_cmd(name)] for name in DOCKERFILES}
    for name, service in services().items():
        if "build" in service:
            entry = json.loads(of(Path(service["build"]["dockerfile"]).name, "ENTRYPOINT")[-1])
            lines[f"compose {name}"] = [*entry, *service.get("command", [])]
    for name, service in (("systemd", unit()["Service"]), ("drop-in", drop_in()["Service"])):
        lines[name] = shlex.split(service["ExecStart"].replace("%t", "/run"))
    return lines


def _cmd(name: str) -> list[str]:
    return [word for text in of(name, "CMD") for word in json.loads(text)]


def seconds(text: str) -> float:
    number, word = re.fullmatch(r"(\d+)(s|m|h)?", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3600, None: 1}[word]


def test_the_example_configuration_loads() -> None:
    settings = load.load(DEPLOY / "serve.toml", {})
    assert settings.gateway == GATEWAY  # the other files rely on these addresses and timeouts
    assert settings.served_name == Path(settings.model).name


@pytest.mark.parametrize("name", [*DOCKERFILES, "compose gpu", "compose cpu", "compose teams", "systemd", "drop-in"])
def test_the_program_accepts_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = command_lines()[name]
    assert Path(program).name in PROJECT["scripts"]
    assert words[0] == "start"
    words = [str(DEPLOY / Path(word).name) if word.startswith("/etc/pedcxr/") else word for word in words]
    assert cli.main([*words, "--dry-run", "--model", "demo", "--device", "cpu"]) == 0
    assert "--uds" in capsys.readouterr().out


@pytest.mark.parametrize("name", DOCKERFILES)
class TestDockerfile:
    def test_starts_from_one_pinned_image(self, name: str) -> None:
        words = [word for word, _ in instructions(name)]
        assert set(words) <= INSTRUCTIONS
        assert words[0] == "FROM" and words.count("FROM") == 1
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", of(name, "FROM")[0])

    def test_copies_files_that_exist(self, name: str) -> None:
        for line in of(name, "COPY"):
            *sources, target = line.split()
            assert target.startswith("/src")
            assert [source for source in sources if not (ROOT / source).exists()] == []

    def test_copies_everything_that_the_wheel_needs(self, name: str) -> None:
        copied = {source for line in of(name, "COPY") for source in line.split()[:-1]}
        assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "client", "serve"} <= copied

    def test_runs_as_an_unprivileged_user_with_its_own_home(self, name: str) -> None:
        uid, _, gid = of(name, "USER")[-1].partition(":")
        assert int(uid) > 0 and int(gid) > 0
        assert of(name, "WORKDIR") == [HOME] and f"HOME={HOME}" in of(name, "ENV")[-1].split()
        assert any(f"install -d -o {uid} -g {gid} -m 0700 {HOME}" in run for run in of(name, "RUN"))

    def test_receives_sigterm_directly(self, name: str) -> None:
        assert of(name, "STOPSIGNAL") == ["SIGTERM"]
        assert isinstance(json.loads(of(name, "ENTRYPOINT")[-1]), list)  # a shell would not forward the signal

    def test_holds_no_secret(self, name: str) -> None:
        assert not re.search(r"(?i)token|password|secret|api_key|-----BEGIN", (DEPLOY / name).read_text())

    def test_passes_hadolint(self, name: str) -> None:
        hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
        if hadolint is None:
            pytest.skip("hadolint not found")
        completed = subprocess.run([hadolint, "--no-color", DEPLOY / name], capture_output=True, text=True)
        assert (completed.returncode, completed.stdout) == (0, "")


def test_the_gpu_image_has_the_vllm_version_of_the_plugin() -> None:
    requirements = next(text for text in PROJECT["optional-dependencies"]["gpu"] if text.startswith("vllm"))
    version = of("Dockerfile", "FROM")[0].rpartition(":v")[2].partition("@")[0]
    assert version in Requirement(requirements).specifier


def locked(name: str) -> dict[str, str]:
    """Return the versions of a lock file by package."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "locks" / name).read_text(), re.MULTILINE))


def test_the_gpu_image_installs_the_versions_that_were_resolved_with_vllm() -> None:
    run = of("Dockerfile", "RUN")[0]
    assert "uv pip install --system --no-cache --require-hashes -r /src/locks/gpu-image.txt" in run
    assert "uv pip install --system --no-cache --no-deps --build-constraint /src/locks/dev.txt /src" in run
    image, gpu = locked("gpu-image.txt"), locked("gpu.txt")
    assert {"aiohttp", "pydicom", "redis", "uvicorn"} <= set(image)
    assert {name: version for name, version in image.items() if gpu.get(name) != version} == {}
    assert {name for name in image if re.match("torch|vllm|nvidia(?!-ml-py)|triton", name)} == set()
    assert "--hash=sha256:" in (ROOT / "locks" / "gpu-image.txt").read_text()


def test_packages_of_the_gpu_image_depend_on_neither_torch_nor_vllm() -> None:
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + extras["serve"] + extras["dicom"] + extras["redis"]
    requirements = [one for one in map(Requirement, texts) if one.name != PROJECT["name"]]
    assert {one.name for one in requirements} <= set(locked("gpu-image.txt"))
    names: set[str] = set()
    while requirements:
        one = requirements.pop()
        if one.name in names:
            continue
        names.add(one.name)
        requirements += [
            other
            for other in map(Requirement, requires(one.name) or [])
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in one.extras | {""})
        ]
    assert {"openai", "pydantic", "redis"} <= names  # the walk followed dependencies
    # nvidia-ml-py is the Python binding of NVML, without any CUDA library.
    assert {name for name in names if re.match("torch|vllm|nvidia(?!-ml-py)|triton", name)} == set()


def test_the_cpu_image_installs_only_the_lock() -> None:
    runs = " ; ".join(of("Dockerfile.cpu", "RUN"))
    assert "uv pip sync --no-cache --require-hashes --compile-bytecode /src/locks/cpu.txt" in runs
    assert "uv pip install --no-cache --no-deps --compile-bytecode --build-constraint /src/locks/dev.txt /src" in runs


class _Health(http.server.BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # such as plain HTTP on a port with TLS


@pytest.mark.parametrize("secure", [False, True], ids=["HTTP", "HTTPS"])
def test_the_health_check_reports_readiness(secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Health, "paths", [])
    checks = {of(name, "HEALTHCHECK")[-1] for name in DOCKERFILES}
    assert len(checks) == 1
    options, _, command = checks.pop().partition(" CMD ")
    assert seconds(options.partition("--start-period=")[2].split()[0]) >= GATEWAY.start_timeout_s
    python, flag, code = json.loads(command)
    address = f"'{GATEWAY.host}', {GATEWAY.port},"
    assert (python, flag) == ("python3", "-c") and address in code
    files = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with _Server((GATEWAY.host, 0), _Health) as probed:
        if secure:
            probed.socket = context.wrap_socket(probed.socket, server_side=True)
        threading.Thread(target=probed.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        here = code.replace(address, f"'{GATEWAY.host}', {probed.server_port},")
        answers = []
        for status in (200, 503):
            monkeypatch.setattr(_Health, "status", status)
            answers.append(subprocess.run([sys.executable, "-I", "-S", flag, here]).returncode)
        probed.shutdown()
    refused = subprocess.run([sys.executable, "-I", "-S", flag, here], stderr=subprocess.DEVNULL).returncode
    assert (answers, bool(refused)) == ([0, 1], True)
    assert set(_Health.paths) == {"/health/ready"}


def test_compose_matches_its_schema() -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema not found")
    schema = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    completed = subprocess.run([sys.executable, *schema, DEPLOY / "compose.yaml"], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_compose_serves_only_the_loopback_of_the_host() -> None:
    for service in services().values():
        assert service["network_mode"] == "host" and "ports" not in service
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert not any("privileged" in key for key in service)
    assert "--web.listen-address=127.0.0.1:9090" in services()["prometheus"]["command"]
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", services()["prometheus"]["image"])


@pytest.mark.parametrize("name", ["gpu", "cpu", "teams"])
def test_compose_grants_what_vllm_needs(name: str) -> None:
    service = services()[name]
    assert service["profiles"] == [name] and service["image"] == f"pedcxr:{'gpu' if name == 'teams' else name}"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["init"] is True and service["shm_size"] == "8gb"
    assert seconds(service["stop_grace_period"]) >= STOP_S
    assert f"cache:{HOME}" in service["volumes"]
    mounts = [mount for mount in service["volumes"] if isinstance(mount, dict)]
    assert all(mount["read_only"] for mount in mounts)
    assert "environment" not in service
    assert service["env_file"] == [{"path": "pedcxr.env", "required": name == "teams"}]


def test_compose_mounts_the_example_configuration() -> None:
    service = services()["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"] if isinstance(mount, dict)}
    assert (DEPLOY / mounts[CONFIG]).samefile(DEPLOY / "serve.toml")
    model = Path(load.load(DEPLOY / "serve.toml", {}).model)
    assert str(model.parent) in mounts and str(model.parent) in mounts[str(model.parent)]


def test_prometheus_scrapes_the_admin_port() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{GATEWAY.admin_port}"]}]
    assert set(job) == {"job_name", "scrape_interval", "static_configs"}  # its own default is /metrics
    assert seconds(job["scrape_interval"]) > 0
    mounted = {mount["target"] for mount in services()["prometheus"]["volumes"] if isinstance(mount, dict)}
    assert {f"--config.file={target}" for target in mounted} <= set(services()["prometheus"]["command"])


def test_prometheus_accepts_its_file() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool not found; install the Debian package prometheus")
    completed = subprocess.run([promtool, "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze not found")
    copy, program = tmp_path / "pedcxr.service", Path(command_lines()["systemd"][0]).as_posix()
    (tmp_path / "pedcxr.service.d").mkdir()
    for source, target in (("pedcxr.service", copy), ("pedcxr-teams.conf", tmp_path / "pedcxr.service.d/teams.conf")):
        target.write_text((DEPLOY / source).read_text().replace(program, sys.executable))  # which must exist
    completed = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True)
    assert [line for line in completed.stderr.splitlines() if "pedcxr" in line] == []
    assert completed.returncode == 0, completed.stderr


def test_the_unit_does_not_restart_after_configuration_errors() -> None:
    service = unit()["Service"]
    assert service["Type"] == "exec" and service["KillMode"] == "mixed" and service["Restart"] == "on-failure"
    assert seconds(service["TimeoutStopSec"]) >= STOP_S
    permanent = {ConfigError.exit_code, CheckpointError.exit_code}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == permanent
    assert service["RestartForceExitStatus"] == "SIGHUP"  # otherwise an orderly end


def test_the_unit_has_a_private_socket_folder() -> None:
    service = unit()["Service"]
    assert service["User"] not in ("", "root")
    assert service["RuntimeDirectoryMode"] == "0700"  # runtime.socket_folder takes no other
    words = command_lines()["systemd"]
    assert words[words.index("--socket-dir") + 1] == f"/run/{service['RuntimeDirectory']}"
    assert service["EnvironmentFile"].startswith("-/etc/pedcxr/")


def test_the_unit_is_hardened_but_allows_cuda() -> None:
    service = unit()["Service"]
    assert {service[key] for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp")} == {"yes"}
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""
    # ProtectClock implies DeviceAllow=char-rtc, which denies every other device.
    breaking = {"MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "ProcSubset"}
    assert breaking.isdisjoint(service)


def test_the_readme_describes_each_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    files = {file.name for file in DEPLOY.iterdir() if file.name[0] != "." and file.suffix not in (".md", ".env")}
    assert {name for name in files if f"`{name}`" not in text} == set()
