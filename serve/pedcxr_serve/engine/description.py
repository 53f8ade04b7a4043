"""What an engine that runs apart from its gateways tells them about itself."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.gateway.auth.models import ServedAdapter

PATH = "/pedcxr/engine"
"""Route of the description on the engine's private address; `pedcxr_serve.engine.access` answers it."""


class Share(NamedTuple):
    """The part of an engine's capacity that one gateway uses; see `EnginePlan` for the meaning."""

    slots: int
    max_preparing: int
    max_starting: int


class EngineDescription(Struct, frozen=True, kw_only=True):
    """The engine as a gateway needs to know it. `pedcxr-serve engine` writes it as JSON.

    Attributes:
        model: the default model name.
        max_new_tokens: maximum length of a report.
        slots: the engine's ``max-num-seqs``, for all gateways together.
        max_preparing, max_starting: the limits of the plan with these names, for all gateways together.
        image_tokens: prompt tokens per image.
        image_size: width and height in pixels that the model's processor resizes an image to.
        revision: of the checkpoint, or None if unknown.
        demo: whether the demo checkpoint is served.
        adapters: the adapters that the engine has loaded, by name.
    """

    model: str
    max_new_tokens: int
    slots: int
    max_preparing: int
    max_starting: int
    image_tokens: int = 256
    image_size: tuple[int, int] = (896, 896)
    revision: str | None = None
    demo: bool = False
    adapters: dict[str, ServedAdapter] = {}

    def share(self, gateway: GatewayConfig) -> Share:
        """Return what a gateway with ``gateway.slots`` may use: all of it by default, and never more."""
        slots = min(gateway.slots or self.slots, self.slots)

        def part(limit: int) -> int:
            return max(1, round(limit * slots / self.slots))

        return Share(
            slots, gateway.max_preparing or part(self.max_preparing), gateway.max_starting or part(self.max_starting)
        )
