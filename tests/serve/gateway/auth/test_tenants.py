"""tenants.toml: read, refused, edited by `pedcxr-serve keys`, reloaded."""

from __future__ import annotations

import logging
import os
import stat
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import api_keys, tenants
from pedcxr_serve.gateway.auth.tenant_store import Book
from pedcxr_serve.gateway.auth.tenants import Tenants

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
D1, D2 = tenants.digest("one").hex(), tenants.digest("two").hex()
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


def test_a_file() -> None:
    team = parsed().all["radiology"]
    assert (team.weight, team.max_concurrent, team.requests_per_minute, team.tokens_per_day) == (3, 8, 60, 1_000_000)
    assert (team.models, team.may_sample, team.may_stream) == (("m",), True, False)
    assert team.may_use("m") and not team.may_use("n")
    assert parsed().all["research"].may_use("anything")


def test_keys_open_until_they_expire() -> None:
    known = parsed()
    owner = known.owner("one", NOW)
    assert owner is not None and owner.name == "radiology"
    assert known.owner("one", NOW + timedelta(hours=12)) is None, "a date is good to the end of its day, in UTC"
    assert known.owner("two", NOW) is None
    assert known.owner("", NOW) is None
    assert known.owner("\udcff", NOW) is None


def test_without_a_file_everybody_is_anonymous() -> None:
    owner = Tenants.nobody_in_particular().owner("anything", NOW)
    assert owner is not None and owner.name == "anonymous"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenant.a\nweight = 1", "line 1"),
        ("[tennant.a]", "tennant"),
        ("tenant = 3", "[tenant.NAME]"),
        ("[tenant.A]", "tenant.A: allowed are names"),
        ("[tenant.anonymous]", "reserved"),
        ("tenant.a = 3", "tenant.a: write"),
        ("[tenant.a]\nwieght = 2", "tenant.a.wieght: no such setting; allowed are weight"),
        ("[tenant.a]\nweight = 0", "tenant.a.weight = 0: allowed is a number from 0.01 to 100"),
        ("[tenant.a]\nweight = nan", "tenant.a.weight = nan"),
        ("[tenant.a]\nmax_concurrent = 1.5", "a whole number from 1"),
        ("[tenant.a]\ntokens_per_day = true", "tokens_per_day = True"),
        ("[tenant.a]\nmay_stream = 1", "true or false"),
        ("[tenant.a]\nmodels = 'm'", "a list of names"),
        ("[tenant.a]\nkeys = 3", "[[tenant.a.keys]]"),
        ("[[tenant.a.keys]]\nsha512 = 'x'", "tenant.a.keys[0]: allowed are sha256 and expires"),
        ("[[tenant.a.keys]]\nsha256 = 'pcx-secret'", "tenant.a.keys[0].sha256: allowed is a digest"),
        (f"[[tenant.a.keys]]\nsha256 = '{D1}'\nexpires = 2026-01-01T00:00:00", "offset from UTC"),
        (f"[[tenant.a.keys]]\nsha256 = '{D1}'\n[[tenant.b.keys]]\nsha256 = '{D1}'", "a's key too"),
    ],
)
def test_what_is_wrong_is_told_with_file_key_and_remedy(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("tenants.toml: ")
    assert "pcx-secret" not in str(caught.value)


def test_an_unreadable_file(path: Path) -> None:
    for content in (b"\xff", b"#" * (2 << 20)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"tenants\.toml"):
            tenants.load(path)
    with pytest.raises(ConfigError, match="keys new"):
        tenants.load(path.with_name("absent"))


def test_a_first_key_makes_file_and_tenant(path: Path) -> None:
    key = api_keys.new(path, "radiology")
    owner = tenants.load(path).owner(key, NOW)
    assert owner is not None and owner.name == "radiology"
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["tenants.toml"]


def test_keys_come_and_go_and_comments_stay(path: Path) -> None:
    path.write_text(FILE)
    key = api_keys.new(path, "radiology", expires=date(2999, 1, 1))
    other = api_keys.new(path, "new-team")
    assert FILE.strip() in path.read_text()
    assert {tenant.name for tenant in tenants.load(path).all.values()} == {"radiology", "research", "new-team"}
    assert api_keys.revoke(path, tenants.digest(key).hex()[:12]) == "radiology"
    assert api_keys.revoke(path, D1[:8]) == "radiology"
    known = tenants.load(path)
    assert known.owner(key, NOW) is None and known.owner("one", NOW) is None
    assert known.owner(other, NOW) is not None
    assert known.all["radiology"].weight == 3
    assert "# they paid for it" in path.read_text()


def test_the_listing_names_keys_without_giving_them(path: Path) -> None:
    path.write_text(FILE + "\n[tenant.idle]\n")
    shown = api_keys.listing(path)
    assert D1[:12] in shown and D1 not in shown
    assert "idle" in shown and "(expired)" in shown


@pytest.mark.parametrize("name", ["", "A b", "a.b", "a]\n[x", "anonymous"])
def test_bad_names_are_refused_and_the_file_stays(path: Path, name: str) -> None:
    path.write_text(FILE)
    with pytest.raises(ConfigError):
        api_keys.new(path, name)
    assert path.read_text() == FILE


def test_a_key_that_is_not_there_or_not_in_lines_of_its_own(path: Path) -> None:
    inline = f'[tenant.a]\nkeys = [{{sha256 = "{D1}"}}, {{sha256 = "{D2}"}}]\n'
    path.write_text(inline)
    for short, words in (("ffffffff", "0 keys"), ("", "0 keys"), (D1[:3], "0 keys"), (D1[:8], "by hand")):
        with pytest.raises(ConfigError, match=words):
            api_keys.revoke(path, short)
    assert path.read_text() == inline


def touched(path: Path, text: str) -> None:
    before = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(before + 1, before + 1))


def test_the_book_follows_the_file_and_survives_a_broken_edit(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(FILE)
    book = Book(path)
    book.look()
    assert book.reloads == 0
    touched(path, FILE + "\n[tenant.late]\n")
    book.look()
    assert "late" in book.current.all and book.reloads == 1
    with caplog.at_level(logging.ERROR):
        touched(path, "[tenant.late]\nweight = -1\n")
        book.look()
    assert "radiology" in book.current.all
    assert book.broken is not None and "tenant.late.weight = -1" in book.broken
    assert "tenant.late.weight = -1" in caplog.text
    path.unlink()
    book.look()
    assert "radiology" in book.current.all, "a file that is gone is a broken edit"
    path.write_text(FILE)
    book.look()
    assert book.broken is None


def test_a_book_without_a_file_never_reloads() -> None:
    book = Book(None)
    book.reload()
    book.look()
    assert book.current.anonymous


def test_every_setting_is_in_the_reference() -> None:
    page = tenants.reference()
    assert all(f"`{name}`" in page for name in ("weight", "max_concurrent", "models", "may_stream", "tokens_per_day"))
