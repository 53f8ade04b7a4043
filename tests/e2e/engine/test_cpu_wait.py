"""CPU time of a reader that waits on vLLM's shared-memory queue, with and without the plugin's wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.slow

_SCRIPT = """
import json, threading, time
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from pedcxr_serve.vllm_plugin import cpu_wait

PAUSE_S = 0.4  # less than 1 s, after which vLLM sleeps by itself

def processor_s():
    writer = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), rank=0)
    threads = [threading.Thread(target=one.wait_until_ready) for one in (writer, reader)]
    [one.start() for one in threads]
    [one.join() for one in threads]
    writer.enqueue("first")
    assert reader.dequeue(timeout=60) == "first"
    late = threading.Timer(PAUSE_S, writer.enqueue, ["second"])
    late.start()
    start = time.thread_time()
    assert reader.dequeue(timeout=60) == "second"
    cpu = time.thread_time() - start
    late.join()
    return cpu

stock = processor_s()
cpu_wait.install()
cpu_wait.install()
print(json.dumps([stock, processor_s()]))
"""


def test_a_waiting_process_uses_little_cpu() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    with tempfile.TemporaryDirectory(prefix="wait-") as folder:  # of vLLM's sockets, whose paths are short
        environment = os.environ | {"TMPDIR": folder}
        completed = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert completed.returncode == 0, completed.stderr[-2000:]
    stock, ours = json.loads(completed.stdout.splitlines()[-1])
    assert ours < stock / 4, f"{ours:.3f} s of processor time against vLLM's own {stock:.3f}"
