"""What a gateway accepts as its engine, and which guarantees it states."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from yarl import URL

from pedcxr_serve.config import load
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine import address, remote
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.description import Share
from pedcxr_serve.engine.remote import EngineFacts
from pedcxr_serve.errors import ConfigError
from tests.support.servers.apart import DESCRIPTION, engine_apart
from tests.support.servers.fake_engine import FakeEngine

OURS = EngineFacts(URL("http://127.0.0.1:8100"), "0.32.1", DESCRIPTION, frozenset({"fake"}), True, True)
FOREIGN = replace(OURS, described=None, address=URL("http://10.0.0.7:8000"), needs_key=False)


def settings(**gateway: object) -> ServeConfig:
    return load.load(None, {f"gateway.{name}": value for name, value in gateway.items()})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/run/pedcxr/engine.sock", Path("/run/pedcxr/engine.sock")),
        ("unix:///run/engine.sock", Path("/run/engine.sock")),
        ("http://10.0.0.5:8100", URL("http://10.0.0.5:8100")),
        ("http://[fd00::5]:8100/", URL("http://[fd00::5]:8100")),
        ("https://engine.example", URL("https://engine.example")),
    ],
)
def test_forms_of_an_address(text: str, expected: EngineAddress) -> None:
    assert address.parse(text) == expected
    assert address.parse(address.describe(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:run/engine.sock", "/run/engine.sock", "10.0.0.5:8100", "tcp://10.0.0.5:8100",
             "http://", "http://h:99999", "http://h:0", "http://h/v1", "http://h?x", "http://u:p@h"],
)  # fmt: skip
def test_other_texts_are_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.engine = "):
        address.parse(text)


@pytest.mark.parametrize("text", ["10.0.0.5", ":8100", "10.0.0.5:0", "http://h:1", "h:1/x", "u@h:1", "h:x"])
def test_other_texts_are_no_listener(text: str) -> None:
    assert address.listener("[fd00::5]:8100") == URL("http://[fd00::5]:8100")
    with pytest.raises(ConfigError, match=r"engine\.listen = "):
        address.listener(text)


def test_engine_of_this_release_is_accepted() -> None:
    assert remote.require_acceptable(OURS, settings()) == DESCRIPTION
    [line] = remote.guarantees(OURS)
    assert line.endswith("all guarantees hold")


@pytest.mark.parametrize(("version", "allowed"), [("0.33.0", "0.33"), ("0.31.2", "any"), (None, "any")])
def test_another_version_is_refused_by_name_unless_allowed(version: str | None, allowed: str) -> None:
    facts = replace(OURS, version=version)
    with pytest.raises(ConfigError, match=f"{version or 'no version'}.*allow_engine_version"):
        remote.require_acceptable(facts, settings())
    with pytest.raises(ConfigError):
        remote.require_acceptable(facts, settings(allow_engine_version="0.30"))
    assert remote.require_acceptable(facts, settings(allow_engine_version=allowed)) == DESCRIPTION


def test_engine_without_the_plugin_is_refused_unless_allowed() -> None:
    facts = replace(OURS, has_plugin=False)
    with pytest.raises(ConfigError, match="16-bit film, which becomes white"):
        remote.require_acceptable(facts, settings())
    assert remote.require_acceptable(facts, settings(allow_plain_vllm=True)) == DESCRIPTION
    assert any("DOES NOT HOLD  a film" in line for line in remote.guarantees(facts))


def test_engine_of_somebody_else_needs_slots_and_is_described() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.slots"):
        remote.require_acceptable(FOREIGN, settings())
    engine = remote.require_acceptable(FOREIGN, settings(slots=12))
    assert (engine.model, engine.slots, engine.demo) == ("fake", 12, False)
    lines = remote.guarantees(FOREIGN)
    assert "not run by `pedcxr-serve engine`" in lines[0]
    assert [line.split("  ")[1] for line in lines[1:]].count("not known") == 4
    assert [line for line in lines if "DOES NOT HOLD" in line] == [
        "  DOES NOT HOLD  only this user and holders of the key reach the engine",
        "  DOES NOT HOLD  films and reports are not readable on the network between gateway and engine",
    ]


def test_slots_of_two_gateways_are_parts_of_the_engine() -> None:
    assert DESCRIPTION.share(settings().gateway) == Share(32, 2, 8)
    assert DESCRIPTION.share(settings(slots=16).gateway) == Share(16, 1, 4)
    assert DESCRIPTION.share(settings(slots=1).gateway) == Share(1, 1, 1)
    assert DESCRIPTION.share(settings(slots=99).gateway) == Share(32, 2, 8), "never more than the engine has"
    assert DESCRIPTION.share(settings(slots=16, max_starting=9).gateway) == Share(16, 1, 9)


def identify(where: EngineAddress, key: str = "") -> EngineFacts:
    async def ask() -> EngineFacts:
        async with address.session(where, key) as session:
            return await remote.identify(session, where)

    return asyncio.run(ask())


def test_engine_apart_is_identified(tmp_path: Path) -> None:
    with engine_apart(tmp_path / "run"):
        facts = identify(tmp_path / "run/engine.sock")
    assert facts == replace(OURS, address=tmp_path / "run/engine.sock", version="0.32.0", needs_key=False)
    (tmp_path / "run").chmod(0o755)
    assert any("DOES NOT HOLD  only this user" in line for line in remote.guarantees(facts))


def test_wrong_key_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * 32)
    with engine_apart(tmp_path / "run", key_file=tmp_path / "key", tcp=True) as engine:
        where = address.parse(engine.url.removesuffix("/v1"))
        with pytest.raises(ConfigError, match=r"engine\.key_file"):
            identify(where, "x" * 32)
        assert identify(where, "k" * 32).needs_key


@pytest.mark.parametrize("version", [None, "0.33.0"])
def test_plain_vllm_is_identified(version: str | None) -> None:
    with FakeEngine() as engine:
        engine.version = version
        facts = identify(address.parse(engine.url.removesuffix("/v1")))
    assert (facts.version, facts.described, facts.has_plugin, facts.needs_key) == (version, None, False, False)
    assert facts.models == {"fake"}
