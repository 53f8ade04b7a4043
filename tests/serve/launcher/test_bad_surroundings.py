"""What a server says at its start about ports, folders and files that it cannot use."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pedcxr_serve import cli
from pedcxr_serve.config.settings import EngineConfig, GatewayConfig, ServeConfig
from pedcxr_serve.engine import socket_dir
from pedcxr_serve.errors import ConfigError, PortInUse
from pedcxr_serve.gateway.accounting.usage import UsageStore
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.launcher.preparation import Preparation
from pedcxr_serve.planner import devices

NOT_WRITABLE = "/proc"  # for every user, root included


@pytest.mark.parametrize("name", ["port", "admin_port"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_in_use_is_named_with_its_setting(name: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        ports = {"port": 0, "admin_port": 0} | {name: other.getsockname()[1]}
        option = f"--{name.replace('_', '-')}"
        with (
            pytest.raises(PortInUse, match=rf"gateway\.{name} = .* in use; stop the program .* with {option}"),
            listen(GatewayConfig(host=host, admin_host=host, **ports)),
        ):
            pytest.fail("the port was bound twice")


@pytest.mark.parametrize(
    ("hosts", "option"), [({"host": "2001:db8::1"}, "--host"), ({"admin_host": "192.0.2.1"}, "--admin-host")]
)
def test_address_that_this_machine_lacks_is_named(hosts: dict[str, Any], option: str) -> None:
    with (
        pytest.raises(PortInUse, match=f"cannot listen on .*; choose another address with {option}$"),
        listen(GatewayConfig(port=0, admin_port=0, **hosts)),
    ):
        pytest.fail("the address was bound")


def test_missing_tenants_file_ends_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tenants.toml"
    words = ["gateway", "--engine", f"unix:{tmp_path}/s", "--port", "0", "--admin-port", "0", "--tenants", str(path)]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert f"{path}: cannot be read (No such file or directory)" in err and "pedcxr-serve keys new" in err


def test_second_server_beside_the_same_tenants_file_needs_a_usage_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default both would count in the file beside tenants.toml, and each restart would count its tokens again."""
    (tmp_path / "tenants.toml").write_text("[tenant.ward]\n")
    words = ["gateway", "--engine", f"unix:{tmp_path}/s", "--port", "0", "--admin-port", "0"]
    words += ["--tenants", str(tmp_path / "tenants.toml")]
    first = UsageStore(tmp_path / "usage.sqlite")
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert f"gateway.usage_db: {tmp_path}/usage.sqlite: another server counts in it" in err and "--usage-db FILE" in err
    first.close()


def test_folder_of_temporary_files_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", NOT_WRITABLE)
    with pytest.raises(ConfigError, match="free space on its disk, or set TMPDIR"), socket_dir.socket_folder():
        pytest.fail("the folder was created")

    def no_folder() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    assert socket_dir.remove_stale_folders() == []


@pytest.mark.parametrize(
    ("device", "eager", "warns"), [("h200", None, True), ("h200", True, False), ("cpu", None, False)]
)
def test_read_only_cache_folder_is_reported_where_kernels_are_compiled(
    device: str, eager: bool | None, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    settings: Any = ServeConfig(model="m", engine=EngineConfig(enforce_eager=eager))
    checkpoint: Any = None
    preparation = Preparation(settings, tmp_path, checkpoint, devices.TABLE[device], {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert list(preparation.warnings()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", NOT_WRITABLE)
    assert any("compiled kernels are not kept" in line for line in preparation.warnings()) is warns
