"""What the code that watches an engine reports, and to whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.heartbeat import EngineHeartbeat


class EngineStatus(Protocol):
    """The engine as its gateway sees it; `pedcxr_serve.gateway.state.State` is one.

    Attributes:
        engine_address: where the engine listens.
        heartbeat: signs of life that requests report.
        engine_up: whether accepted requests can be sent to the engine.
        stage: step of the start or of the stop, in words.
    """

    engine_address: EngineAddress
    heartbeat: EngineHeartbeat
    engine_up: bool
    stage: str

    def set_ready(self, ready: bool, stage: str) -> None:
        """Accept or refuse requests."""

    def set_models(self, names: frozenset[str]) -> None:
        """Take over the names of the engine's models."""

    def engine_died(self, reason: str) -> None:
        """Record that the engine ended or hung (``ended``, ``hung``) without a request to stop."""


@dataclass(slots=True)
class StandaloneStatus:
    """The status of an engine without a gateway in the same process."""

    engine_address: EngineAddress
    heartbeat: EngineHeartbeat = field(default_factory=EngineHeartbeat)
    engine_up: bool = True
    stage: str = "starting"

    def set_ready(self, ready: bool, stage: str) -> None:
        """Record the stage."""
        self.stage = stage

    def set_models(self, names: frozenset[str]) -> None:
        """Do nothing: the gateways ask the engine."""

    def engine_died(self, reason: str) -> None:
        """Do nothing: the gateways notice it too."""
