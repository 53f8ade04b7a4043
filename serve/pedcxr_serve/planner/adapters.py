"""The adapters of a configuration: their inspection, the memory that vLLM 0.32 reserves for them, and its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pedcxr_serve.checkpoint import adapter, revision
from pedcxr_serve.checkpoint.adapter import Adapter
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.config import paths
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.errors import AdapterError
from pedcxr_serve.planner.devices import Device

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can reserve (config/lora.py, MaxLoRARanks)


def inspect(config: ServeConfig, checkpoint: Checkpoint) -> dict[str, Adapter]:
    """Inspect the adapters of a configuration against its checkpoint; return them by name, ready or not.

    Raises:
        ConfigError: A folder does not exist.
    """
    if not config.adapters or checkpoint.shape is None:
        return {}
    base_revision = revision.of(checkpoint.folder)
    return {
        name: adapter.inspect(paths.expand(entry.path), checkpoint.shape, base_revision=base_revision, rank=entry.rank)
        for name, entry in config.adapters.items()
    }


def require_ready(adapters: Mapping[str, Adapter]) -> None:
    """Raise AdapterError unless all adapters can be served."""
    for one in adapters.values():
        adapter.require_ready(one)


def require_unchanged(adapters: Mapping[str, Adapter]) -> None:
    """Raise AdapterError if the files of an adapter have changed since it was inspected.

    A restarted engine would load other weights than the reports and the audit log name.
    """
    for name, one in adapters.items():
        if adapter.revision(one.folder) != one.revision:
            raise AdapterError(
                f"adapters.{name}: the files in {one.folder} have changed since the server started; start it again to "
                "check and serve the new adapter"
            )


def reserved_bytes(
    shape: Shape, device: Device, config: ServeConfig, adapters: Mapping[str, Adapter], dtype_bytes: int
) -> int:
    """Return the memory that vLLM reserves: slots of the largest rank."""
    if not adapters:
        return 0
    slot = adapter.slot_parameters(shape, _rank(adapters))
    return _slots(device, adapters) * slot * dtype_bytes


def argv(device: Device, config: ServeConfig, adapters: Mapping[str, Adapter]) -> list[str]:
    """Return the arguments of `vllm serve`: every batch may mix all adapters and the base."""
    if not adapters:
        return []
    modules = [
        {"name": name, "path": str(one.folder.absolute()), "base_model_name": config.served_name}
        for name, one in adapters.items()
    ]
    slots = str(_slots(device, adapters))
    words = ["--enable-lora", "--max-loras", slots, "--max-lora-rank", str(_rank(adapters))]
    return [*words, "--lora-modules", *(json.dumps(module, separators=(",", ":")) for module in modules)]


def _slots(device: Device, adapters: Mapping[str, Adapter]) -> int:
    """Return one slot for each adapter, and on a CPU an empty one.

    In a batch with adapters, vLLM 0.32 gives the base the slot -1. Its CPU kernels (``lora/ops/torch_ops/lora_ops.py``)
    take that for the last slot: with an adapter in it, reports of the base would be those of a mixture. The first free
    slot is filled first, so the last one stays empty. The GPU kernels skip the slot -1.
    """
    return len(adapters) + (device.kind == "cpu")


def _rank(adapters: Mapping[str, Adapter]) -> int:
    largest = max(one.rank for one in adapters.values())
    return next(rank for rank in _RANKS if rank >= largest)
