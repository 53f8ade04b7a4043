"""An engine that this process does not run: find out what it is, and watch it come and go.

::

    wait until it answers ─▶ identify ─▶ ready ─▶ watched ─▶ failed or stopping ─▶ wait until it answers ─▶ ...
                                └── not acceptable: ConfigError at the start, not ready after that
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import aiohttp
import msgspec
from yarl import URL

from pedcxr_serve.config.load import is_loopback
from pedcxr_serve.config.settings import DEMO_NAME, GatewayConfig, ServeConfig
from pedcxr_serve.engine import address, description, health
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.description import EngineDescription
from pedcxr_serve.engine.status import EngineStatus
from pedcxr_serve.engine.watch import EngineWatch
from pedcxr_serve.errors import ConfigError, EngineError, EngineNotReady
from pedcxr_serve.vllm_plugin import VLLM_SERIES

_POLL_S = 0.5
_HEALTH_EVERY_S = 1.0
_IDENTIFY_S = 60.0  # for a handful of requests, of which one waits for the preprocessing of other films
_RETRY_S = 5.0
_ANY_VERSION = "any"


class GatewayStatus(EngineStatus, Protocol):
    """A gateway that learns from the engine what it serves."""

    @property
    def end_requests(self) -> Callable[[], None]:
        """Ends all requests that the engine has, with a typed error to their clients."""

    def use_engine(self, engine: EngineDescription, vllm: str, gateway: GatewayConfig) -> None:
        """Take over slots, model, limits, and the version of vLLM; the last is empty if unknown."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine has told about itself.

    Attributes:
        version: of vLLM, or None if it does not say.
        described: its description, or None if `pedcxr-serve engine` does not run it.
        models: names of all models, adapters included.
        has_plugin: whether it refuses a film that vLLM alone would change.
        needs_key: whether it refuses a request without a key.
    """

    address: EngineAddress
    version: str | None
    described: EngineDescription | None
    models: frozenset[str]
    has_plugin: bool
    needs_key: bool


class RemoteEngine:
    """The engine of a gateway that runs apart from it; used from one event loop.

    Args:
        print_line: prints a line for the operator.
    """

    def __init__(
        self,
        state: GatewayStatus,
        session: aiohttp.ClientSession,
        settings: ServeConfig,
        print_line: Callable[[str], None],
    ) -> None:
        self._state, self._session, self._settings, self._print = state, session, settings, print_line
        self._model = settings.served_name

    @property
    def exit_error(self) -> EngineError | None:
        """None: the process of the engine is not ours."""
        return None

    async def start(self) -> None:
        """Wait until the engine answers, identify it, and accept requests.

        Raises:
            ConfigError: these settings do not accept the engine; see `require_acceptable`.
            EngineNotReady: it did not answer within ``gateway.start_timeout_s``.
        """
        timeout_s = self._settings.gateway.start_timeout_s
        self._state.stage = "waiting for the engine"
        try:
            async with asyncio.timeout(timeout_s):
                facts = await self._connect()
        except TimeoutError:
            where = address.describe(self._state.engine_address)
            raise EngineNotReady(
                f"no engine answered at {where} within {timeout_s:.0f} s; start it with `pedcxr-serve engine`, check "
                "gateway.engine and engine.key_file, or increase gateway.start_timeout_s"
            ) from None
        for line in guarantees(facts):
            self._print(line)

    async def keep(self) -> NoReturn:
        """Stop accepting requests while the engine is away, until cancelled.

        Requests that the engine has got are not touched: an engine that stops completes them.
        """
        while True:
            watch = EngineWatch(
                self._session,
                self._state.heartbeat,
                self._settings.gateway,
                self._model,
                health_every_s=_HEALTH_EVERY_S,
            )
            failure = await watch.failure()
            self._state.engine_up = False
            self._state.heartbeat.clear()
            self._state.set_ready(False, "waiting for the engine")
            if failure.reason != "stopping":
                self._state.engine_died(failure.reason)
            self._print(f"{failure.message}; waiting until it is back")
            await self._reconnect()
            self._print("the engine is back; ready again")

    async def stop(self, urgent: asyncio.Event) -> None:
        """End the requests that the engine still has, with a typed error to their clients. The engine runs on."""
        self._state.engine_up = False
        self._state.end_requests()

    async def _reconnect(self) -> None:
        reported = ""
        while True:
            try:
                await self._connect()
                return
            except ConfigError as error:
                if str(error) != reported:
                    reported = str(error)
                    self._print(f"the engine is not accepted: {error}")
                self._state.stage = "the new engine is not accepted"
                await asyncio.sleep(_RETRY_S)

    async def _connect(self) -> EngineFacts:
        while True:
            if await health.is_healthy(self._session):
                # An engine may answer and then lose the connection while it starts or stops: try again.
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, EngineNotReady):
                    async with asyncio.timeout(_IDENTIFY_S):
                        facts = await identify(self._session, self._state.engine_address)
                    engine = require_acceptable(facts, self._settings)
                    break
            await asyncio.sleep(_POLL_S)
        self._model = engine.model
        self._state.use_engine(engine, facts.version or "", self._settings.gateway)
        self._state.set_models(facts.models)
        self._state.heartbeat.beat()
        self._state.heartbeat.clear()
        self._state.engine_up = True
        self._state.set_ready(True, "ready")
        return facts


async def identify(session: aiohttp.ClientSession, where: EngineAddress) -> EngineFacts:
    """Ask an engine what it is. Its queue is not involved, so that a full engine answers too.

    Raises:
        ConfigError: the engine refuses the key, or what answers is no engine.
        EngineNotReady, aiohttp.ClientError: it does not answer as expected, for example because it starts.
    """
    async with session.get("/v1/models") as response:
        if response.status == 401:
            raise ConfigError(
                f"{address.describe(where)}: the engine refuses the key; engine.key_file must name a copy of the "
                "engine's file"
            )
    models = await health.model_names(session)
    if not models:
        raise EngineNotReady("the engine serves no model")
    described = await _description(session)
    model = described.model if described else min(models)
    try:
        await health.check_plugin(session, model)
        has_plugin = True
    except EngineNotReady:
        has_plugin = False
    async with address.session(where) as without_key, without_key.get("/version") as response:
        needs_key = response.status == 401
    return EngineFacts(where, await _version(session), described, models, has_plugin, needs_key)


def require_acceptable(facts: EngineFacts, settings: ServeConfig) -> EngineDescription:
    """Return the description to work with, from the engine or, if it has none, from the settings.

    Raises:
        ConfigError: another minor version of vLLM without ``gateway.allow_engine_version``, no plugin without
            ``gateway.allow_plain_vllm``, or the engine does not say how many slots it has.
    """
    gateway, where = settings.gateway, address.describe(facts.address)
    series = None if facts.version is None else ".".join(facts.version.split("+")[0].split(".")[:2])
    if series != VLLM_SERIES and gateway.allow_engine_version not in (series, _ANY_VERSION):
        name = f"vLLM {facts.version}" if facts.version else "no version of vLLM that it tells"
        value = series or _ANY_VERSION
        raise ConfigError(
            f"{where} runs {name}, and this gateway was tested with {VLLM_SERIES}; run that version, or accept the "
            f'other with gateway.allow_engine_version = "{value}"'
        )
    if not facts.has_plugin and not gateway.allow_plain_vllm:
        raise ConfigError(
            f"{where} runs without pedcxr's plugin: it does not refuse films that it would change, for example a "
            "16-bit film, which becomes white. Run it with `pedcxr-serve engine`, or accept it with "
            "gateway.allow_plain_vllm = true"
        )
    if facts.described is not None:
        return facts.described
    if gateway.slots is None:
        raise ConfigError(
            f"{where} does not tell how many requests it runs at once; set gateway.slots to its --max-num-seqs, or to "
            "this gateway's part of it"
        )
    model = settings.served_name if settings.served_name in facts.models else min(facts.models)
    return EngineDescription(
        model=model,
        max_new_tokens=settings.engine.max_new_tokens,
        slots=gateway.slots,
        max_preparing=gateway.slots,
        max_starting=gateway.slots,
        demo=model == DEMO_NAME,
    )


def guarantees(facts: EngineFacts) -> list[str]:
    """Return lines that say which guarantees hold with this engine, and which do not or are not known."""
    ours, where = facts.described is not None, facts.address
    runner = "run by `pedcxr-serve engine`" if ours else "not run by `pedcxr-serve engine`"
    version = f"vLLM {facts.version}" if facts.version else "vLLM of unknown version"
    private = facts.needs_key if isinstance(where, URL) else address.is_private(where)
    secret = isinstance(where, Path) or where.scheme == "https" or is_loopback(where.host or "")
    by_us = True if ours else None
    rows: list[tuple[bool | None, str]] = [
        (facts.has_plugin, "a film that the engine would change is refused (tried)"),
        (private, "only this user and holders of the key reach the engine"),
        (secret, "films and reports are not readable on the network between gateway and engine"),
        (by_us, "prompts and films are not in the engine's log"),
        (by_us, "an engine that hangs is replaced"),
        (by_us, "an engine that stops completes its reports"),
        (by_us, "a lost request is not sent to another engine, which a film may end too"),
    ]
    if all(holds for holds, _ in rows):
        return [f"engine {address.describe(where)}: {version}, {runner}; all guarantees hold"]
    words = {True: "holds", False: "DOES NOT HOLD", None: "not known"}
    lines = [f"  {words[holds]:<13}  {text}" for holds, text in rows]
    return [f"engine {address.describe(where)}: {version}, {runner}", *lines]


async def _version(session: aiohttp.ClientSession) -> str | None:
    async with session.get("/version") as response:
        body = await response.read()
    try:
        return str(msgspec.json.decode(body, type=dict[str, str])["version"]) if response.status == 200 else None
    except (msgspec.DecodeError, KeyError):
        return None


async def _description(session: aiohttp.ClientSession) -> EngineDescription | None:
    async with session.get(description.PATH) as response:
        body = await response.read()
    try:
        return msgspec.json.decode(body, type=EngineDescription) if response.status == 200 else None
    except msgspec.DecodeError:
        return None
