from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pedcxr_serve.config import load
from pedcxr_serve.config.settings import SCHEMA
from pedcxr_serve.errors import ConfigError


def serve_toml(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text)
    return path


def load_error(path: Path | None, overrides: dict[str, object] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load.load(path, overrides or {})
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_serve_the_demo_on_loopback() -> None:
    loaded = load.load(None, {})

    assert (loaded.model, loaded.served_name) == ("demo", "pedcxr-demo")
    assert (loaded.gateway.host, loaded.gateway.port, loaded.gateway.admin_port) == ("127.0.0.1", 8000, 8001)
    assert loaded.engine.max_num_seqs is None


def test_options_override_the_file_and_may_be_text(tmp_path: Path) -> None:
    path = serve_toml(tmp_path, 'model = "owner/name-4b"\n[gateway]\nport = 9000\ndrain_s = 5\n[engine]\ndevice = "l4"')

    overrides = {"gateway.port": "0", "engine.enforce_eager": True, "engine.target_itl_ms": "20", "revision": None}
    loaded = load.load(path, overrides)

    assert loaded.gateway.port == 0
    assert loaded.gateway.drain_s == 5.0
    assert loaded.engine.enforce_eager is True
    assert loaded.engine.target_itl_ms == 20.0
    assert loaded.served_name == "name-4b"


def test_served_name_is_derived_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "my model ü").mkdir()

    assert load.load(None, {"model": str(tmp_path / "my model ü")}).served_name == "my-model--"


def test_reference_file_contains_every_setting_at_its_default(tmp_path: Path) -> None:
    text = SCHEMA.toml()
    loaded = load.load(serve_toml(tmp_path, text), {})

    assert (loaded.gateway, loaded.engine) == (load.load(None, {}).gateway, load.load(None, {}).engine)
    settings = [field for field in SCHEMA.walk() if not field.children]
    assert len(settings) == 67
    assert all(f"{field.name} =" in text for field in settings)
    assert all(f"# {field.description} ({field.requirement})\n" in text for field in settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gateway]\nprot = 8000", ("gateway.prot", "did you mean gateway.port?")),
        ("port = 8000", ("port", "did you mean gateway.port?")),
        ("[gatway]\nport = 8000", ("gatway", "did you mean gateway?")),
        ("gateway = 3", ("gateway = 3", "must be a table [gateway]")),
        ("[gateway.port]\nx = 1", ("gateway.port = {'x': 1}", "must be an integer between 0 and 65,535")),
        ("[gateway]\nport = 'x'", ("gateway.port = 'x'", "must be an integer between 0 and 65,535")),
        ("[gateway]\nport = true", ("gateway.port = True", "must be an integer")),
        ("[gateway]\nport = 65536", ("gateway.port = 65536", "between 0 and 65,535")),
        ("[gateway]\ndrain_s = nan", ("gateway.drain_s = nan", "must be a number between 0 and 3,600")),
        ("[engine]\ndevice = 'tpu'", ("engine.device = 'tpu'", "must be one of auto, h200")),
        ("[engine]\ndtype = 'float16'", ("engine.dtype = 'float16'", "must be one of auto, bfloat16, float32")),
        ("[engine]\nextra_args = '--seed 1'", ("engine.extra_args", "must be a list of strings")),
        ("[engine]\nextra_args = ['--seed', 1]", ("engine.extra_args", "must be a list of strings")),
        ("[engine]\nmax_new_tokens = 2048", ("engine.max_new_tokens = 2048", "engine.max_model_len (2048)")),
        ("[engine]\nblock_size = 48", ("engine.block_size = 48", "must be 16, 32, 64, 128 or 256")),
        ("[gateway]\nport = 9\nadmin_port = 9", ("gateway.admin_port = 9", "must differ from gateway.port")),
        ("model = '  '", ("model = '  '", "a hub id")),
        ('model = "a\\u0000b"', ("model", "printable")),
        ("served_name = 'a b'", ("served_name = 'a b'", "must be 1 to 128 characters")),
        ("served_name = 3", ("served_name = 3", "must be a string")),
        ("model = demo", ("not valid TOML", "line 1, column 9")),
    ],
)
def test_invalid_file_error_has_file_key_value_and_requirement(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    message = load_error(path := serve_toml(tmp_path, text))

    assert str(path) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (1 << 20) + b"\n"], ids=["not utf-8", "too large"])
def test_binary_or_oversized_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "serve.toml"
    path.write_bytes(content)

    assert str(path) in load_error(path)


