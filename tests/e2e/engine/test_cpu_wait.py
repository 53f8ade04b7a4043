"""vLLM's queue between its processes, with and without the plugin's way to wait."""

from __future__ import annotations

import json
import subprocess
import sys

_SCRIPT = """
import json, threading, time
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from pedcxr_serve.vllm_plugin import cpu_wait

PAUSE_S = 0.4  # less than the second after which vLLM goes idle by itself

def processor_s():
    writer = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), rank=0)
    threads = [threading.Thread(target=one.wait_until_ready) for one in (writer, reader)]
    [one.start() for one in threads]
    [one.join() for one in threads]
    writer.enqueue("first")
    assert reader.dequeue(timeout=5) == "first"
    late = threading.Timer(PAUSE_S, writer.enqueue, ["second"])
    late.start()
    begun = time.thread_time()
    assert reader.dequeue(timeout=5) == "second"
    spent = time.thread_time() - begun
    late.join()
    return spent

stock = processor_s()
cpu_wait.install()
cpu_wait.install()
print(json.dumps([stock, processor_s()]))
"""


def test_a_process_that_waits_leaves_its_core_idle() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    stock, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours < stock / 4, f"{ours:.3f} s of processor time against vLLM's own {stock:.3f}"
