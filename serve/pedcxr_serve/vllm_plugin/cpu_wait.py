"""How the engine's processes wait for each other on a CPU: asleep for a part of the time.

vLLM 0.32 hands every step from the scheduler's process to the worker's and back through shared memory, and whoever
waits there spins on ``sched_yield`` until nothing came for a second
(``distributed/device_communicators/shm_broadcast.py``, ``SpinCondition``). Beside a GPU that costs a core which has
nothing else to do. Here two full cores are all there is, and requests now and then stood still for up to a second.
To wait for a message at once, as ``SpinCondition`` does after that second, is no way out: tried with its
``busy_loop_s`` at 0, a step took five seconds.
"""

from __future__ import annotations

import time

from vllm.distributed.device_communicators import shm_broadcast

_LONGEST_S = 0.0005
_PART = 16  # of the wait so far is a nap, so that a single stream, whose waits are short, is hardly held up
_PAUSE_S = 0.0001  # between two calls, which ends a wait; the loop around them takes a tenth of it

_began = _ended = 0.0


def install() -> None:
    """Let this process wait so; harmless twice."""
    shm_broadcast.sched_yield = _nap


def _nap() -> None:
    # One thread of a process waits at a time; two would only nap longer than they need.
    global _began, _ended
    now = time.monotonic()
    if now - _ended > _PAUSE_S:
        _began = now
    time.sleep(min(_LONGEST_S, (now - _began) / _PART))
    _ended = time.monotonic()
