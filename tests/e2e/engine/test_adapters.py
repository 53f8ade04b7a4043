"""Two adapters beside their base on one real engine, for two tenants; the adapters are random."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import openai
import pytest

from pedcxr_client import Client
from pedcxr_serve.checkpoint import adapter, revision
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.engine import health
from pedcxr_serve.errors import AdapterError
from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.auth import api_keys
from tests.benchmarks import transformers_baseline
from tests.benchmarks.transformers_baseline import Options
from tests.e2e.served_reports import Study, token_ids
from tests.support import lora_adapter
from tests.support.films.phantom_films import AGE, fresh
from tests.support.servers.gateway_server import eventually
from tests.support.servers.live_server import COMMAND, family, title
from tests.support.servers.local_server import LocalServer, server

pytestmark = pytest.mark.slow

BASE, NORTH, SOUTH = "pedcxr-demo", "north", "south"
MODELS = (BASE, NORTH, SOUTH)
FILMS = 8
TOKENS = 48  # the reports of random weights need not end
CONFIG = """
[gateway]
tenants = "{folder}/tenants.toml"
audit_log = "{folder}/audit.jsonl"
[adapters.north]
path = "{folder}/north"
rank = 8
tenants = ["all", "n"]
[adapters.south]
path = "{folder}/south"
tenants = ["all"]
"""
TENANTS = '[tenant.all]\n[tenant.n]\nmodels = ["north"]\ndefault_model = "north"\n[tenant.other]\n'


@dataclass(frozen=True)
class Running:
    server: LocalServer
    keys: Mapping[str, str]
    folder: Path

    def client(self, tenant: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.Client(base_url=self.server.root, headers=headers, timeout=120, trust_env=False)

    def revision(self, model: str) -> str:
        base = revision.of(CHECKPOINT)
        return base if model == BASE else f"{base}+{adapter.revision(self.folder / model)}"

    def tokens(self, studies: list[tuple[str, Study]], in_flight: int) -> list[list[int]]:
        """Return the token ids of the reports of these models and films."""

        async def all_of_them() -> list[list[int]]:
            gate = asyncio.Semaphore(in_flight)
            async with openai.AsyncOpenAI(
                base_url=self.server.url, api_key=self.keys["all"], max_retries=0, timeout=300
            ) as client:

                async def one(model: str, study: Study) -> list[int]:
                    async with gate:
                        return token_ids(
                            await client.chat.completions.create(
                                model=model,
                                messages=study.messages(),
                                max_tokens=TOKENS,
                                extra_body={"return_token_ids": True},
                            )
                        )

                return await asyncio.gather(*(one(*pair) for pair in studies))

        return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("adapters")
    lora_adapter.make(folder / NORTH, seed=1, rank=8)
    lora_adapter.make(folder / SOUTH, seed=2, rank=12)
    (folder / "serve.toml").write_text(CONFIG.format(folder=folder))
    tenants = folder / "tenants.toml"
    tenants.write_text(TENANTS)
    keys = {name: api_keys.new(tenants, name) for name in ("all", "n", "other")}
    with server("--config", str(folder / "serve.toml"), env={audit.KEY_VARIABLE: os.urandom(32).hex()}) as ready:
        yield Running(ready, keys, folder)


@pytest.fixture(scope="module")
def alone(running: Running, phantoms: list[Study]) -> dict[str, list[list[int]]]:
    """Return the tokens of each model, one request at a time."""
    return {model: running.tokens([(model, study) for study in phantoms[:FILMS]], 1) for model in MODELS}


def test_a_mixed_batch_gives_the_same_tokens(
    alone: dict[str, list[list[int]]], running: Running, phantoms: list[Study]
) -> None:
    mixed = [(model, study) for study in phantoms[:FILMS] for model in MODELS]
    tokens = running.tokens(mixed, len(mixed))
    assert tokens == [alone[model][film] for film in range(FILMS) for model in MODELS]
    assert len({json.dumps(tokens) for tokens in alone.values()}) == len(MODELS)


def test_the_engine_tells_an_adapter_from_its_base(running: Running) -> None:
    """An engine that answers with the base under an adapter's name is detected, whatever the reason."""
    [socket] = {
        words[words.index("--uds") + 1]
        for pid in family(running.server.process.pid)
        if "--uds" in (words := title(pid).split("\0"))
    }

    async def check() -> None:
        async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(socket)) as session:
            await health.warm_up(session, BASE)  # so that the prefix of the base is cached
            for model in (NORTH, SOUTH):
                await health.check_adapter(session, model, BASE)
                with pytest.raises(AdapterError, match=f"{model}: has no effect"):
                    await health.check_adapter(session, model, model)
            assert await health.first_token(session, BASE) == pytest.approx(
                await health.first_token(session, BASE), abs=health._SAME_LOGPROB / 10
            )

    asyncio.run(check())


