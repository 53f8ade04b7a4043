"""Settings from environment variables, and the variables that Kubernetes sets beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pedcxr_serve.config import load
from pedcxr_serve.config.environment import settings_from, variable_name
from pedcxr_serve.config.settings import SCHEMA
from pedcxr_serve.errors import ConfigError

# What a pod gets for Services named pedcxr, pedcxr-gateway and pedcxr-engine with a port named http.
KUBERNETES = {
    f"{service}{suffix}": value
    for service in ("PEDCXR", "PEDCXR_GATEWAY", "PEDCXR_ENGINE")
    for suffix, value in {
        "_SERVICE_HOST": "10.0.0.7",
        "_SERVICE_PORT": "8000",
        "_SERVICE_PORT_HTTP": "8000",
        "_PORT": "tcp://10.0.0.7:8000",
        "_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "_PORT_8000_TCP_PROTO": "tcp",
        "_PORT_8000_TCP_PORT": "8000",
        "_PORT_8000_TCP_ADDR": "10.0.0.7",
    }.items()
}


def test_options_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("[gateway]\nport = 1000\nadmin_port = 1001\nrestarts = 7\n")
    env = {"PEDCXR_GATEWAY_PORT": "2000", "PEDCXR_GATEWAY_ADMIN_PORT": "2001", "PEDCXR_MODEL": "some/model"}
    config = load.load(file, {"gateway.port": "3000"}, env)
    gateway = config.gateway
    assert (gateway.port, gateway.admin_port, gateway.restarts, gateway.drain_s) == (3000, 2001, 7, 60.0)
    assert (config.model, config.served_name) == ("some/model", "model")


def test_every_setting_has_a_variable_of_its_own() -> None:
    names = [variable_name(field.path) for field in SCHEMA.walk() if not field.children]
    assert len({*names}) == len(names)
    assert "PEDCXR_AUDIT_KEY" not in names and "PEDCXR_API_KEY" not in names


def test_types_are_those_of_the_settings() -> None:
    env = {
        "PEDCXR_GATEWAY_ALLOWED_ORIGINS": '["https://a.org", "https://b.org"]',
        "PEDCXR_ENGINE_EXTRA_ARGS": '["--scheduling-policy", "fcfs"]',
        "PEDCXR_ENGINE_ENFORCE_EAGER": "true",
        "PEDCXR_GATEWAY_DRAIN_S": "2.5",
        "PEDCXR_GATEWAY_TENANTS": "",
    }
    config = load.load(None, {}, env)
    assert config.gateway.allowed_origins == ("https://a.org", "https://b.org")
    assert config.engine.extra_args == ("--scheduling-policy", "fcfs")
    assert (config.engine.enforce_eager, config.gateway.drain_s, config.gateway.tenants) == (True, 2.5, "")


def test_variables_of_kubernetes_are_ignored() -> None:
    assert settings_from(KUBERNETES) == {}
    assert load.load(None, {}, KUBERNETES) == load.load(None, {})


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PEDCXR_GATEWAY_PORT": "many"}, ("environment: PEDCXR_GATEWAY_PORT (gateway.port) = 'many'", "65,535")),
        ({"PEDCXR_GATEWAY_MAX_WATING": "9"}, ("PEDCXR_GATEWAY_MAX_WATING", "did you mean PEDCXR_GATEWAY_MAX_WAITING?")),
        ({"PEDCXR_ENGINE_X": "9"}, ("PEDCXR_ENGINE_X", "no setting")),
        ({"PEDCXR_GATEWAY_ALLOWED_ORIGINS": "https://a.org"}, ("PEDCXR_GATEWAY_ALLOWED_ORIGINS", "not valid TOML")),
        ({"PEDCXR_GATEWAY_HOST": "0.0.0.0"}, ("environment: PEDCXR_GATEWAY_HOST (gateway.host)", "loopback")),
    ],
)
def test_wrong_variable_is_named(env: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load.load(None, {}, env)
    assert all(word in str(caught.value) for word in words), caught.value


def test_password_may_be_in_the_environment() -> None:
    env = {"PEDCXR_GATEWAY_LIMITS_URL": "redis://u:secret@h:1/0"}
    assert load.load(None, {}, env).gateway.limits_url == env["PEDCXR_GATEWAY_LIMITS_URL"]
