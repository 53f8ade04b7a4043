"""tenants.toml: reading, errors, edits by `pedcxr-serve keys`, reloading."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import api_keys, tenants
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.auth.tenants import Key, Tenant, Tenants

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
D1, D2 = tenants.digest("one"), tenants.digest("two")
FILE = f"""
# our teams
[tenant.radiology]
weight = 3            # they paid for it
max_concurrent = 8
requests_per_minute = 60
tokens_per_day = 1_000_000
models = ["m"]
may_sample = true
may_stream = false

[[tenant.radiology.keys]]
sha256 = "{D1}"
expires = 2026-11-23

[tenant.research]
[[tenant.research.keys]]
sha256 = "{D2}"
expires = 2026-11-23T11:59:59Z
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


def parsed(text: str = FILE) -> Tenants:
    return tenants.parse(text, "tenants.toml")


def test_every_setting_is_read() -> None:
    team = parsed().all["radiology"]
    assert (team.weight, team.max_concurrent, team.requests_per_minute, team.tokens_per_day) == (3, 8, 60, 1_000_000)
    assert (team.models, team.may_sample, team.may_stream) == (("m",), True, False)
    assert team.may_use("m") and not team.may_use("n")
    assert parsed().all["research"].may_use("anything")


def test_key_is_valid_until_it_expires() -> None:
    current = parsed()
    owner = current.owner("one", NOW)
    assert owner is not None and owner.name == "radiology"
    assert current.owner("one", NOW + timedelta(hours=12)) is None, "valid to the end of its last day, in UTC"
    assert current.owner("two", NOW) is None
    assert current.owner("", NOW) is None
    assert current.owner("\udcff", NOW) is None


def test_without_a_file_every_key_is_anonymous() -> None:
    owner = Tenants.anonymous().owner("anything", NOW)
    assert owner is not None and owner.name == "anonymous"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenant.a\nweight = 1", "line 1"),
        ("[tennant.a]", "tennant"),
        ("tenant = 3", "[tenant.NAME]"),
        ("[tenant.A]", "tenant.A: the name must be 1 to 32 characters of a-z 0-9 _ -"),
        ("[tenant.anonymous]", "reserved"),
        ("tenant.a = 3", "tenant.a: must be a table"),
        ("[tenant.a]\nwieght = 2", "tenant.a.wieght: unknown name; did you mean weight?"),
        ("[tenant.a]\nweight = 0", "tenant.a.weight = 0: must be a number between 0.01 and 100"),
        ("[tenant.a]\nweight = nan", "tenant.a.weight = nan"),
        ("[tenant.a]\nmax_concurrent = 1.5", "tenant.a.max_concurrent = 1.5: must be an integer between 1 and 100,000"),
        ("[tenant.a]\ntokens_per_day = true", "tokens_per_day = True: must be an integer between 1 and"),
        ("[tenant.a]\nmay_stream = 1", "tenant.a.may_stream = 1: must be true or false"),
        ("[tenant.a]\nmodels = 'm'", "tenant.a.models = 'm': must be a list of strings"),
        ("[tenant.a]\nkeys = 3", "tenant.a.keys = 3: must be a list of tables [[tenant.NAME.keys]]"),
        ("[tenant.a]\nkeys = [3]", "tenant.a.keys[0]: must be a table"),
        ("[[tenant.a.keys]]", "tenant.a.keys[0].sha256: required; must be 64 hexadecimal digits"),
        ("[[tenant.a.keys]]\nsha512 = 'x'", "tenant.a.keys[0].sha512: unknown name; did you mean keys[].sha256?"),
        ("[[tenant.a.keys]]\nsha256 = 'pcx-secret'", "tenant.a.keys[0].sha256: must be 64 hexadecimal digits"),
        (
            f"[[tenant.a.keys]]\nsha256 = '{D1}'\nexpires = 2026-01-01T00:00:00",
            "must be a date, or a date and time with its offset from UTC",
        ),
        (f"[[tenant.a.keys]]\nsha256 = '{D1}'\n[[tenant.b.keys]]\nsha256 = '{D1}'", "also belongs to tenant a"),
    ],
)
def test_error_has_file_key_and_requirement(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("tenants.toml: ")
    assert "pcx-secret" not in str(caught.value)


def test_unreadable_file_is_rejected(path: Path) -> None:
    for content in (b"\xff", b"#" * (2 << 20)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"tenants\.toml"):
            tenants.load(path)
    with pytest.raises(ConfigError, match="keys new"):
        tenants.load(path.with_name("absent"))


def test_first_key_creates_file_and_tenant(path: Path) -> None:
    key = api_keys.new(path, "radiology")
    owner = tenants.load(path).owner(key, NOW)
    assert owner is not None and owner.name == "radiology"
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["tenants.toml"]


def test_new_and_revoke_preserve_comments(path: Path) -> None:
    path.write_text(FILE)
    key = api_keys.new(path, "radiology", expires=date(2999, 1, 1))
    other = api_keys.new(path, "new-team")
    assert FILE.strip() in path.read_text()
    assert {tenant.name for tenant in tenants.load(path).all.values()} == {"radiology", "research", "new-team"}
    assert api_keys.revoke(path, tenants.digest(key)[:12]) == "radiology"
    assert api_keys.revoke(path, D1[:8]) == "radiology"
    current = tenants.load(path)
    assert current.owner(key, NOW) is None and current.owner("one", NOW) is None
    assert current.owner(other, NOW) is not None
    assert current.all["radiology"].weight == 3
    assert "# they paid for it" in path.read_text()


def test_key_table_prints_prefixes_of_digests_only(path: Path) -> None:
    path.write_text(FILE + "\n[tenant.idle]\n")
    text = api_keys.table(path)
    assert D1[:12] in text and D1 not in text
    assert "idle" in text and "(expired)" in text


@pytest.mark.parametrize("name", ["", "A b", "a.b", "a]\n[x", "anonymous"])
def test_invalid_names_are_rejected_and_the_file_is_unchanged(path: Path, name: str) -> None:
    path.write_text(FILE)
    with pytest.raises(ConfigError):
        api_keys.new(path, name)
    assert path.read_text() == FILE


def test_revoke_rejects_absent_ambiguous_and_inline_keys(path: Path) -> None:
    inline = f'[tenant.a]\nkeys = [{{sha256 = "{D1}"}}, {{sha256 = "{D2}"}}]\n'
    path.write_text(inline)
    for prefix, words in (("ffffffff", "0 keys"), ("", "0 keys"), (D1[:3], "0 keys"), (D1[:8], "by hand")):
        with pytest.raises(ConfigError, match=words):
            api_keys.revoke(path, prefix)
    assert path.read_text() == inline


def rewrite(path: Path, text: str) -> None:
    before = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(before + 1, before + 1))