def test_tenants_see_and_use_their_adapters_only(running: Running, phantoms: list[Study]) -> None:
    body = {"messages": phantoms[0].messages(), "max_tokens": 4}
    allowed = {"all": list(MODELS), "n": [NORTH], "other": [BASE]}
    for tenant, models in allowed.items():
        with running.client(tenant) as client:
            listing = client.get("/v1/models").json()["data"]
            assert [entry["id"] for entry in listing] == models
            assert [entry["pedcxr"]["revision"] for entry in listing] == [running.revision(model) for model in models]
            assert {entry["max_model_len"] for entry in listing} == {2048}
            for model in MODELS:
                answer = client.post("/v1/chat/completions", json=body | {"model": model})
                assert answer.status_code == (200 if model in models else 404), answer.text
            unnamed = client.post("/v1/chat/completions", json=body)
            default = NORTH if tenant == "n" else BASE
            assert (unnamed.json()["model"], unnamed.headers["x-pedcxr-revision"]) == (
                default,
                running.revision(default),
            )


def test_audit_metrics_and_provenance_name_the_adapter(running: Running, phantoms: list[Study]) -> None:
    with running.client("n") as client:
        body = {"messages": phantoms[1].messages(), "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "of-north"}).status_code == 200
    log = running.folder / "audit.jsonl"
    eventually(lambda: '"of-north"' in log.read_text())  # written after the answer
    lines = log.read_text().splitlines()
    [entry] = [entry for line in lines if (entry := json.loads(line))["request_id"] == "of-north"]
    assert (entry["model"], entry["revision"]) == (NORTH, running.revision(NORTH))
    page = httpx.get(running.server.metrics_url, timeout=60, trust_env=False).text
    assert re.search(r'^pedcxr_model_requests_total\{model="north",outcome="length"\} [1-9]', page, re.M)
    assert f'pedcxr_model_info{{model="north",revision="{running.revision(NORTH)}"}} 1.0' in page
    with Client(running.server.url, api_key=running.keys["n"]) as client:
        assert client.model().name == NORTH  # the tenant's default


def test_no_request_loads_an_adapter(running: Running) -> None:
    [socket] = {
        words[words.index("--uds") + 1]
        for pid in family(running.server.process.pid)
        if "--uds" in (words := title(pid).split("\0"))
    }
    body = {"lora_name": "new", "lora_path": str(running.folder / NORTH)}
    with running.client("all") as client:
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 404
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://engine") as engine:
        assert engine.post("/v1/load_lora_adapter", json=body).status_code == 404


def test_reports_equal_those_of_the_merged_weights(
    alone: dict[str, list[list[int]]], running: Running, phantoms: list[Study], tmp_path: Path
) -> None:
    """The reference is transformers, with the adapter merged into the weights. `test_parity` compares the base."""
    questions = [study.question for study in phantoms[:FILMS]]
    merged = lora_adapter.merged(tmp_path / "merged", running.folder / SOUTH)
    assert alone[SOUTH] == transformers_baseline.ask(merged, questions, options=Options(TOKENS)).ids


def test_an_adapter_without_effect_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    """vLLM 0.32 loads it without a warning, and answers with the base's reports under its name."""
    lora_adapter.make(tmp_path / NORTH, rename=lora_adapter.without_language_model)
    (tmp_path / "serve.toml").write_text(f'[adapters.north]\npath = "{tmp_path}/north"\n')
    command = [COMMAND, "start", "--port", "0", "--admin-port", "0", "--config", str(tmp_path / "serve.toml")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 3
    assert "contains 56 of 56 weights that belong to no module of the base" in process.stderr
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in process.stderr


def test_promote_reports_both_sides_on_one_engine_and_refuses_random_weights(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path / NORTH, seed=1)
    films = [fresh(kind) for kind in range(4)]
    for number, film in enumerate(films):
        (tmp_path / f"{number}.png").write_bytes(film.png)
    lines = "".join(f"{number}.png,{AGE},M\n" for number in range(len(films)))
    (tmp_path / "films.csv").write_text("path,age,sex\n" + lines)
    command = [COMMAND, "promote", str(folder), "--against", "demo", "--films", str(tmp_path / "films.csv")]
    command += ["--out", str(tmp_path / "out"), "--min-films", "1", "--", "--max-tokens", str(2 * TOKENS)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert process.returncode == 1, process.stderr
    result = json.loads((tmp_path / "out/promotion.json").read_text())
    assert result["old"]["outcomes"] == {"ok": len(films)}
    assert result["old"]["models"] == [f"{BASE}@{revision.of(CHECKPOINT)}"]
    reports = [json.loads(line) for line in (tmp_path / "out/old.jsonl").read_text().splitlines()]
    assert sorted(report["text"] for report in reports) == sorted(film.report for film in films)
    assert sum(result["new"]["outcomes"].values()) == len(films)
    assert process.stderr.count("pedcxr: starting") == 1