def test_unreadable_file_is_rejected(tmp_path: Path) -> None:
    assert "No such file" in load_error(tmp_path / "absent.toml")
    assert "Is a directory" in load_error(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("gateway.port", "eighty", ("--port (gateway.port) = 'eighty'", "must be an integer between 0 and 65,535")),
        ("engine.enforce_eager", "maybe", ("--enforce-eager", "true or false")),
        ("engine.prot", "1", ("command line: engine.prot", "unknown name; did you mean gateway.port?")),
        ("engine.max_new_tokens", 4000, ("--max-new-tokens (engine.max_new_tokens) = 4000",)),
    ],
)
def test_invalid_option_error_names_the_option(key: str, value: object, words: tuple[str, ...]) -> None:
    message = load_error(None, {key: value})

    assert all(word in message for word in words)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_public_address_without_tenants_is_rejected(host: str) -> None:
    message = load_error(None, {"gateway.host": host})

    assert "--host (gateway.host)" in message
    assert "authenticated proxy" in message


def test_public_address_with_tenants_is_accepted() -> None:
    loaded = load.load(None, {"gateway.host": "0.0.0.0", "gateway.tenants": "tenants.toml"})
    assert loaded.gateway.host == "0.0.0.0"
    assert "must be an address" in load_error(None, {"gateway.host": "", "gateway.tenants": "tenants.toml"})


@pytest.mark.parametrize(
    "url",
    [
        "collector:4318",
        "grpc://collector:4317",
        "http://",
        "https://a:key@collector/v1",
        "http://collector:4318",
        "http://collector:4318/",
        f"http://{'a' * 64}:4318/v1/traces",
    ],
)
def test_address_of_a_collector_is_a_plain_url(url: str) -> None:
    message = load_error(None, {"telemetry.otlp_endpoint": url})
    assert "--otlp-endpoint (telemetry.otlp_endpoint): must be http://HOST:PORT/PATH" in message
    assert "a:key" not in message


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("[gateway]\nport = 9000\n", encoding="utf-8-sig")
    assert load.load(path, {}).gateway.port == 9000


@pytest.mark.parametrize("name", ["host", "admin_host"])
def test_host_that_no_resolver_takes_is_refused(name: str) -> None:
    host = "a" * 64
    flags = {f"gateway.{name}": host, "gateway.tenants": "t.toml", "gateway.admin_token_file": "token"}
    assert f"(gateway.{name}) = '{host}': must be an address or a host name" in load_error(None, flags)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_address_is_accepted(host: str) -> None:
    assert load.load(None, {"gateway.host": host}).gateway.host == host


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--host", "0.0.0.0"], "private socket"),
        (["--port=80"], "private socket"),
        (["--trust_request_mm_kwargs"], "requests must not"),
        (["--trust-request-chat"], "requests must not"),
        (["--enable-log-req"], "never logged"),
        (["--api-key", "x"], "gateway"),
        (["--otlp-traces-endpoint", "http://127.0.0.1:4317"], "set telemetry.otlp_endpoint instead"),
        (["--seed", "1", "--allowed-local-media-path", "/"], "requests must not"),
        (["--limit-mm-per-prompt.image", "9"], "pedcxr sets it"),
        (["--max-num-seqs", "9"], "set engine.max_num_seqs instead"),
        (["--no-enable-force-include-usage"], "pedcxr sets it"),
        (["--config", "x.yaml"], "bypass"),
        (["-asc", "4"], "long form"),
        (["--"], "long form"),
        (["stray"], "without an option"),
    ],
)
def test_extra_arguments_that_break_a_guarantee_are_rejected(args: list[str], words: str) -> None:
    message = load_error(None, {"engine.extra_args": args})

    assert "engine.extra_args" in message
    assert words in message


def test_harmless_extra_arguments_are_accepted() -> None:
    args = ["--attention-backend", "TRITON_ATTN", "--seed", "-1", "--no-enable-prefix-caching"]

    assert load.load(None, {"engine.extra_args": args}).engine.extra_args == tuple(args)


@pytest.mark.parametrize("value", ["1", "2", "true"])
def test_rust_frontend_is_rejected(value: str) -> None:
    with pytest.raises(ConfigError, match=r"VLLM_USE_RUST_FRONTEND.*[Aa]llowed: unset, or 0"):
        load.reject_environment({"VLLM_USE_RUST_FRONTEND": value})


def test_vllm_api_key_is_rejected_and_not_printed() -> None:
    with pytest.raises(ConfigError) as caught:
        load.reject_environment({"VLLM_API_KEY": "s3cret"})

    assert "s3cret" not in str(caught.value)


def test_port_of_a_kubernetes_service_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"VLLM_PORT.*Service named vllm"):
        load.reject_environment({"VLLM_PORT": "tcp://10.0.0.1:8000"})


def test_ordinary_environment_is_accepted() -> None:
    load.reject_environment({"VLLM_USE_RUST_FRONTEND": "0", "VLLM_PORT": "9000", "HOME": "/"})


def test_options_are_unique_and_the_reference_is_valid_toml() -> None:
    options = [load.option_name(field.path) for field in SCHEMA.walk(by_name=False) if not field.children]

    assert len(set(options)) == len(options)
    tables = {"gateway", "engine", "telemetry"}
    assert set(tomllib.loads(SCHEMA.toml())) == {"model", "served_name", "require_promotion"} | tables
