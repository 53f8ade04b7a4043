"""A fake engine with the counters and times of vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.cli.bench.helpers import FLAGS
from tests.support.servers.fake_engine import Answer, FakeEngine

TIMES = {"queue_time_ms": 1.0, "time_to_first_token_ms": 2.0, "generation_time_ms": 60.0}
COUNTERS = {"vllm:mm_cache_hits_total": 0.0, "vllm:kv_cache_usage_perc": 0.25, "vllm:num_requests_running": 3.0}


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        engine.answer = Answer(gap=0.004, metrics=TIMES)
        engine.counters = COUNTERS | FLAGS
        yield engine
