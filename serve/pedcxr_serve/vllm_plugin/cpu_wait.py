"""Let the engine's processes sleep part of the time while they wait for each other on a CPU.

vLLM 0.32 passes every step between the scheduler process and the worker process through shared memory. The waiting
process spins on ``sched_yield`` until no message has come for a second
(``distributed/device_communicators/shm_broadcast.py``, ``SpinCondition``). On a GPU machine that costs an idle core. On
a CPU with two cores it takes time from the model, and requests stalled for up to a second.

Blocking immediately, as ``SpinCondition`` does after that second, is not an option: with its ``busy_loop_s`` set to 0,
a step took five seconds.
"""

from __future__ import annotations

import time

from vllm.distributed.device_communicators import shm_broadcast

_MAX_SLEEP_S = 0.0005
_FRACTION = 16  # sleep for 1/16 of the wait so far: waits of a single stream are short and are hardly prolonged
_PAUSE_S = 0.0001  # a pause this long between two calls means that a new wait began; the caller's loop takes 10 us

_wait_start = _last_call = 0.0


def install() -> None:
    """Replace ``sched_yield`` in vLLM's ``shm_broadcast`` in this process; a second call is harmless."""
    shm_broadcast.sched_yield = _sleep_briefly


def _sleep_briefly() -> None:
    # One thread per process waits at a time. Two threads would only sleep longer than necessary.
    global _wait_start, _last_call
    now = time.monotonic()
    if now - _last_call > _PAUSE_S:
        _wait_start = now
    time.sleep(min(_MAX_SLEEP_S, (now - _wait_start) / _FRACTION))
    _last_call = time.monotonic()
