"""``pedcxr-serve promote``: report the same films with a new and an old model, adapter or setting, and decide."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pedcxr_client.batch import folder, manifest
from pedcxr_client.batch.manifest import Entry
from pedcxr_client.errors import InputError, PedcxrError
from pedcxr_client.evaluation import lexicon, references
from pedcxr_serve.checkpoint.adapter import CONFIG
from pedcxr_serve.config import load, paths
from pedcxr_serve.config.settings import AdapterConfig, GatewayConfig, ServeConfig
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.launcher import promotion
from pedcxr_serve.launcher.promotion import Decision, Thresholds


@dataclass(frozen=True, slots=True)
class Candidate:
    """One side of the comparison: an engine to start, or a run that exists.

    Attributes:
        name: ``new`` or ``old``; the engine serves its adapter under this name.
        source: as the user named it.
        settings: of the engine, without adapters; None for an existing run.
        adapter: folder of the adapter that writes the reports, or None.
        run: the file of the reports.
    """

    name: str
    source: str
    settings: ServeConfig | None
    adapter: Path | None
    run: Path


def resolve(name: str, source: str, settings: ServeConfig, base: str | None, out: Path) -> Candidate:
    """Return what a source names: ``RUN.jsonl``, ``serve.toml``, the folder of an adapter, or a model.

    Args:
        name: ``new`` or ``old``.
        settings: of the engine, for a source that is an adapter or a model.
        base: model of an adapter; None takes that of the settings.
        out: folder for the reports.

    Raises:
        ConfigError: the file does not exist or is invalid.
    """
    path, run = paths.expand(source), out / f"{name}.jsonl"
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise ConfigError(f"{path}: no such file. Give the output of `pedcxr batch`.")
        return Candidate(name, source, None, None, path)
    if path.suffix == ".toml":
        return Candidate(name, source, _private(load.load(path, {})), None, run)
    if (path / CONFIG).exists() and not (path / "config.json").exists():
        return Candidate(name, source, _private(_of_model(settings, base or settings.model)), path, run)
    return Candidate(name, source, _private(_of_model(settings, source)), None, run)


def run(
    new: Candidate, old: Candidate, films: Path, reference: Path | None, thresholds: Thresholds, batch: Sequence[str]
) -> Decision:
    """Write the reports of both sides, and decide. An interrupted run continues where it stopped.

    Args:
        films: folder or manifest for ``pedcxr batch``.
        batch: further options of ``pedcxr batch``.

    Raises:
        ServeError: an engine does not start, or a run cannot be written or compared.
    """
    if reference is not None:
        _reference(reference)  # before minutes of reports
    waiting = [side for side in (old, new) if side.settings is not None]
    if waiting:
        _require_films(films, allow_outside="--allow-outside" in batch)
    # Sides that differ in the adapter only share one engine.
    while waiting:
        shared = [side for side in waiting if side.settings == waiting[0].settings]
        waiting = [side for side in waiting if side not in shared]
        _report(shared, films, batch)
    try:
        return promotion.decide(new.run, old.run, None if reference is None else _reference(reference), thresholds)
    except PedcxrError as error:
        raise ConfigError(str(error)) from error


def _require_films(films: Path, *, allow_outside: bool) -> None:
    """Raise, before an engine takes minutes to start, if ``pedcxr batch`` could not read the films."""
    try:
        if films.is_dir():
            if not any(isinstance(item, Entry) for item in folder.walk(str(films), allow_outside=allow_outside)):
                raise ConfigError(f"--films {films}: holds no film. Give a folder of films, or a manifest.")
        else:
            manifest.check(str(films), allow_outside=allow_outside)
    except InputError as error:
        raise ConfigError(f"--films {films}: {error}") from error


def _report(sides: Sequence[Candidate], films: Path, batch: Sequence[str]) -> None:
    from pedcxr_serve.launcher import start  # loads the HTTP servers

    settings = sides[0].settings
    assert settings is not None
    model = settings.served_name

    async def work(url: str) -> None:
        for side in sides:
            await _batch(url, model if side.adapter is None else side.name, films, side, batch)

    adapters = {side.name: AdapterConfig(path=str(side.adapter)) for side in sides if side.adapter is not None}
    start.start(msgspec.structs.replace(settings, adapters=adapters), work=work)


async def _batch(url: str, model: str, films: Path, side: Candidate, options: Sequence[str]) -> None:
    print(f"promote: reports of {side.source} to {side.run}", flush=True)
    command = [sys.executable, "-m", "pedcxr_client", "batch", str(films), "-o", str(side.run)]
    command += ["--url", url, "--model", model, *options]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    # 3: films were refused, on both sides alike. 4: films have no usable report, which the decision counts.
    if status not in (0, 3, 4) or not side.run.exists():
        raise ConfigError(f"promote: pedcxr batch ended with exit code {status}; see its message above")


def _reference(path: Path) -> references.Reference:
    try:
        return references.read(path, tuple(lexicon.load(lexicon.SHIPPED).findings))
    except PedcxrError as error:
        raise ConfigError(f"--reference: {error}") from error


def _of_model(settings: ServeConfig, model: str) -> ServeConfig:
    name = load.load(None, {"model": model}).served_name
    revision = settings.revision if model == settings.model else None
    return msgspec.structs.replace(settings, model=model, served_name=name, revision=revision)


def _private(settings: ServeConfig) -> ServeConfig:
    """Return the settings of a server on free ports of loopback, without tenants, records and required promotion."""
    gateway = GatewayConfig(port=0, admin_port=0, start_timeout_s=settings.gateway.start_timeout_s)
    return msgspec.structs.replace(settings, gateway=gateway, adapters={}, require_promotion="")