def test_store_reloads_and_survives_an_invalid_edit(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(FILE)
    store = TenantStore(path)
    store.reload_if_changed()
    assert store.reloads == 0
    rewrite(path, FILE + "\n[tenant.late]\n")
    store.reload_if_changed()
    assert "late" in store.current.all and store.reloads == 1
    with caplog.at_level(logging.ERROR):
        rewrite(path, "[tenant.late]\nweight = -1\n")
        store.reload_if_changed()
    assert "radiology" in store.current.all
    assert store.broken is not None and "tenant.late.weight = -1" in store.broken
    assert "tenant.late.weight = -1" in caplog.text
    path.unlink()
    store.reload_if_changed()
    assert "radiology" in store.current.all, "a deleted file counts as an invalid edit"
    path.write_text(FILE)
    store.reload_if_changed()
    assert store.broken is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff"])
def test_store_does_not_go_from_some_tenants_to_none(path: Path, text: str) -> None:
    """A full disk or `: > tenants.toml` would reject every key."""
    path.write_text(FILE)
    store = TenantStore(path)
    path.write_text(text)
    store.reload_if_changed()
    assert set(store.current.all) == {"radiology", "research"}
    assert store.broken is not None and "has no tenant" in store.broken
    path.write_text("[tenant.radiology]\n")
    store.reload_if_changed()
    assert set(store.current.all) == {"radiology"} and store.broken is None


@pytest.mark.parametrize("header", ["[tenant.a]\n", ""], ids=["with a table", "keys only"])
def test_revoking_the_last_key_reaches_a_running_server(path: Path, header: str) -> None:
    path.write_text(f'{header}[[tenant.a.keys]]\nsha256 = "{D1}"\n')
    store = TenantStore(path)
    assert store.current.owner("one", NOW) is not None
    api_keys.revoke(path, D1[:8])
    store.reload_if_changed()
    assert store.broken is None and store.current.owner("one", NOW) is None
    assert set(store.current.all) == {"a"}


def test_store_applies_the_check_of_the_start_at_each_read(path: Path) -> None:
    def refuse(loaded: Tenants) -> None:
        if "late" in loaded.all:
            raise ConfigError("no late tenant")

    path.write_text(FILE)
    store = TenantStore(path, refuse)
    rewrite(path, FILE + "\n[tenant.late]\n")
    store.reload_if_changed()
    assert store.broken == "no late tenant" and set(store.current.all) == {"radiology", "research"}
    with pytest.raises(ConfigError, match="no late tenant"):
        TenantStore(path, refuse)


def test_concurrent_edits_lose_nothing(path: Path) -> None:
    first = api_keys.new(path, "team")
    start = threading.Barrier(9)

    def edit(number: int) -> str:
        start.wait()
        return api_keys.new(path, f"t{number}") if number else api_keys.revoke(path, tenants.digest(first)[:8])

    with ThreadPoolExecutor(9) as pool:
        _, *keys = pool.map(edit, range(9))
    current = tenants.load(path)
    owners = [current.owner(key, datetime.now(UTC)) for key in keys]
    assert [owner and owner.name for owner in owners] == [f"t{number}" for number in range(1, 9)]
    assert current.owner(first, datetime.now(UTC)) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no lock file stays behind"


def test_byte_order_mark_is_accepted(path: Path) -> None:
    path.write_text(f'[[tenant.a.keys]]\nsha256 = "{D1}"\n', encoding="utf-8-sig")
    loaded = tenants.load(path)
    assert set(loaded.all) == {"a"} and loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    key = api_keys.new(path, "b")
    api_keys.revoke(path, D1[:8])
    assert tenants.load(path).owner(key, NOW) is not None and tenants.load(path).owner("one", NOW) is None


def test_file_that_is_removed_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(FILE)

    def load_and_remove(path: Path) -> Tenants:
        loaded = load(path)
        path.unlink()
        return loaded

    load = tenants.load
    monkeypatch.setattr(tenants, "load", load_and_remove)
    store, registry = TenantStore(path), CollectorRegistry()
    store.register(registry)
    rewritten = FILE + "\n[tenant.late]\n"
    for text in (FILE, rewritten):
        path.write_text(text)
        store.reload()
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        assert registry.get_sample_value("pedcxr_tenants_info", {"sha256": digest}) == 1


def test_store_without_a_file_never_reloads() -> None:
    store = TenantStore(None)
    store.reload()
    store.reload_if_changed()
    assert store.current.is_anonymous and store.reloads == 0


def test_reference_contains_every_setting() -> None:
    page = tenants.SCHEMA.markdown("key")
    assert all(f"`{name}`" in page for name in ("weight", "max_concurrent", "models", "may_stream", "tokens_per_day"))


def test_file_that_was_replaced_outside_of_its_mount_is_reported(tmp_path: Path) -> None:
    """A container that mounts the file alone keeps the old one: a key that the host revokes stays valid."""
    path = tmp_path / "tenants.toml"
    path.write_text("[tenant.ward]\n")
    with path.open() as mounted:  # as with a mount, this path leads to the old file after the replacement
        store = TenantStore(Path(f"/proc/self/fd/{mounted.fileno()}"))
        store.reload_if_changed()
        assert store.broken is None
        path.with_suffix(".new").write_text("")
        path.with_suffix(".new").rename(path)
        store.reload_if_changed()
    assert store.broken is not None and "mount its folder" in store.broken


def test_new_key_keeps_the_owner_and_the_mode_of_the_file(tmp_path: Path) -> None:
    """With sudo, the server could not read the file any more."""
    path = tmp_path / "tenants.toml"
    path.write_text("[tenant.ward]\n")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12346)
    before = path.stat()
    api_keys.new(path, "ward")
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_lookup_of_a_key_does_not_depend_on_the_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number}" for number in range(8000)]
    current = Tenants({f"t{key}": Tenant(f"t{key}", keys=(Key(tenants.digest(key)),)) for key in keys})
    checked: list[str] = []
    valid = Key.valid

    def counted(key: Key, now: datetime) -> bool:
        checked.append(key.sha256)
        return valid(key, now)

    monkeypatch.setattr(Key, "valid", counted)
    owner = current.owner("7999", NOW)
    assert owner is not None and owner.name == "t7999"
    assert current.owner("8000", NOW) is None
    assert checked == [tenants.digest("7999")]


def test_key_with_two_dates_of_expiry_is_valid_until_the_later() -> None:
    sha256 = tenants.digest("one")
    first, second = Key(sha256, NOW - timedelta(days=1)), Key(sha256, NOW + timedelta(days=1))
    assert Tenants({"team": Tenant("team", keys=(first, second))}).owner("one", NOW) is not None
